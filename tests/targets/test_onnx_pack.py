"""Packed weights: they are small, read back exactly, computed right, and gone when opened."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from torch import nn
from torch.nn import functional

from paretune.errors import CandidateError
from paretune.targets.onnx_session import require_runtime
from paretune.targets.onnx_unpack import unpack
from paretune.targets.onnxruntime_cpu import OnnxRuntimeCpu
from paretune.targets.target import Bits, Grid
from paretune.targets.uniform import to_floats, to_integers, weight_grid


class Net(nn.Module):
    """BatchNorm factors below and at zero, a depthwise layer, a residual, both kinds of linear."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.depth = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.mix = nn.Conv2d(8, 8, 1)
        self.mid = nn.Linear(8, 16, bias=False)
        self.fc = nn.Linear(16, 5)
        with torch.no_grad():
            self.bn.weight.uniform_(0.5, 2)
            self.bn.weight[3] *= -1
            self.bn.weight[5] = 0
            self.bn.running_var.uniform_(0.5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.bn(self.stem(x)))
        x = functional.relu(self.mix(functional.relu(self.depth(x))) + x)
        x = x.flatten(2).transpose(1, 2)  # (n, pixels, 8): a MatMul in the graph
        return self.fc(functional.relu(self.mid(x)).mean(1))


LAYERS = ("stem", "depth", "mix", "mid", "fc")


@pytest.fixture(scope="module")
def inputs() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((32, 3, 6, 6)).astype(np.float32)


def snapped(network: nn.Module, bits: int, **how: object) -> tuple[nn.Module, dict[str, Grid]]:
    """The network with its weights on grids of its own, and the grids."""
    grids = {}
    for name in LAYERS:
        weight = network.get_submodule(name).weight
        grids[name] = grid = weight_grid(weight.detach().numpy(), bits, **how)
        low, high = (
            (0, 2**bits - 1) if grid.zero_point is not None else (-(2 ** (bits - 1)) + 1,) * 2
        )
        high = high if grid.zero_point is not None else -low
        integers = to_integers(weight.detach().numpy(), grid, low, high)
        with torch.no_grad():
            weight.copy_(torch.from_numpy(to_floats(integers, grid)))
    return network, grids


@pytest.mark.parametrize(
    ("per", "symmetric", "bits"),
    [
        *(("channel", symmetric, bits) for symmetric in (True, False) for bits in (2, 3, 4, 6, 8)),
        *((per, symmetric, 4) for symmetric in (True, False) for per in ("tensor", 4)),
    ],
)
def test_float_activations_compute_what_torch_does(
    per: str | int, symmetric: bool, bits: int, inputs: np.ndarray, tmp_path: Path
) -> None:
    network, grids = snapped(Net().eval(), bits, per=per, symmetric=symmetric)
    path = tmp_path / "a.onnx"
    target = OnnxRuntimeCpu()
    wanted = {name: Bits(bits, 32) for name in LAYERS}
    target.export(network, torch.zeros(1, 3, 6, 6), wanted, [], path, grids)
    with torch.no_grad():
        expected = network(torch.from_numpy(inputs)).numpy()
    np.testing.assert_allclose(target.load(path).predict(inputs), expected, atol=2e-5)
    stored = unpack(onnx.load(path))
    assert set(stored) == set(LAYERS)
    for name in LAYERS:
        weight = network.get_submodule(name).weight.detach().numpy()
        integers = to_integers(weight, grids[name], -128, 255)
        turned = name == "stem" and np.flatnonzero(network.bn.weight.detach().numpy() < 0)
        if turned is not False and symmetric:
            integers[turned] *= -1
        if turned is not False and not symmetric:
            integers[turned] = 2 ** {2: 2, 3: 4, 4: 4, 6: 8, 8: 8}[bits] - 1 - integers[turned]
        kept = np.arange(len(integers)) != (
            5 if name == "stem" else -1
        )  # the zero channel has none
        np.testing.assert_array_equal(stored[name][kept], integers[kept])


@pytest.mark.parametrize("format", ["qoperator", "qdq"])
@pytest.mark.parametrize("bits", [2, 3, 4, 6])
def test_integer_kernels_get_the_packed_integers(
    format: str, bits: int, inputs: np.ndarray, tmp_path: Path
) -> None:
    network, grids = snapped(Net().eval(), bits)
    target = OnnxRuntimeCpu(format=format)
    wanted = {name: Bits(bits, 8) for name in LAYERS}
    path = tmp_path / "a.onnx"
    target.export(network, torch.zeros(1, 3, 6, 6), wanted, [inputs], path, grids)
    with torch.no_grad():
        expected = network(torch.from_numpy(inputs)).numpy()
    given = target.load(path).predict(inputs)
    assert np.abs(given - expected).max() <= 0.06 * (expected.max() - expected.min())
    assert operators(path, tmp_path) & {"QLinearConv", "ConvInteger"}
    stored = unpack(onnx.load(path))
    if bits == 6:  # as wide as INT8
        assert not stored
        return
    for name in LAYERS:
        integers = to_integers(network.get_submodule(name).weight.detach().numpy(), grids[name])
        if name == "stem":
            integers *= np.sign(network.bn.weight.detach().numpy()).astype(int)[:, None, None, None]
        np.testing.assert_array_equal(stored[name], integers)


def operators(path: Path, folder: Path) -> set[str]:
    """What ONNX Runtime makes of a file when it opens it."""
    runtime = require_runtime()
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(folder / "opened.onnx")
    runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return {node.op_type for node in onnx.load(folder / "opened.onnx").graph.node}


@pytest.mark.parametrize("pair", [(4, 32), (4, 8), (2, 32), (2, 8), (8, 32)])
def test_unpacking_is_done_once_when_the_file_is_opened(
    pair: tuple[int, int], inputs: np.ndarray, tmp_path: Path
) -> None:
    wanted = {name: Bits(*pair) for name in LAYERS}
    path = tmp_path / "a.onnx"
    OnnxRuntimeCpu().export(Net().eval(), torch.zeros(1, 3, 6, 6), wanted, [inputs], path)
    assert "Cast" in {node.op_type for node in onnx.load(path).graph.node}
    assert not operators(path, tmp_path) & {"Cast", "Mul"}


@pytest.mark.parametrize("bits,share", [(4, 0.5), (2, 0.25)])
def test_the_file_is_as_small_as_its_bits(bits: int, share: float, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network, target = nn.Sequential(nn.Conv2d(64, 128, 3, bias=False)).eval(), OnnxRuntimeCpu()
    path = tmp_path / "a.onnx"
    target.export(network, torch.zeros(1, 64, 5, 5), {"0": Bits(bits, 32)}, [], path)
    weights = 64 * 128 * 9
    assert 0 <= path.stat().st_size - share * weights <= 128 * 4 + 1000
    (packed,) = [t for t in onnx.load(path).graph.initializer if t.name.endswith("_packed")]
    kind = TensorProto.INT4 if bits == 4 else TensorProto.INT2
    assert packed.data_type == kind and len(packed.raw_data) == share * weights
    integers = numpy_helper.to_array(packed).astype(int)
    assert np.abs(integers).max() == 2 ** (bits - 1) - 1


def test_layers_of_different_bits_in_one_file(inputs: np.ndarray, tmp_path: Path) -> None:
    network, target, path = Net().eval(), OnnxRuntimeCpu(), tmp_path / "a.onnx"
    wanted = {"stem": Bits(8, 8), "depth": Bits(4, 8), "mix": Bits(6, 32), "fc": Bits(2, 32)}
    target.export(network, torch.zeros(1, 3, 6, 6), wanted, [inputs], path)
    assert {name for name in unpack(onnx.load(path))} == {"depth", "mix", "fc"}
    assert np.isfinite(target.load(path).predict(inputs)).all()


def test_ranges_that_are_given_are_those_of_the_file(inputs: np.ndarray, tmp_path: Path) -> None:
    network, target, path = Net().eval(), OnnxRuntimeCpu(), tmp_path / "a.onnx"
    grid = weight_grid(network.mix.weight.detach().numpy(), 8, reduce_range=True)
    grids = {"mix": Grid(grid.weight_scale, (0.0, 5.1), (-2.55, 2.55))}
    wanted = {name: Bits(8, 8) for name in LAYERS}
    target.export(network, torch.zeros(1, 3, 6, 6), wanted, [inputs], path, grids)
    model = onnx.load(path)
    values = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    (mix,) = [n for n in model.graph.node if n.name == "mix_quant"]
    scales = [float(values[mix.input[i]]) for i in (1, 6)]
    np.testing.assert_allclose(scales, [0.02, 0.02], rtol=1e-6)
    assert int(values[mix.input[2]]) == 0 and int(values[mix.input[7]]) in (127, 128)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc = nn.Linear(12, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(functional.relu(self.fc(x)))


@pytest.mark.parametrize("activation", [32, 8])
def test_a_layer_called_twice_is_stored_once(activation: int, tmp_path: Path) -> None:
    network, target, path = Twice().eval(), OnnxRuntimeCpu(), tmp_path / "a.onnx"
    inputs = np.random.default_rng(0).standard_normal((40, 12)).astype(np.float32)
    target.export(network, torch.zeros(1, 12), {"fc": Bits(4, activation)}, [inputs], path)
    stored = unpack(onnx.load(path))
    assert set(stored) == {"fc", "fc#2"}
    assert sum(t.data_type == TensorProto.INT4 for t in onnx.load(path).graph.initializer) == 1
    grid = weight_grid(network.fc.weight.detach().numpy(), 4)
    with torch.no_grad():
        network.fc.weight.copy_(torch.from_numpy(to_floats(stored["fc"], grid)))
        expected = network(torch.from_numpy(inputs)).numpy()
    off = np.abs(target.load(path).predict(inputs) - expected).max()
    assert off <= (1e-5 if activation == 32 else 0.05) * (expected.max() - expected.min())


def test_what_cannot_be_packed_is_named(tmp_path: Path) -> None:
    network = nn.Sequential(nn.ConvTranspose2d(2, 3, 2)).eval()
    path, example = tmp_path / "a.onnx", torch.zeros(1, 2, 4, 4)
    with pytest.raises(CandidateError, match="^0: the weights of ConvTranspose"):
        OnnxRuntimeCpu().export(network, example, {"0": Bits(4, 32)}, [], path)
    broken = nn.Sequential(nn.Conv2d(2, 3, 2)).eval()
    with torch.no_grad():
        broken[0].weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(CandidateError, match="^0: its weights are not finite"):
        OnnxRuntimeCpu().export(broken, example, {"0": Bits(4, 32)}, [], path)
    with pytest.raises(
        CandidateError, match="^0: onnxruntime-cpu runs weights of 32, 8, 6, 4, 3, 2"
    ):
        OnnxRuntimeCpu().export(broken, example, {"0": Bits(5, 8)}, [], path)
    with pytest.raises(CandidateError, match="^nowhere: no such layer"):
        OnnxRuntimeCpu().export(network, example, {"nowhere": Bits(4, 32)}, [], path)
