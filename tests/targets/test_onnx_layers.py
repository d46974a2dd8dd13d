"""Layers of an exported file: their bytes add up, their times follow the work."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from paretune.errors import CandidateError
from paretune.targets.onnx_layers import file_layers
from paretune.targets.onnx_profile import layer_times
from paretune.targets.onnxruntime_cpu import OnnxRuntimeCpu
from paretune.targets.target import Bits

RNG = np.random.default_rng(0)
SHAPES = {"big": (64, 64, 3, 3), "parts.0": (8, 64, 1, 1), "parts.1": (16, 8, 1, 1)}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """big (64 -> 64, 3 x 3), then ``parts``, factorised into two 1 x 1 convolutions."""
    weights = {n: RNG.standard_normal(s).astype(np.float32) for n, s in SHAPES.items()}
    constants = [numpy_helper.from_array(w, f"{n}.weight") for n, w in weights.items()]
    constants.append(numpy_helper.from_array(np.zeros(64, np.float32), "big.bias"))
    nodes = [
        helper.make_node("Conv", ["x", "big.weight", "big.bias"], ["a"], "big", pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["b"], "Relu"),
        helper.make_node("Conv", ["b", "parts.0.weight"], ["c"], "parts.0"),
        helper.make_node("Conv", ["c", "parts.1.weight"], ["d"], "parts.1"),
        helper.make_node("Sigmoid", ["d"], ["y"], "end"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64, 16, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 16, 16, 16])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    file = tmp_path_factory.mktemp("onnx") / "model.onnx"
    onnx.save(model, str(file))
    return file


def test_layers_hold_their_own_tensors(path: Path) -> None:
    big, parts = file_layers(path, ["big", "parts"])
    assert (big.name, big.shapes, big.bits) == ("big", ((64, 64, 3, 3),), 32)
    assert parts.shapes == ((8, 64, 1, 1), (16, 8, 1, 1))
    data = 4 * (64 * 64 * 9 + 64)
    assert data < big.size_bytes < data + 100  # names and shapes on top
    assert big.size_bytes + parts.size_bytes < path.stat().st_size
    assert [layer.name for layer in file_layers(path)] == ["big", "parts.0", "parts.1"]


def test_times_follow_the_work(path: Path) -> None:
    times, rest = layer_times(path, ["big", "parts"], batch=2, seconds=0.3)
    assert times["big"] > 3 * times["parts"] > 0  # 57 times the multiply-accumulates
    assert 0 < rest < times["big"]  # the activation at the end belongs to no layer


@pytest.mark.parametrize("activation", [8, 32])
@pytest.mark.parametrize("weight", [8, 4])
def test_a_layer_of_few_bits_takes_its_own_time(
    weight: int, activation: int, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(16, 64, 3), nn.ReLU(), nn.Conv2d(64, 16, 3)).eval()
    inputs = RNG.standard_normal((4, 16, 16, 16)).astype(np.float32)
    bits = {name: Bits(weight, activation) for name in ("0", "2")}
    example = torch.from_numpy(inputs[:1])
    OnnxRuntimeCpu().export(network, example, bits, [inputs], tmp_path / "a.onnx")
    times, rest = layer_times(tmp_path / "a.onnx", ["0", "2"], seconds=0.1)
    assert set(times) == {"0", "2"} and rest < sum(times.values())


def test_what_is_no_model_is_refused_in_one_line(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.onnx"
    other.write_bytes(b"\x00" * 64)
    for read in (file_layers, layer_times):
        with pytest.raises(CandidateError, match="other.onnx: not an ONNX file"):
            read(other)
