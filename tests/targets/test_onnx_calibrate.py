"""Activation ranges against ONNX Runtime's own calibrators and a search by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto
from onnxruntime.quantization.calibrate import CalibrationMethod, create_calibrator
from torch import nn

from paretune.errors import CandidateError, InputError
from paretune.targets.onnx_calibrate import calibrate
from paretune.targets.onnx_export import export_model
from paretune.targets.onnxruntime_cpu import OnnxRuntimeCpu
from paretune.targets.target import Bits, Grid

METHODS = {
    "minmax": (CalibrationMethod.MinMax, {}),
    "percentile": (CalibrationMethod.Percentile, {"num_bins": 2048, "percentile": 99.999}),
    "entropy": (CalibrationMethod.Entropy, {"num_bins": 2048, "num_quantized_bins": 128}),
}


@pytest.fixture(scope="module")
def model() -> ModelProto:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 3))
    return onnx.shape_inference.infer_shapes(export_model(network.eval(), torch.zeros(1, 2, 6, 6)))


@pytest.fixture(scope="module")
def inputs() -> np.ndarray:
    return np.random.default_rng(0).standard_t(4, (16, 2, 6, 6)).astype(np.float32)


class Reader:
    def __init__(self, inputs: np.ndarray) -> None:
        self.batches = iter([inputs])

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self.batches, None)
        return None if batch is None else {"input": batch}


@pytest.mark.parametrize("ranges", METHODS)
def test_ranges_are_those_of_the_runtimes_own_calibrator(
    ranges: str, model: ModelProto, inputs: np.ndarray, tmp_path: Path
) -> None:
    method, options = METHODS[ranges]
    onnx.save(model, tmp_path / "m.onnx")
    calibrator = create_calibrator(
        tmp_path / "m.onnx",
        op_types_to_calibrate=["Conv"],
        augmented_model_path=str(tmp_path / "augmented.onnx"),
        calibrate_method=method,
        extra_options=options,
    )
    calibrator.collect_data(Reader(inputs))
    theirs = calibrator.compute_data().data
    ours = calibrate(model, ["0"], [inputs], ranges=ranges)
    shared = set(ours) & set(theirs)
    assert {"input", "0"} <= shared
    for name in shared:
        low, high = (float(np.asarray(v).reshape(-1)[0]) for v in theirs[name].range_value)
        # a value on the edge between two bins may be counted in either
        one_bin = 0.0 if ranges == "minmax" else 1.01 * (high - low) / 2048
        np.testing.assert_allclose(ours[name], (low, high), rtol=1e-5, atol=1e-6 + one_bin)


def test_least_squares_is_the_best_of_all_shares(model: ModelProto) -> None:
    inputs = np.random.default_rng(1).standard_t(3, (64, 2, 6, 6)).astype(np.float32)
    found = calibrate(model, ["0"], [inputs], ranges="mse")["input"]
    low, high = float(inputs.min()), float(inputs.max())

    def error(a: float, b: float) -> float:
        step = (b - a) / 255
        zero = round(-a / step)
        rounded = (np.clip(np.rint(inputs / step) + zero, 0, 255) - zero) * step
        return float(np.square(rounded - inputs).sum())

    best = min(error(low * s, high * s) for s in np.linspace(0.3, 1, 71))
    assert error(*found) <= 1.01 * best
    assert error(*found) < error(low, high)


def test_too_few_examples_and_bad_values_are_named(model: ModelProto, inputs: np.ndarray) -> None:
    with pytest.raises(CandidateError, match="3 examples are too few for 'entropy' ranges; give"):
        calibrate(model, ["0"], [inputs[:3]], ranges="entropy")
    with pytest.raises(InputError, match="activation_ranges: unknown 'kl'"):
        calibrate(model, ["0"], [inputs], ranges="kl")
    broken = inputs.copy()
    broken[0, 0, 0, 0] = np.nan
    for ranges in ("minmax", "mse"):
        with pytest.raises(CandidateError, match="not finite"):
            calibrate(model, ["0"], [broken], ranges=ranges)


@pytest.mark.parametrize(
    "ranges", ["percentile", "mse", pytest.param("entropy", marks=pytest.mark.slow)]
)
def test_a_file_with_other_ranges_stays_near_the_float_network(
    ranges: str, inputs: np.ndarray, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).eval()
    target, path = OnnxRuntimeCpu(ranges=ranges), tmp_path / "a.onnx"
    bits = {"0": Bits(8, 8), "3": Bits(4, 8)}
    target.export(network, torch.zeros(1, 2, 6, 6), bits, [inputs], path)
    with torch.no_grad():
        expected = network(torch.from_numpy(inputs)).numpy()
    given = target.load(path).predict(inputs)
    assert np.abs(given - expected).mean() <= 0.08 * (expected.max() - expected.min())
    with pytest.raises(InputError, match="ranges: unknown 'kl'"):
        OnnxRuntimeCpu(ranges="kl")


@pytest.mark.parametrize("format", ["qoperator", "qdq"])
def test_a_range_behind_a_relu_leaves_its_input_to_others(format: str, tmp_path: Path) -> None:
    """The learned range of ``conv`` begins at zero; ``side`` reads the negative values too."""

    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.stem, self.conv = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
            self.side = nn.Conv2d(8, 8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x)
            return self.conv(torch.relu(x)) + self.side(x)

    network = Branches().eval()
    inputs = np.random.default_rng(0).standard_normal((32, 3, 8, 8)).astype(np.float32)
    with torch.no_grad():
        top = float(torch.relu(network.stem(torch.from_numpy(inputs))).max())
        expected = network(torch.from_numpy(inputs)).numpy()
    weight = network.conv.weight.detach().numpy()
    scale = np.abs(weight).reshape(8, -1).max(axis=1) / 64
    grids = {"conv": Grid(scale.astype(np.float32), input_range=(0.0, top))}
    target, path = OnnxRuntimeCpu(format=format), tmp_path / "a.onnx"
    bits = {name: Bits(8, 8) for name in ("stem", "conv", "side")}
    target.export(network, torch.from_numpy(inputs[:1]), bits, [inputs], path, grids)
    off = np.abs(target.load(path).predict(inputs) - expected).max()
    assert off <= 0.05 * (expected.max() - expected.min())
