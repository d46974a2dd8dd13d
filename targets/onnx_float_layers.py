"""Keep float32 layers between 8-bit ones float32, although ONNX Runtime would round their weights.

Where a Conv, ConvTranspose or Gemm stands between a DequantizeLinear and a QuantizeLinear, ONNX
Runtime (WeightBiasQuantization, one of its default optimisations) takes float32 weights for an
oversight: it rounds them to 8 bits with one scale for the whole tensor and runs the layer in
integers. But a layer is left in float32 because its weights bear no rounding, least of all this
one. The optimiser acts on inputs with one scale only, so these are dequantised channel by channel
with the same scale for each: the same values, in the same time.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from onnx import ModelProto, NodeProto, helper, numpy_helper

ROUNDED_OPS = frozenset({"Conv", "ConvTranspose", "Gemm"})
"""Operators whose float32 weights ONNX Runtime would round."""
MOVED_PAST = frozenset(
    {"Expand", "Flatten", "Identity", "MaxPool", "Pad", "Reshape", "Slice", "Squeeze", "Transpose"}
) | {"Unsqueeze"}
"""Operators that ONNX Runtime moves a DequantizeLinear past, or drops."""
SUFFIXES = ("_channel_scale", "_channel_zero_point")
"""Behind a dequantised tensor's name: its scale and its zero point, an entry a channel."""
TWIN = "_channels"
"""Behind the name of a tensor that 8-bit layers read too, and of its second DequantizeLinear."""


def keep_float(model: ModelProto, original: ModelProto, rounded: Collection[str]) -> None:
    """Dequantise what float32 layers read channel by channel. In place.

    original: the float32 model that was quantised, shapes inferred. rounded: the nodes that run on
    8 bits between Quantize/Dequantize pairs; their inputs keep one scale.
    """
    graph, channels = model.graph, _channels(original)
    constants = {t.name: t for t in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    readers: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    twins: dict[str, NodeProto] = {}  # maker's name -> the second one
    done: set[str] = set()
    for node in graph.node:
        if node.op_type not in ROUNDED_OPS or node.name in rounded or len(node.input) < 2:
            continue
        reader = node
        while (maker := makers.get(reader.input[0])) and maker.op_type in MOVED_PAST:
            reader = maker
        tensor = reader.input[0]
        if maker is None or maker.op_type != "DequantizeLinear":
            continue
        if tensor not in done:
            size = channels.get(tensor, 0)
            given = [numpy_helper.to_array(constants[name]) for name in maker.input[1:]]
            if size < 2 or any(value.size != 1 for value in given):
                continue
            done.add(tensor)
            names = [tensor + suffix for suffix in SUFFIXES[: len(given)]]
            values = [np.repeat(value.reshape(1), size) for value in given]
            graph.initializer.extend(map(numpy_helper.from_array, values, names))
            if not any(other.name in rounded for other in readers[tensor]):
                maker.input[1:] = names
            else:
                twins[maker.name] = helper.make_node(
                    "DequantizeLinear",
                    [maker.input[0], *names],
                    [tensor + TWIN],
                    maker.name + TWIN,
                )
        if maker.name in twins:
            reader.input[0] = tensor + TWIN
    nodes = [
        made for node in graph.node for made in (node, twins.get(node.name)) if made is not None
    ]
    copies = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)


def _channels(model: ModelProto) -> dict[str, int]:
    """Size along axis 1 of every tensor, under the names that dequantised ones get."""
    found = {}
    for value in (*model.graph.input, *model.graph.value_info):
        dims = value.type.tensor_type.shape.dim
        if len(dims) > 1 and dims[1].dim_value:
            found[value.name] = found[f"{value.name}_DequantizeLinear_Output"] = dims[1].dim_value
    return found
