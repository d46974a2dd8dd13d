"""Static int8 quantisation of an ONNX model, layer by layer, with ONNX Runtime's own quantiser.

The result is what ``onnxruntime.quantization.quantize_static`` writes (8-bit weights per
channel, unsigned 8-bit activations, min-max ranges), but ranges are taken from the optimised
float32 session and nothing passes through temporary files.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper

from ..errors import CandidateError, InputError, nearest
from .onnx_graph import strip
from .onnx_session import one_line, open_session, require_runtime

FORMATS = ("qoperator", "qdq")
CHUNK = 16  # examples per calibration run: their activations stay in the cache
FLOAT_OPS = frozenset({"Conv", "Gemm", "MatMul", "ConvTranspose"})
EIGHT_BIT_OPS = frozenset({"Conv", "Gemm", "MatMul"})  # with constant weights
# Operators with an 8-bit kernel: they join in when all their inputs are 8-bit already. The first
# have a scale of their own, the others pass on that of their input.
SCALING_OPS = frozenset(
    {"Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool", "LeakyRelu", "Sigmoid"}
)
PASSING_OPS = frozenset(
    {"MaxPool", "Flatten", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Resize", "Split", "Pad"}
)
# Operators without one that only move values: what reads them is quantised all the same.
MOVING_OPS = frozenset({"Slice", "Gather", "Expand", "Identity"})
BOUNDED_OPS = frozenset({"Relu", "Clip"})  # vanish into the operator before them


@dataclass(frozen=True)
class Placement:
    """Which nodes run on 8 bits.

    layers: convolutions and linear layers. others: nodes between them that join in.
    """

    layers: tuple[str, ...]
    others: tuple[str, ...]

    @property
    def nodes(self) -> list[str]:
        return [*self.layers, *self.others]


def place(model: ModelProto, layers: Collection[str]) -> Placement:
    """Decide which nodes are quantised when ``layers`` are.

    layers: node names; ``fc`` stands for its repeated calls ``fc#2`` ... too. A node between
    layers joins in exactly when all its inputs come from 8-bit nodes, so that no value is
    dequantised and quantised again on its way. A Relu or Clip joins in where it can vanish: its
    input is read by nothing else and comes from an operator with a scale of its own.

    Raises CandidateError for a layer that is not in the model or has no 8-bit kernel.
    """
    constant = {t.name for t in model.graph.initializer}
    readers: dict[str, int] = {v.name: 1 for v in model.graph.output}
    for node in model.graph.node:
        for name in node.input:
            readers[name] = readers.get(name, 0) + 1
    maker: dict[str, NodeProto] = {}
    eight_bit: set[str] = set()
    chosen: list[str] = []
    others: list[str] = []
    for node in model.graph.node:
        inputs = [name for name in node.input if name and name not in constant]
        joined = bool(inputs) and all(name in eight_bit for name in inputs)
        is_layer = node.op_type in FLOAT_OPS and len(node.input) > 1 and node.input[1] in constant
        if is_layer:
            joined = node.name.partition("#")[0] in layers or node.name in layers
            if joined and node.op_type not in EIGHT_BIT_OPS:
                raise CandidateError(
                    f"{node.name}: {node.op_type} has no 8-bit kernel in ONNX Runtime"
                )
            chosen += [node.name] if joined else []
        elif node.op_type in BOUNDED_OPS:
            before = maker.get(node.input[0])
            own = before is not None and before.op_type in SCALING_OPS | EIGHT_BIT_OPS
            joined = joined and own and readers[node.input[0]] == 1
            others += [node.name] if joined else []
        elif node.op_type in SCALING_OPS | PASSING_OPS:
            others += [node.name] if joined else []
        elif node.op_type not in MOVING_OPS:
            joined = False
        if joined:
            eight_bit.update(node.output)
        maker.update(dict.fromkeys(node.output, node))
    known = {name.partition("#")[0] for name in chosen} | set(chosen)
    for layer in layers:
        if layer not in known:
            names = [n.name for n in model.graph.node if n.op_type in FLOAT_OPS]
            close = nearest(layer, names) if len(names) <= 12 else "is it used?"
            raise CandidateError(f"{layer}: no such layer in the exported graph; {close}")
    return Placement(tuple(chosen), tuple(others))


def quantize_model(
    model: ModelProto,
    layers: Collection[str],
    calibration: Iterable[np.ndarray],
    *,
    format: str = "qoperator",
    reduce_range: bool = False,
    examples: int = 256,
    threads: int = 1,
) -> ModelProto:
    """``model`` with ``layers`` (and what lies between them, see :func:`place`) in 8 bits.

    layers: names of convolution and linear nodes; with none, the model itself is given back.
    calibration: float32 batches, of which the first ``examples`` examples give the ranges.
    format: "qoperator" (integer operators: smaller, faster to load) or "qdq" (float operators
    between Quantize/Dequantize pairs, which the runtime fuses; readable by other runtimes).
    reduce_range: weights in 7 bits, for processors whose int8 sums saturate.

    Raises CandidateError naming the layer or tensor that cannot be quantised.
    """
    if format not in FORMATS:
        raise InputError(
            "format", f"unknown quantisation format {format!r}", nearest(format, FORMATS)
        )
    if not layers:
        return model
    placement = place(model, layers)
    inferred = onnx.shape_inference.infer_shapes(model)
    ranges = calibrate(inferred, placement.nodes, calibration, examples, threads)
    require_runtime()
    from onnxruntime.quantization import CalibrationMethod, TensorData, TensorsData

    data = {
        name: TensorData(lowest=np.float32(low), highest=np.float32(high))
        for name, (low, high) in ranges.items()
    }
    with _quiet_logs():
        try:
            done = _run_quantizer(
                inferred,
                placement,
                TensorsData(CalibrationMethod.MinMax, data),
                format,
                reduce_range,
            )
        except Exception as error:
            raise CandidateError(
                f"int8: ONNX Runtime cannot quantise it ({one_line(error)})"
            ) from error
    strip(done)
    return done


def _run_quantizer(
    model: ModelProto, placement: Placement, ranges: object, format: str, reduce_range: bool
) -> ModelProto:
    """The steps of ``quantize_static`` after calibration, on a model in memory."""
    from onnxruntime.quantization import QDQQuantizer, QuantizationMode, QuantType
    from onnxruntime.quantization.onnx_quantizer import ONNXQuantizer
    from onnxruntime.quantization.quant_utils import add_infer_metadata
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    add_infer_metadata(model)  # or the quantiser would infer the shapes again, through files
    common: tuple[object, ...] = (QuantType.QInt8, QuantType.QUInt8, ranges, placement.nodes, [])
    operators = sorted({*QLinearOpsRegistry, *QDQRegistry})
    if format == "qdq":
        quantizer = QDQQuantizer(model, True, reduce_range, *common, operators, {})
    else:
        mode = QuantizationMode.QLinearOps
        quantizer = ONNXQuantizer(model, True, reduce_range, mode, True, *common, operators, {})
    quantizer.quantize_model()
    quantizer.model.topological_sort()
    return quantizer.model.model  # type: ignore[no-any-return]


def calibrate(
    model: ModelProto,
    nodes: Collection[str],
    calibration: Iterable[np.ndarray],
    examples: int = 256,
    threads: int = 1,
) -> dict[str, tuple[float, float]]:
    """Smallest and largest value of every float32 tensor that ``nodes`` read or write.

    model: with inferred shapes. The input of a Relu or Clip among ``nodes`` takes the range of
    its output, into which it vanishes. Raises CandidateError without examples, or when an
    activation is not finite.
    """
    tensors = _tensors_of(model, set(nodes))
    probe = ModelProto()
    probe.CopyFrom(model)
    del probe.graph.output[:]
    inner = [name for name in tensors if name != model.graph.input[0].name]
    for index, name in enumerate(inner):
        for op in ("ReduceMin", "ReduceMax"):
            out = f"{op}/{index}"
            probe.graph.node.append(helper.make_node(op, [name], [out], keepdims=0))
            probe.graph.output.append(helper.make_tensor_value_info(out, TensorProto.FLOAT, []))
    session = open_session(probe.SerializeToString(), threads, where="calibration")
    input_name = model.graph.input[0].name
    lows, highs, count = [], [], 0
    for batch in _chunks(calibration, examples):
        try:
            values = np.array(session.run(None, {input_name: batch}), dtype=np.float64)
        except Exception as error:
            raise CandidateError(
                f"calibration: the network does not run ({one_line(error)})"
            ) from error
        lows.append([batch.min(), *values[0::2]])
        highs.append([batch.max(), *values[1::2]])
        count += len(batch)
    if not count:
        raise CandidateError("calibration: no example given; 8-bit activations need some")
    low, high = np.min(lows, axis=0), np.max(highs, axis=0)
    names = [input_name, *inner]
    for name, a, b in zip(names, low, high, strict=True):
        if not (np.isfinite(a) and np.isfinite(b)):
            raise CandidateError(f"calibration: {name} is not finite ({a} to {b})")
    ranges = {n: (float(a), float(b)) for n, a, b in zip(names, low, high, strict=True)}
    for node in model.graph.node:
        if node.op_type in BOUNDED_OPS and node.name in nodes:
            ranges[node.input[0]] = ranges[node.output[0]]
    return ranges


def _tensors_of(model: ModelProto, nodes: set[str]) -> list[str]:
    graph = model.graph
    infos = (*graph.input, *graph.output, *graph.value_info)
    floats = {v.name for v in infos if v.type.tensor_type.elem_type == TensorProto.FLOAT}
    constant = {t.name for t in graph.initializer}
    readers: dict[str, list[NodeProto]] = {v.name: [] for v in graph.output}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found: dict[str, None] = {}
    for node in graph.node:
        if node.name in nodes:
            found |= dict.fromkeys((*node.input, *node.output))
    vanishing = {
        node.input[0] for node in graph.node if node.op_type in BOUNDED_OPS and node.name in nodes
    }
    return [n for n in found if n in floats and n not in constant and n not in vanishing]


def _chunks(calibration: Iterable[np.ndarray], examples: int) -> Iterable[np.ndarray]:
    left = examples
    for batch in calibration:
        for start in range(0, len(batch), CHUNK):
            if left <= 0:
                return
            chunk = np.ascontiguousarray(batch[start : start + min(CHUNK, left)], dtype=np.float32)
            left -= len(chunk)
            yield chunk


class _quiet_logs:
    """No advice from the quantiser in the log meanwhile."""

    def __enter__(self) -> None:
        self.former = logging.root.manager.disable
        logging.disable(logging.CRITICAL)

    def __exit__(self, *_: object) -> None:
        logging.disable(self.former)


def eight_bit_nodes(model: ModelProto) -> Sequence[str]:
    """Names of the nodes whose weights are stored in 8 bits (either format)."""
    small = {
        t.name
        for t in model.graph.initializer
        if t.data_type in (TensorProto.INT8, TensorProto.UINT8)
    }
    small |= {
        n.output[0]
        for n in model.graph.node
        if n.op_type == "DequantizeLinear" and n.input[0] in small
    }
    return [
        node.name.removesuffix("_quant")
        for node in model.graph.node
        if node.op_type.removeprefix("Q").removeprefix("Linear") in FLOAT_OPS
        and any(name in small for name in node.input[1:])
    ]
