"""Quantised files against ONNX's reference semantics and ONNX Runtime's public quantiser."""

from __future__ import annotations

import logging
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx.version_converter
import pytest
import torch
from onnx import ModelProto, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
from torch import nn
from torch.nn import functional

from paretune.errors import CandidateError, InputError
from paretune.targets.cpu import saturates_int8
from paretune.targets.onnx_export import export_model
from paretune.targets.onnx_quantize import calibrate, eight_bit_nodes, place, quantize_model
from paretune.targets.onnx_session import open_session

FORMATS = ("qoperator", "qdq")


class Residual(nn.Module):
    """Two residual blocks, pooling, concatenation and a classifier; no parameter-free shortcut."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.a1, self.a2 = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.b1, self.b2 = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.side = nn.Conv2d(8, 4, 1)
        self.fc = nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.max_pool2d(functional.relu(self.stem(x)), 2)
        x = functional.relu(self.a2(functional.relu(self.a1(x))) + x)
        x = functional.relu(self.b2(functional.relu(self.b1(x))) + x)
        x = torch.cat([x, functional.relu6(self.side(x))], dim=1)
        return self.fc(functional.adaptive_avg_pool2d(x, 1).flatten(1))


LAYERS = ("stem", "a1", "a2", "b1", "b2", "side", "fc")


@pytest.fixture(scope="module")
def inputs() -> np.ndarray:
    return np.random.default_rng(2).standard_normal((40, 3, 8, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def model() -> ModelProto:
    return export_model(Residual().eval(), torch.zeros(1, 3, 8, 8))


def run(model: ModelProto, inputs: np.ndarray) -> np.ndarray:
    return open_session(model.SerializeToString()).run(None, {"input": inputs})[0]


def constant(model: ModelProto, name: str) -> np.ndarray:
    return next(numpy_helper.to_array(t) for t in model.graph.initializer if t.name == name)


def kinds(model: ModelProto) -> Counter[str]:
    return Counter(n.op_type for n in model.graph.node)


@pytest.mark.parametrize("reduce_range", [False, True])
def test_convolution_in_numpy_integers(reduce_range: bool) -> None:
    if saturates_int8() and not reduce_range:
        pytest.skip("int8 sums saturate on this processor without reduce_range")
    torch.manual_seed(1)
    network = nn.Sequential(nn.Conv2d(2, 3, 3)).eval()
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((4, 2, 6, 6)).astype(np.float32)
    float_model = export_model(network, torch.zeros(1, 2, 6, 6))
    quantised = quantize_model(float_model, ["0"], [inputs], reduce_range=reduce_range)
    (conv,) = [n for n in quantised.graph.node if n.op_type == "QLinearConv"]
    _, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero, bias = (
        constant(quantised, name) if i else np.empty(0) for i, name in enumerate(conv.input)
    )
    assert w.dtype == np.int8 and x_zero.dtype == np.uint8 and w_scale.shape == (3,)
    assert not w_zero.any() and np.abs(w.astype(int)).max() <= (64 if reduce_range else 127)
    q = np.clip(np.rint(inputs / x_scale) + x_zero, 0, 255).astype(np.int64) - int(x_zero)
    sums = torch.nn.functional.conv2d(
        torch.from_numpy(q.astype(np.float64)), torch.from_numpy(w.astype(np.float64))
    ).numpy()
    real = (sums + bias[None, :, None, None]) * (x_scale * w_scale)[None, :, None, None]
    expected = (np.clip(np.rint(real / y_scale) + y_zero, 0, 255) - y_zero) * y_scale
    given = run(quantised, inputs)
    assert np.abs(given - expected).max() <= 1.01 * y_scale  # a tie may be rounded either way
    assert np.mean(np.abs(given - expected) > 1e-5) < 0.02
    with torch.no_grad():
        exact = network(torch.from_numpy(inputs)).numpy()
    assert np.abs(given - exact).max() < 0.05 * (exact.max() - exact.min())


@pytest.mark.parametrize("format", FORMATS)
def test_equals_the_public_quantiser(
    format: str, model: ModelProto, inputs: np.ndarray, tmp_path: Path
) -> None:
    class Reader:
        def __init__(self) -> None:
            self.batches = iter([inputs])

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self.batches, None)
            return None if batch is None else {"input": batch}

    onnx.save(model, tmp_path / "float.onnx")
    quantize_static(
        tmp_path / "float.onnx",
        tmp_path / "int8.onnx",
        Reader(),
        quant_format=QuantFormat.QDQ if format == "qdq" else QuantFormat.QOperator,
        per_channel=True,
        reduce_range=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    theirs = onnx.load(tmp_path / "int8.onnx")
    ours = quantize_model(model, LAYERS, [inputs], format=format, reduce_range=True)
    assert kinds(ours) == kinds(theirs)
    tensors = {t.name: numpy_helper.to_array(t) for t in theirs.graph.initializer}
    assert set(tensors) == {t.name for t in ours.graph.initializer}
    for tensor in ours.graph.initializer:
        value = numpy_helper.to_array(tensor)
        np.testing.assert_allclose(value, tensors[tensor.name], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(run(ours, inputs), run(theirs, inputs), atol=1e-4)


def test_qdq_file_follows_the_reference_evaluator(model: ModelProto, inputs: np.ndarray) -> None:
    quantised = quantize_model(model, LAYERS, [inputs], format="qdq", reduce_range=True)
    newer = onnx.version_converter.convert_version(quantised, 21)  # the evaluator begins at 19
    (reference,) = ReferenceEvaluator(newer).run(None, {"input": inputs})
    given = run(quantised, inputs)
    spread = reference.max() - reference.min()
    assert np.abs(given - reference).max() <= 0.05 * spread  # a few steps of 1/255, added up
    assert np.mean(given.argmax(1) == reference.argmax(1)) >= 0.95


@pytest.mark.parametrize("layers", [LAYERS, ("stem", "a1", "a2"), ("b1", "fc"), ("side",)])
def test_both_formats_agree(layers: tuple[str, ...], model: ModelProto, inputs: np.ndarray) -> None:
    qoperator, qdq = (
        quantize_model(model, layers, [inputs], format=f, reduce_range=True) for f in FORMATS
    )
    for quantised in (qoperator, qdq):
        onnx.checker.check_model(quantised)
        assert tuple(eight_bit_nodes(quantised)) == layers
    first, second, exact = run(qoperator, inputs), run(qdq, inputs), run(model, inputs)
    spread = exact.max() - exact.min()
    assert np.abs(first - second).max() <= 0.02 * spread
    assert np.abs(first - exact).max() <= 0.10 * spread


def test_mixed_bits_leave_float_layers_float(model: ModelProto, inputs: np.ndarray) -> None:
    quantised = quantize_model(model, ("a1", "fc"), [inputs])
    by_name = {n.name: n.op_type for n in quantised.graph.node}
    assert by_name["a1_quant"] == "QLinearConv"
    assert by_name["fc_quant"] == "QGemm"
    assert all(by_name[name] == "Conv" for name in ("stem", "a2", "b1", "b2", "side"))
    for name in ("stem", "a2"):
        np.testing.assert_array_equal(
            constant(quantised, f"{name}.weight"), constant(model, f"{name}.weight")
        )
    assert place(model, ("a1", "fc")).others == ("Relu_2",)


@pytest.mark.parametrize("format", FORMATS)
def test_no_stray_pairs_when_all_is_int8(
    format: str, model: ModelProto, inputs: np.ndarray, tmp_path: Path
) -> None:
    import onnxruntime

    quantised = quantize_model(model, LAYERS, [inputs], format=format)
    if format == "qdq":
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
        options.log_severity_level = 4
        onnxruntime.InferenceSession(quantised.SerializeToString(), options)
        quantised = onnx.load(tmp_path / "optimised.onnx")
    count = kinds(quantised)
    assert (count["QuantizeLinear"], count["DequantizeLinear"]) == (1, 1)
    assert not {"Conv", "Gemm", "Add", "Relu", "Concat"} & set(count)


class Loud(nn.Module):
    """The float32 layer in the middle has a channel a hundred times as loud as the others: one
    step of 8 bits for all of them is as large as these. moved: part of its input is cut off."""

    def __init__(self, moved: bool) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.moved = moved
        self.one, self.two = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.three, self.side = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 7, 3, padding=1)
        self.also, self.last = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 7, 1)  # float32, int8
        with torch.no_grad():
            self.two.weight[0] *= 100
            self.three.weight[:, 0] /= 100

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.one(x))
        y = functional.relu(self.two(x[:, :, 1:] if self.moved else x))
        z = self.last(functional.relu(self.also(x)))
        return torch.cat([self.three(y)[:, :, :6], self.side(x)[:, :, :6], z[:, :, :6]], dim=1)


@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.parametrize("format", FORMATS)
def test_float_layers_between_int8_ones_are_not_rounded(
    format: str, moved: bool, inputs: np.ndarray
) -> None:
    """ONNX Runtime's optimiser would run them in 8 bits, with one scale for all weights."""
    model = export_model(Loud(moved).eval(), torch.zeros(1, 3, 8, 8))
    layers = ("one", "three", "side", "last")
    quantised = quantize_model(model, layers, [inputs], format=format, reduce_range=True)
    data = quantised.SerializeToString()
    exact = open_session(data, level="ORT_DISABLE_ALL").run(None, {"input": inputs})[0]
    assert np.abs(run(quantised, inputs) - exact).max() <= 0.02 * np.ptp(exact)
    fresh = {name for n in quantised.graph.node for name in n.input if "_channel_" in name}
    assert len(fresh) == 2 and all(constant(quantised, name).shape == (8,) for name in fresh)
    plain = ModelProto.FromString(data)  # with one scale, as the quantiser wrote it
    for tensor in plain.graph.initializer:
        if tensor.name in fresh:
            value = numpy_helper.to_array(tensor)[0]
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    assert np.abs(run(plain, inputs) - exact).max() > 0.1 * np.ptp(exact)


class Pooled(nn.Module):
    """Relu after pooling, and a Relu whose input a shortcut reads too: neither may vanish."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(functional.max_pool2d(self.one(x) - 0.5, 2))
        y = self.two(x)
        return functional.relu(y) + y


@pytest.mark.parametrize("format", FORMATS)
def test_a_relu_that_cannot_vanish_still_acts(format: str, inputs: np.ndarray) -> None:
    network = Pooled().eval()
    model = export_model(network, torch.zeros(1, 3, 8, 8))
    quantised = quantize_model(model, ("one", "two"), [inputs], format=format, reduce_range=True)
    exact, given = run(model, inputs), run(quantised, inputs)
    assert np.abs(given - exact).max() <= 0.06 * (exact.max() - exact.min())


def test_shared_module_and_3d_linear(inputs: np.ndarray) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(2)
            self.mix, self.out = nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(torch.relu(self.mix(torch.relu(self.mix(x)))))

    model = export_model(Twice().eval(), torch.zeros(1, 5, 8))
    data = inputs[:, 0, :5]
    assert place(model, ["mix"]).layers == ("mix", "mix#2")
    for format in FORMATS:
        quantised = quantize_model(model, ["mix", "out"], [data], format=format, reduce_range=True)
        exact, given = run(model, data), run(quantised, data)
        assert np.abs(given - exact).max() <= 0.08 * (exact.max() - exact.min())


@pytest.mark.parametrize("format", FORMATS)
def test_biases_that_are_equal_are_quantised_each_for_itself(format: str) -> None:
    """The exporter stores equal tensors once; a MatMul's bias is a tensor of 8 bits, a
    convolution's one of 32."""

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(2)
            self.patches, self.out = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 8)
            for layer in (self.patches, self.out):
                nn.init.constant_(layer.bias, 0.5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(self.patches(x).flatten(2).transpose(1, 2))

    data = np.random.default_rng(0).standard_normal((16, 3, 8, 8)).astype(np.float32)
    model = export_model(Tokens().eval(), torch.zeros(1, 3, 8, 8))
    layers = ["patches", "out"]
    quantised = quantize_model(model, layers, [data], format=format, reduce_range=True)
    exact, given = run(model, data), run(quantised, data)
    assert np.abs(given - exact).max() <= 0.08 * (exact.max() - exact.min())


def test_ranges_are_those_of_the_tensors(model: ModelProto, inputs: np.ndarray) -> None:
    inferred = onnx.shape_inference.infer_shapes(model)
    ranges = calibrate(
        inferred, place(model, LAYERS).nodes, [inputs[:30], inputs[30:]], examples=35
    )
    seen = inputs[:35]
    assert ranges["input"] == (float(seen.min()), float(seen.max()))
    with torch.no_grad():
        stem = functional.relu(Residual().stem(torch.from_numpy(seen))).numpy()
    np.testing.assert_allclose(ranges["Relu"], (stem.min(), stem.max()), rtol=1e-5)
    assert ranges["stem"] == ranges["Relu"]


def test_nothing_is_left_and_nothing_is_said(
    model: ModelProto,
    inputs: np.ndarray,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for format in FORMATS:
        quantised = quantize_model(model, LAYERS, [inputs], format=format)
        again = quantize_model(model, LAYERS, [inputs], format=format)
        assert quantised.SerializeToString() == again.SerializeToString()
        assert not quantised.metadata_props
    assert not list(tmp_path.iterdir())
    assert not caplog.records and capfd.readouterr() == ("", "")
    assert logging.root.manager.disable == 0


def test_refusals_name_the_layer(model: ModelProto, inputs: np.ndarray) -> None:
    with pytest.raises(CandidateError, match="sten.*did you mean 'stem'"):
        quantize_model(model, ["sten"], [inputs])
    with pytest.raises(InputError, match="did you mean 'qdq'"):
        quantize_model(model, ["stem"], [inputs], format="qdqq")
    up = export_model(nn.Sequential(nn.ConvTranspose2d(3, 2, 2)).eval(), torch.zeros(1, 3, 8, 8))
    with pytest.raises(CandidateError, match="^0: ConvTranspose has no 8-bit kernel"):
        quantize_model(up, ["0"], [inputs])
    assert quantize_model(model, [], []) is model
