"""The scales of a quantised ONNX file, layer by layer: what a torch copy needs to imitate it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, numpy_helper

from .onnx_unpack import stored_weights

_INTEGER = {"QLinearConv": (1, 3, 6), "QGemm": (1, 3, 7), "QLinearMatMul": (1, 3, 6)}
"""Operator -> places of the scales' pairs: input, weight (the tensor itself), output."""
_FLOAT = {"Conv", "Gemm", "MatMul"}


@dataclass(frozen=True)
class Affine:
    """real = (integer - zero_point) * scale, integers of 8 bits from ``low`` to ``high``."""

    scale: float
    zero_point: int
    low: int
    high: int


@dataclass(frozen=True)
class LayerScales:
    """How one quantised layer is stored.

    input, output: of its activations (None where they stay float).
    weight_scale: one per output channel (or a single one, or groups of weights, see Grid).
    weight: the stored integers, in the file's layout. zero_point: None = symmetric around zero.
    """

    input: Affine | None
    output: Affine | None
    weight_scale: np.ndarray
    weight: np.ndarray
    zero_point: np.ndarray | None = None


def read_scales(path: Path) -> dict[str, LayerScales]:
    """Layer name -> scales, for every layer of the file that is not float32 (either format)."""
    model = onnx.load(str(path), load_external_data=False)
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    for node in model.graph.node:  # packed integers of an integer kernel
        if node.op_type == "Cast" and node.input[0] in constants:
            constants.setdefault(node.output[0], constants[node.input[0]].astype(np.int8))
    found: dict[str, LayerScales] = {}
    makers = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        if node.op_type in _INTEGER:
            given, weight, result = _INTEGER[node.op_type]
            names = list(node.input)
            output = None
            if len(names) > result and names[result]:
                output = _affine(constants, names[result], names[result + 1])
            found[node.name.removesuffix("_quant")] = LayerScales(
                _affine(constants, names[given], names[given + 1]),
                output,
                constants[names[weight + 1]],
                constants[names[weight]],
            )
        elif node.op_type in _FLOAT:
            scales = _from_pairs(model, node, makers, constants)
            if scales is not None:
                found[node.name] = scales
    for name, (integers, grid) in stored_weights(model).items():
        if grid is not None:
            found[name] = LayerScales(None, None, grid.weight_scale, integers, grid.zero_point)
    return found


def _from_pairs(
    model: ModelProto,
    node: NodeProto,
    makers: dict[str, NodeProto],
    constants: dict[str, np.ndarray],
) -> LayerScales | None:
    """The scales around a float operator between Quantize/Dequantize pairs."""
    given, weight = (makers.get(name) for name in node.input[:2])
    if given is None or weight is None:
        return None
    if {given.op_type, weight.op_type} != {"DequantizeLinear"}:
        return None
    if weight.input[0] not in constants:
        return None
    readers = [n for n in model.graph.node if node.output[0] in n.input]
    if len(readers) == 1 and readers[0].op_type in ("Relu", "Clip"):
        readers = [n for n in model.graph.node if readers[0].output[0] in n.input]
    output = None
    if len(readers) == 1 and readers[0].op_type == "QuantizeLinear":
        output = _affine(constants, readers[0].input[1], readers[0].input[2])
    return LayerScales(
        _affine(constants, given.input[1], given.input[2]),
        output,
        constants[weight.input[1]],
        constants[weight.input[0]],
    )


def _affine(constants: dict[str, np.ndarray], scale: str, zero_point: str) -> Affine:
    zero = constants[zero_point]
    limits = np.iinfo(zero.dtype)
    return Affine(float(constants[scale]), int(zero), int(limits.min), int(limits.max))
