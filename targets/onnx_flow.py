"""Who reads whose result in an exported network: where a layer's rounding can be seen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto, numpy_helper

from .onnx_quantize import FLOAT_OPS, PASSING_OPS


@dataclass(frozen=True)
class Reader:
    """What happens to one layer's result.

    bounds: of the Relu or Clip that vanishes into the layer, or None. readers: the layers that
    read the result itself, or None where something else reads it too.
    """

    bounds: tuple[float, float] | None
    readers: tuple[str, ...] | None


def read_flow(model: ModelProto) -> dict[str, Reader]:
    """Layer name -> :class:`Reader`, from a float32 model with named layers."""
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    readers: dict[str, list[NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    outputs = {v.name for v in model.graph.output}
    found = {}
    for node in model.graph.node:
        if not _is_layer(node, constants):
            continue
        tensor, bounds = node.output[0], None
        after = readers.get(tensor, [])
        if len(after) == 1 and after[0].op_type in ("Relu", "Clip") and tensor not in outputs:
            bounds, tensor = _bounds(after[0], constants), after[0].output[0]
        found[node.name] = Reader(bounds, _layers_after(tensor, readers, constants, outputs))
    return found


def _layers_after(
    tensor: str,
    readers: dict[str, list[NodeProto]],
    constants: dict[str, np.ndarray],
    outputs: set[str],
) -> tuple[str, ...] | None:
    if tensor in outputs:
        return None
    names: list[str] = []
    for node in readers.get(tensor, []):
        if _is_layer(node, constants):
            names.append(node.name)
        elif node.op_type in PASSING_OPS:
            below = _layers_after(node.output[0], readers, constants, outputs)
            if below is None:
                return None
            names += below
        else:
            return None
    return tuple(names)


def _is_layer(node: NodeProto, constants: dict[str, np.ndarray]) -> bool:
    return node.op_type in FLOAT_OPS and len(node.input) > 1 and node.input[1] in constants


def _bounds(node: NodeProto, constants: dict[str, np.ndarray]) -> tuple[float, float]:
    if node.op_type == "Relu":
        return 0.0, float("inf")
    ends = [float(constants[name]) if name in constants else None for name in node.input[1:3]]
    low = ends[0] if ends and ends[0] is not None else float("-inf")
    high = ends[1] if len(ends) > 1 and ends[1] is not None else float("inf")
    return low, high
