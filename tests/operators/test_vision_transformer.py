"""torchvision's own ViT, trained on real digits: heads, MLP width, ranks and bits at once."""

import numpy as np
import pytest
import small_task
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paretune.objectives.counts import count_macs
from paretune.operators.compress import Compressor
from paretune.spaces.discover import discover
from paretune.targets.onnxruntime_cpu import OnnxRuntimeCpu

pytestmark = pytest.mark.slow


def images(split) -> tuple[Tensor, Tensor]:
    inputs, labels = split.take(np.arange(len(split)))
    return inputs.expand(-1, 3, -1, -1).contiguous(), labels


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    from torchvision.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    network = VisionTransformer(8, 2, num_layers=3, num_heads=4, hidden_dim=32, mlp_dim=96)
    network.heads = nn.Linear(32, 10)
    inputs, labels = images(small_task.splits()["train"])
    optimiser = torch.optim.AdamW(network.parameters(), 0.002)
    for _ in range(25):
        for rows in torch.randperm(len(inputs)).split(50):
            optimiser.zero_grad()
            F.cross_entropy(network(inputs[rows]), labels[rows]).backward()
            optimiser.step()
    return network.eval().requires_grad_(False)


def test_heads_widths_ranks_and_bits_together(trained, tmp_path):
    parts = small_task.splits()
    calibration, _ = images(parts["train"].part("some", np.arange(256)))
    inputs, labels = images(parts["evaluate"])
    space = discover(trained, calibration[:1], freeze=[])
    heads = [g for g in space.groups if g.unit == "heads"]
    widths = [g for g in space.groups if g.name.endswith("mlp.0")]
    assert [g.channels for g in heads] == [4] * 3
    assert [g.channels for g in widths] == [96] * 3
    first, second = (f"encoder.layers.encoder_layer_{i}." for i in (0, 1))
    known = list(space.parameters)
    genotypes = {
        "heads and widths": {f"keep:{g.name}": 1 for g in heads + widths},
        "ranks": {n: 1 for n in known if n.startswith(f"rank:{first}")},
        "bits": {n: 1 for n in known if n.startswith(f"bits:{second}")},
    }
    assert all(genotypes.values())
    genotypes["all"] = {k: v for genotype in genotypes.values() for k, v in genotype.items()}
    compressor = Compressor(trained, calibration[:1], space, calibration)
    target = OnnxRuntimeCpu(calibration_examples=256)
    whole, scores, sizes, macs = (trained(inputs).argmax(1) == labels).float().mean(), {}, {}, {}
    assert whole > 0.9
    for name, genotype in genotypes.items():
        made = compressor.compress(space.plan(genotype))
        path = tmp_path / f"{name}.onnx"
        target.export(made.network, calibration[:1], made.bits, [calibration.numpy()], path)
        found = torch.from_numpy(target.load(path).predict(inputs.numpy()))
        expected = made.network(inputs)
        if name in ("heads and widths", "ranks"):
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)
        else:
            assert (found.argmax(1) == expected.argmax(1)).float().mean() > 0.97
        scores[name] = float((found.argmax(1) == labels).float().mean())
        sizes[name], macs[name] = path.stat().st_size, count_macs(made.network, calibration[:1])
    print(float(whole), scores, sizes, macs)
    assert macs["all"] < min(macs["heads and widths"], macs["ranks"]) < macs["bits"]
    assert sizes["all"] < min(sizes[n] for n in genotypes if n != "all")
    assert min(scores.values()) > whole - 0.1
