"""Every family through every room: discover, plan, compress, export, quantise, run, apply."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from paretune.operators.apply import apply
from paretune.operators.compress import Compressor
from paretune.operators.fake_quantise import fake_quantise, fold_batchnorm, round_weight
from paretune.spaces.discover import discover
from paretune.spaces.plan import CompressionPlan
from paretune.spaces.space import SearchSpace
from paretune.targets.onnx_scales import read_scales
from paretune.targets.onnxruntime_cpu import OnnxRuntimeCpu

EXAMPLES = Path(__file__).parent.parent / "examples"


def random_plan(space: SearchSpace, seed: int, families: tuple[str, ...]) -> CompressionPlan:
    """A random choice in ``families``, mild enough that the network keeps some signal."""
    generator = random.Random(seed)
    return space.plan(
        {
            name: generator.randrange(min(count, 3))
            for name, count in space.parameters.items()
            if name.startswith(families)
        }
    )


def network_named(name: str) -> tuple[torch.nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    if name == "plain":
        from paretune.tasks.vision import plain_cnn

        network, example = plain_cnn(convs=6), torch.randn(1, 3, 32, 32)
    else:
        import torchvision

        network = torchvision.models.get_model(name, weights=None, num_classes=10)
        example = torch.randn(1, 3, 64, 64)
    network.train()
    with torch.no_grad():
        for _ in range(2):
            network(torch.randn(8, *example.shape[1:]))
    return network.eval(), example


@pytest.mark.parametrize(
    "name",
    [
        "plain",
        pytest.param("mobilenet_v2", marks=pytest.mark.slow),
        pytest.param("resnet18", marks=pytest.mark.slow),
        pytest.param("densenet121", marks=pytest.mark.slow),
    ],
)
def test_a_plan_of_every_family_goes_the_whole_way(name: str, tmp_path: Path) -> None:
    network, example = network_named(name)
    space = discover(network, example)
    target = OnnxRuntimeCpu()
    calibration = torch.randn(16, *example.shape[1:])
    compressor = Compressor(network, example, space, calibration)
    inputs = torch.randn(12, *example.shape[1:])
    for number, families in enumerate([("keep:",), ("rank:",), ("bits:",), ("keep:", "rank:")]):
        plan = random_plan(space, number, families)
        assert plan != space.identity
        made = compressor.compress(plan)
        path = tmp_path / f"{number}.onnx"
        target.export(made.network, example, made.bits, [calibration.numpy()], path)
        found = target.load(path).predict(inputs.numpy())
        with torch.inference_mode():
            expected = made.network(inputs).numpy()
            again = apply(network, plan, example, calibration)(inputs).numpy()
        np.testing.assert_array_equal(again, expected)
        assert found.shape == expected.shape and np.isfinite(found).all()
        if "bits:" not in families:
            scale = np.abs(expected).max()
            np.testing.assert_allclose(found, expected, atol=2e-4 * scale, rtol=1e-3)
    mixed = random_plan(space, 9, ("keep:", "rank:", "bits:"))
    made = compressor.compress(mixed)
    target.export(made.network, example, made.bits, [calibration.numpy()], tmp_path / "mixed.onnx")
    assert target.load(tmp_path / "mixed.onnx").predict(inputs.numpy()).shape == (12, 10)
    assert len(read_scales(tmp_path / "mixed.onnx")) > 0


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize("format", ["qoperator", "qdq"])
def test_the_file_computes_like_the_fake_quantised_network(
    format: str, data_folder: Path, tmp_path: Path
) -> None:
    """Five mixed plans on the pretrained ResNet-20: predictions agree on 99 % of 1,000 images,
    and the file's integers are those that the rounding formula gives."""
    from paretune.tasks.load import load_task

    task = load_task(EXAMPLES / "cifar10_resnet20.yaml")
    space = discover(task.network, task.example)
    batches = task.calibration(128)
    compressor = Compressor(task.network, task.example, space, torch.cat(batches))
    target = OnnxRuntimeCpu(format=format)
    inputs = torch.cat([x for x, _ in task.search.batches(250)])
    plans = [space.plan({n: 1 for n in space.parameters if n.startswith("bits:")})]
    for seed in range(4):
        generator = random.Random(seed)
        genotype = {n: generator.randrange(2) for n in space.parameters if n[:5] == "bits:"}
        genotype |= {"rank:layer3.2.conv2": 2, "keep:layer2.2.conv1": seed % 2, "rank:conv1": 0}
        plans.append(space.plan(genotype))
    for number, plan in enumerate(plans):
        made = compressor.compress(plan)
        path = tmp_path / f"{number}.onnx"
        target.export(made.network, task.example, made.bits, (b.numpy() for b in batches), path)
        scales = read_scales(path)
        assert set(scales) == {n for n, b in made.bits.items() if b.weight == 8}
        imitation = fake_quantise(made.network, task.example, scales)
        with torch.inference_mode():
            expected = torch.cat([imitation(part) for part in inputs.split(250)])
        found = target.load(path).predict(inputs.numpy())
        agreement = float((expected.argmax(1).numpy() == found.argmax(1)).mean())
        assert agreement >= 0.99, f"plan {number}: {agreement}"
        folded = fold_batchnorm(made.network, task.example)
        for name, layer in scales.items():
            weight = folded.get_submodule(name).weight.detach()
            most = int(np.abs(layer.weight.astype(int)).max())
            integers = round_weight(weight, torch.from_numpy(layer.weight_scale.copy()), most)
            different = np.abs(integers.numpy() - layer.weight)
            assert different.max() <= 1 and (different > 0).mean() < 0.01
