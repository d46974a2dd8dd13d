"""Static int8 quantisation of an ONNX model, layer by layer, with ONNX Runtime's own quantiser.

The result is what ``onnxruntime.quantization.quantize_static`` writes (8-bit weights per
channel, unsigned 8-bit activations, min-max ranges), but ranges are taken from the optimised
float32 session and nothing passes through temporary files.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto

from ..errors import CandidateError, InputError, nearest
from .onnx_calibrate import BOUNDED_OPS, calibrate
from .onnx_float_layers import keep_float
from .onnx_graph import strip
from .onnx_pack import Held
from .onnx_session import one_line, require_runtime

FORMATS = ("qoperator", "qdq")
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


class Scales:
    """Which tensors of a graph share a scale."""

    def __init__(self, model: ModelProto) -> None:
        self.makers = {name: node for node in model.graph.node for name in node.output}
        self.reads = Counter(name for node in model.graph.node for name in node.input)
        self.reads.update(v.name for v in model.graph.output)

    def back(self, tensor: str) -> Iterator[str]:
        """``tensor`` and those before it with the same scale; the last one has it of its own.

        A Relu or Clip whose input is read elsewhere too does not vanish into what is before it,
        and leaves the values that it cuts off to others.
        """
        while True:
            yield tensor
            node = self.makers.get(tensor)
            if node is None or node.op_type not in PASSING_OPS | BOUNDED_OPS:
                return
            if node.op_type in BOUNDED_OPS and self.reads[node.input[0]] > 1:
                return
            tensor = node.input[0]


def place(model: ModelProto, layers: Collection[str], *, trained: bool = False) -> Placement:
    """Decide which nodes are quantised when ``layers`` are.

    layers: node names; ``fc`` stands for its repeated calls ``fc#2`` ... too. A node between
    layers joins in exactly when all its inputs come from 8-bit nodes, so that no value is
    dequantised and quantised again on its way. A Relu or Clip joins in where it can vanish: its
    input is read by nothing else and comes from an operator with a scale of its own.
    trained: the scales are those that a training rounded with, which are of what layers read or
    give: an operator whose result no layer reads, or that reads a constant, stays float32.

    Raises CandidateError for a layer that is not in the model or has no 8-bit kernel.
    """
    constant = {t.name for t in model.graph.initializer}
    scales = Scales(model)

    def is_layer(node: NodeProto) -> bool:
        return node.op_type in FLOAT_OPS and len(node.input) > 1 and node.input[1] in constant

    def is_chosen(node: NodeProto) -> bool:
        return is_layer(node) and (node.name.partition("#")[0] in layers or node.name in layers)

    read = {t for n in model.graph.node if is_chosen(n) for t in scales.back(n.input[0])}
    eight_bit: set[str] = set()
    chosen: list[str] = []
    others: list[str] = []
    for node in model.graph.node:
        inputs = [name for name in node.input if name and name not in constant]
        joined = bool(inputs) and all(name in eight_bit for name in inputs)
        if is_layer(node):
            joined = is_chosen(node)
            if joined and node.op_type not in EIGHT_BIT_OPS:
                raise CandidateError(
                    f"{node.name}: {node.op_type} has no 8-bit kernel in ONNX Runtime"
                )
            chosen += [node.name] if joined else []
        elif node.op_type in BOUNDED_OPS:
            before = scales.makers.get(node.input[0])
            own = before is not None and before.op_type in SCALING_OPS | EIGHT_BIT_OPS
            joined = joined and own and scales.reads[node.input[0]] == 1
            others += [node.name] if joined else []
        elif node.op_type in SCALING_OPS | PASSING_OPS:
            if trained and node.op_type in SCALING_OPS:
                joined = joined and node.output[0] in read and len(inputs) == len(node.input)
            others += [node.name] if joined else []
        elif node.op_type not in MOVING_OPS:
            joined = False
        if joined:
            eight_bit.update(node.output)
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
    ranges: str = "minmax",
    held: Mapping[str, Held] | None = None,
) -> ModelProto:
    """``model`` with ``layers`` (and what lies between them, see :func:`place`) in 8 bits.

    layers: names of convolution and linear nodes; with none, the model itself is given back.
    calibration: float32 batches, of which the first ``examples`` examples give the ranges.
    format: "qoperator" (integer operators: smaller, faster to load) or "qdq" (float operators
    between Quantize/Dequantize pairs, which the runtime fuses; readable by other runtimes).
    reduce_range: weights in 7 bits, for processors whose int8 sums saturate.
    ranges: of activations, see :func:`calibrate`. held: layer -> integers that its weights already
    stand for, and the ranges of its activations where a training gave them; then nothing is
    rounded that the training has not rounded.

    Raises CandidateError naming the layer or tensor that cannot be quantised.
    """
    if format not in FORMATS:
        raise InputError(
            "format", f"unknown quantisation format {format!r}", nearest(format, FORMATS)
        )
    if not layers:
        return model
    held = held or {}
    trained = any(held[name].input_range is not None for name in held)
    placement = place(model, layers, trained=trained)
    inferred = onnx.shape_inference.infer_shapes(model)
    found = calibrate(inferred, placement.nodes, calibration, examples, threads, ranges)
    found |= given_ranges(inferred, {n: held[n] for n in placement.layers if n in held})
    require_runtime()
    from onnxruntime.quantization import CalibrationMethod, TensorData, TensorsData

    data = {
        name: TensorData(lowest=np.float32(low), highest=np.float32(high))
        for name, (low, high) in found.items()
    }
    overrides = {h.tensor: h.overrides() for n, h in held.items() if n in placement.layers}
    with quiet_logs():
        try:
            done = _run_quantizer(
                inferred,
                placement,
                TensorsData(CalibrationMethod.MinMax, data),
                format,
                reduce_range,
                overrides,
            )
        except Exception as error:
            raise CandidateError(
                f"int8: ONNX Runtime cannot quantise it ({one_line(error)})"
            ) from error
    keep_float(done, inferred, placement.nodes if format == "qdq" else ())
    strip(done)
    return done


def _run_quantizer(
    model: ModelProto,
    placement: Placement,
    ranges: object,
    format: str,
    reduce_range: bool,
    overrides: Mapping[str, object],
) -> ModelProto:
    """The steps of ``quantize_static`` after calibration, on a model in memory."""
    from onnxruntime.quantization import QDQQuantizer, QuantizationMode, QuantType
    from onnxruntime.quantization.onnx_quantizer import ONNXQuantizer
    from onnxruntime.quantization.quant_utils import add_infer_metadata
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    add_infer_metadata(model)  # or the quantiser would infer the shapes again, through files
    common: tuple[object, ...] = (QuantType.QInt8, QuantType.QUInt8, ranges, placement.nodes, [])
    operators = sorted({*QLinearOpsRegistry, *QDQRegistry})
    options = {"TensorQuantOverrides": dict(overrides)} if overrides else {}
    if format == "qdq":
        quantizer = QDQQuantizer(model, True, reduce_range, *common, operators, options)
    else:
        mode = QuantizationMode.QLinearOps
        quantizer = ONNXQuantizer(
            model, True, reduce_range, mode, True, *common, operators, options
        )
    quantizer.quantize_model()
    quantizer.model.topological_sort()
    return quantizer.model.model  # type: ignore[no-any-return]


def given_ranges(model: ModelProto, held: Mapping[str, Held]) -> dict[str, tuple[float, float]]:
    """Tensor -> range, where a layer in ``held`` says the range of its input or output.

    The output of a layer is that of the Relu or Clip that vanishes into it, if there is one.
    """
    found: dict[str, tuple[float, float]] = {}
    readers: dict[str, list[NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    for node in model.graph.node:
        if node.name in held and held[node.name].output_range is not None:
            behind = readers.get(node.output[0], [])
            bounded = len(behind) == 1 and behind[0].op_type in BOUNDED_OPS
            names = [node.output[0], *(behind[0].output if bounded else ())]
            found |= dict.fromkeys(names, held[node.name].output_range)
    scales = Scales(model)
    for node in model.graph.node:
        if node.name in held and held[node.name].input_range is not None:
            for name in scales.back(node.input[0]):
                found[name] = held[node.name].input_range  # type: ignore[assignment]
    return found


class quiet_logs:
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
