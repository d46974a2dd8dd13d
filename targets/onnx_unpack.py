"""Packed weights read back from an ONNX file, exactly."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto, numpy_helper

from .onnx_graph import rows
from .onnx_pack import LAYER_OPS
from .target import Grid

_UNPACKING = ("Cast", "Sub", "Mul", "Reshape", "Transpose", "DequantizeLinear")


def unpack(model: ModelProto) -> dict[str, np.ndarray]:
    """Layer -> its stored integers (int32, output channels first), of every packed weight."""
    return {name: integers for name, (integers, _) in stored_weights(model).items()}


def stored_weights(model: ModelProto) -> dict[str, tuple[np.ndarray, Grid | None]]:
    """Layer -> its packed integers and their grid; None where an integer kernel holds the scales.

    integers: int32, output channels first, as torch stores the weight.
    """
    known = {t.name: t for t in model.graph.initializer}
    makers = {name: node for node in model.graph.node for name in node.output}
    found = {}
    for node in model.graph.node:
        if node.op_type.removeprefix("QLinear").removeprefix("Q") not in LAYER_OPS:
            continue
        for given in node.input[1:4]:
            parts: dict[str, np.ndarray] = {}
            while given in makers and makers[given].op_type in _UNPACKING:
                maker = makers[given]
                if len(maker.input) > 1 and maker.input[1] in known:
                    parts[maker.op_type] = np.asarray(numpy_helper.to_array(known[maker.input[1]]))
                given = maker.input[0]
            if given in known and given.endswith("_packed"):
                integers = np.asarray(numpy_helper.to_array(known[given])).astype(np.int32)
                layer = node.name.removesuffix("_quant")
                found[layer] = _restored(node, integers, parts)
    return found


def _restored(
    node: NodeProto, integers: np.ndarray, parts: dict[str, np.ndarray]
) -> tuple[np.ndarray, Grid | None]:
    zero = parts.get("Sub")
    if "Reshape" in parts:  # scales of groups
        shape = parts["Mul"].shape[:2]
        zero = None if zero is None else zero.reshape(shape).astype(np.int32)
        grid = Grid(parts["Mul"].reshape(shape), zero_point=zero)
        return integers.reshape(parts["Reshape"]), grid
    if "Mul" not in parts:
        return rows(node, integers), None
    shape = () if parts["Mul"].size == 1 and len(rows(node, integers)) > 1 else (-1,)
    zero = None if zero is None else zero.reshape(shape).astype(np.int32)
    return rows(node, integers), Grid(parts["Mul"].reshape(shape), zero_point=zero)
