"""TensorRT on a GPU, where there is one; else its refusals, and its files run by ONNX Runtime."""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from torch import nn

from paretune.errors import CandidateError, InputError
from paretune.targets.catalogue import make_target
from paretune.targets.clocked import ClockedTarget
from paretune.targets.onnx_session import CPU
from paretune.targets.onnxruntime_cpu import OnnxRuntimeCpu
from paretune.targets.target import Bits, Target
from paretune.targets.tensorrt import TensorRt

_path = Path(__file__).parents[1] / "conformance" / "target_conformance.py"
_spec = importlib.util.spec_from_file_location("target_conformance", _path)
assert _spec and _spec.loader
_suite = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_suite)


class TestTensorRt(_suite.TargetConformance):
    tolerance = 1e-2  # of float32 convolutions that may compute in TF32

    def make_target(self) -> Target:
        try:
            return make_target("tensorrt", {"seconds": 0.5})
        except InputError as error:
            if torch.cuda.is_available() and importlib.util.find_spec("tensorrt"):
                raise
            pytest.skip(str(error))


class InOnnxRuntime(TensorRt):
    """All of the target but its engines: ONNX Runtime computes what the file says, on the CPU."""

    provider = CPU
    _clock = ClockedTarget._clock
    _open = OnnxRuntimeCpu._open  # type: ignore[assignment]

    def __init__(self, **options: Any) -> None:
        ClockedTarget.__init__(self, **options)


class TestItsFiles(_suite.TargetConformance):
    def make_target(self) -> Target:
        return InOnnxRuntime(seconds=0.2)


class Shortcut(nn.Module):
    """A residual block between two layers, with a pool before the last."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.inner = nn.Conv2d(8, 8, 3, padding=1)
        self.outer = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.outer(torch.relu(self.inner(x))))
        out: torch.Tensor = self.head(nn.functional.max_pool2d(x, 2).mean((2, 3)))
        return out


LAYERS = ("stem", "inner", "outer", "head")


def exported(
    tmp_path: Path, network: nn.Module, bits: dict[str, Bits], inputs: np.ndarray
) -> onnx.ModelProto:
    path = tmp_path / "a.onnx"
    InOnnxRuntime().export(network, torch.from_numpy(inputs[:1]), bits, [inputs], path)
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)  # every type fits its operator
    return model


def shortcut() -> tuple[nn.Module, np.ndarray]:
    torch.manual_seed(0)
    inputs = np.random.default_rng(0).standard_normal((6, 3, 8, 8)).astype(np.float32)
    return Shortcut().eval(), inputs


def types_of(model: onnx.ModelProto) -> dict[str, int]:
    """Type of the first output of every node, by its name."""
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    known = {v.name: v.type.tensor_type.elem_type for v in inferred.graph.value_info}
    known |= {v.name: v.type.tensor_type.elem_type for v in inferred.graph.output}
    return {node.name: known[node.output[0]] for node in inferred.graph.node}


def test_pairs_stand_before_layers_and_shortcuts_and_are_symmetric(tmp_path: Path) -> None:
    network, inputs = shortcut()
    model = exported(tmp_path, network, {name: Bits(8, 8) for name in LAYERS}, inputs)
    held = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    makers = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            scale, zero = held[node.input[1]], held[node.input[2]]
            assert scale.dtype == np.float16 and (scale > 0).all()
            assert zero.dtype == np.int8 and not zero.any()
    kinds = types_of(model)
    for name in LAYERS:
        (node,) = (n for n in model.graph.node if n.name == name)
        assert [makers[t].op_type for t in node.input[:2]] == ["DequantizeLinear"] * 2
        weight = held[makers[node.input[1]].input[0]]
        assert weight.dtype == np.int8 and np.abs(weight).max() == 127
        assert kinds[name] == TensorProto.FLOAT16
    (add,) = (n for n in model.graph.node if n.op_type == "Add")
    sources = {makers[name].op_type for name in add.input}
    assert sources == {"DequantizeLinear", "Conv"}  # the shortcut is rounded, the sum is not
    assert {t.data_type for t in model.graph.initializer} <= {
        *(TensorProto.FLOAT16, TensorProto.INT8, TensorProto.INT64)
    }
    assert model.graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT
    assert model.graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT


def test_a_float32_layer_between_keeps_its_precision(tmp_path: Path) -> None:
    network, inputs = shortcut()
    model = exported(tmp_path, network, {"stem": Bits(16, 16), "head": Bits(8, 8)}, inputs)
    kinds = types_of(model)
    expected = {"stem": 10, "inner": 1, "outer": 1, "head": 10}
    assert {name: kinds[name] for name in LAYERS} == expected
    (add,) = (n for n in model.graph.node if n.op_type == "Add")
    assert kinds[add.name] == TensorProto.FLOAT  # one of what it adds is float32


def test_float16_halves_the_file_and_computes_what_torch_does_in_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(64, 2, 128, batch_first=True, activation="gelu")
    network = nn.Sequential(nn.Linear(24, 64), layer, nn.Flatten(), nn.Linear(320, 4)).eval()
    inputs = np.random.default_rng(0).standard_normal((3, 5, 24)).astype(np.float32)
    names = [n for n, m in network.named_modules() if isinstance(m, nn.Linear)]
    names = [n for n in names if n != "1.self_attn.out_proj"]  # torch never calls it as a module
    target, path = InOnnxRuntime(), tmp_path / "b.onnx"
    example = torch.from_numpy(inputs[:1])
    target.export(network, example, {}, [], path)
    whole = path.stat().st_size
    target.export(network, example, {n: Bits(16, 16) for n in names}, [], path)
    saved = 2 * sum(network.get_submodule(n).weight.numel() for n in names)
    assert whole - path.stat().st_size > 0.95 * saved
    with torch.no_grad():
        expected = network(torch.from_numpy(inputs)).numpy()
    found = target.load(path).predict(inputs)
    error = np.abs(found - expected).max() / np.abs(expected).max()
    assert 0 < error < 5e-3  # float16 keeps 11 bits


def test_eight_bits_are_what_torch_rounds_to(tmp_path: Path) -> None:
    """A single layer against torch's own fake quantisation with the file's scales."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(16, 6, bias=False)).eval()
    inputs = np.random.default_rng(0).standard_normal((9, 16)).astype(np.float32)
    target, path = InOnnxRuntime(), tmp_path / "c.onnx"
    target.export(network, torch.from_numpy(inputs[:1]), {"0": Bits(8, 8)}, [inputs], path)
    held = {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    (given,) = (v for v in held.values() if v.dtype == np.float16 and v.ndim == 0)
    (scale,) = (torch.from_numpy(v).float() for v in held.values() if v.shape == (6,) and v.any())
    assert float(given) == pytest.approx(float(np.abs(inputs).max()) / 127, rel=1e-3)
    weight = torch.fake_quantize_per_channel_affine(
        network[0].weight.detach(), scale, torch.zeros(6, dtype=torch.int32), 0, -127, 127
    )
    short = torch.from_numpy(inputs).half().float()
    rounded = torch.fake_quantize_per_tensor_affine(short, float(given), 0, -128, 127)
    expected = (rounded @ weight.T).numpy()
    found = target.load(path).predict(inputs)
    np.testing.assert_allclose(found, expected, atol=2e-3 * np.abs(expected).max())


def test_without_a_gpu_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError) as caught:
        make_target("tensorrt", where="job.yaml:3")
    assert str(caught.value) == (
        "job.yaml:3: target 'tensorrt': there is no CUDA device here; use 'onnxruntime-cpu'"
    )


def test_a_missing_or_old_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(InputError, match=r"tensorrt is missing .*paretune\[tensorrt\]"):
        make_target("tensorrt")
    monkeypatch.setitem(sys.modules, "tensorrt", types.SimpleNamespace(__version__="10.13.0"))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="TensorRT 10.13.0 is older than 11; pip install"):
        make_target("tensorrt")
    with pytest.raises(InputError, match="builder_level: expected 0 to 5, got 9"):
        make_target("tensorrt", {"builder_level": 9})


def test_a_layer_that_is_never_used_is_named(tmp_path: Path) -> None:
    network, inputs = shortcut()
    network.spare = nn.Linear(2, 2)
    for bits in (Bits(16, 16), Bits(8, 8)):
        with pytest.raises(CandidateError, match="^spare: no such layer in the exported graph"):
            exported(tmp_path, network, {"spare": bits}, inputs)
