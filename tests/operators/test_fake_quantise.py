"""The torch imitation of a quantised file, for every way of storing weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from paretune.operators.compress import Compressor
from paretune.operators.fake_quantise import fake_quantise
from paretune.spaces.discover import discover
from paretune.spaces.plan import CompressionPlan, LayerChoice
from paretune.targets.onnx_scales import read_scales
from paretune.targets.onnxruntime_cpu import OnnxRuntimeCpu
from paretune.tasks.compress_section import CompressSection

EXAMPLE = Path(__file__).parents[2] / "examples" / "cifar10_resnet20.yaml"
CASES = (
    (LayerChoice(8, 8), {}),
    (LayerChoice(8, 32), {}),
    (LayerChoice(4, 8), {}),
    (LayerChoice(4, 32), {}),
    (LayerChoice(4, 32), {"symmetric": False, "scales": 9}),
    (LayerChoice(3, 8), {"ranges": "entropy"}),
    (LayerChoice(6, 32), {"scales": "tensor"}),
    (LayerChoice(4, 8, quantizer="apot"), {}),
    (LayerChoice(4, 8, quantizer="codebook"), {}),
    (LayerChoice(4, 32, quantizer="codebook"), {}),
)


def small() -> nn.Module:
    torch.manual_seed(0)
    made = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 12, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 7)),
    )
    made[1].running_var.uniform_(0.5, 1.5)
    return made.eval()


def ids(case: tuple[LayerChoice, dict[str, object]]) -> str:
    return f"{case[0]} {case[1]}"


@pytest.mark.parametrize("case", CASES, ids=ids)
def test_results_of_a_small_network(
    case: tuple[LayerChoice, dict[str, object]], tmp_path: Path
) -> None:
    choice, options = case
    network, inputs = small(), torch.randn(64, 3, 8, 8)
    space = discover(network, inputs[:1], freeze=[], prune=False)
    plan = CompressionPlan({}, {layer.name: choice for layer in space.layers})
    made = Compressor(network, inputs[:1], space, inputs, CompressSection(**options)).compress(plan)
    target, path = OnnxRuntimeCpu(), tmp_path / "a.onnx"
    target.export(made.network, inputs[:1], made.bits, [inputs.numpy()], path, made.grids)
    imitation = fake_quantise(made.network, inputs[:1], read_scales(path))
    with torch.no_grad():
        expected = imitation(inputs).numpy()
    given = target.load(path).predict(inputs.numpy())
    spread = expected.max() - expected.min()
    tolerance = 1e-4 if choice.activation_bits == 32 else 0.012  # a step or two of 1/255
    assert np.abs(given - expected).mean() <= tolerance * spread


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=ids)
def test_predictions_of_resnet20(
    case: tuple[LayerChoice, dict[str, object]], data_folder: Path, tmp_path: Path
) -> None:
    """On 1,000 images the torch imitation and the exported file agree on 99 %."""
    from paretune.tasks.load import load_task

    choice, options = case
    task = load_task(EXAMPLE)
    space = discover(task.network, task.example, freeze=[], prune=False)
    calibration = torch.cat(task.calibration(256))
    plan = CompressionPlan({}, {layer.name: choice for layer in space.layers})
    compressor = Compressor(
        task.network, task.example, space, calibration, CompressSection(**options)
    )
    made = compressor.compress(plan)
    target, path = OnnxRuntimeCpu(), tmp_path / "a.onnx"
    target.export(made.network, task.example, made.bits, [calibration.numpy()], path, made.grids)
    imitation = fake_quantise(made.network, task.example, read_scales(path))
    inputs = torch.cat([x for x, _ in task.search.batches(250)])
    with torch.no_grad():
        expected = torch.cat([imitation(part) for part in inputs.split(250)]).argmax(1).numpy()
    given = target.load(path).predict(inputs.numpy()).argmax(1)
    assert (given == expected).mean() >= 0.99
