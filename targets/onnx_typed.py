"""An ONNX model whose types say how each layer computes: float16, or int8 between Q/DQ pairs.

Runtimes that take the types of a file literally (TensorRT since version 11) need them written
out. A layer of fewer than 32 bits computes in float16 or, with its input and weights rounded to
8 bits, in int8; so does what lies between such layers in float16. Everything else stays float32.

The pairs stand where NVIDIA's guide to explicit quantisation wants them: at the input and the
weights of a layer, not behind it, and where a shortcut is added to a layer's result; scales are
symmetric (zero points of 0), weights have one for each output channel, biases stay floats.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from ..errors import CandidateError
from .onnx_calibrate import calibrate
from .onnx_graph import rows
from .onnx_quantize import FLOAT_OPS, Placement, place
from .target import Grid
from .uniform import limits, to_integers, weight_grid

SHORT, FLOAT = TensorProto.FLOAT16, TensorProto.FLOAT
LEAST_SCALE = 2.0**-20  # float16 holds it; a smaller one could become 0
FLOAT_INPUTS = {"Resize": (2,)}  # that are float32 whatever the others are


def write_types(
    model: ModelProto,
    short: Collection[str],
    eight: Collection[str],
    calibration: Iterable[np.ndarray],
    examples: int,
) -> ModelProto:
    """``model`` with the layers ``short`` in float16 and ``eight`` in int8; input and output stay.

    model: float32, of opset 19 or newer, its nodes named after the network's layers; with no
    such layer it is given back. calibration: float32 batches, of which the first ``examples``
    examples give the largest activations.
    Raises CandidateError naming a layer that is not there or cannot be quantised.
    """
    if not short and not eight:
        return model
    typed = onnx.shape_inference.infer_shapes(model)
    known = {n.name.partition("#")[0] for n in typed.graph.node if n.op_type in FLOAT_OPS}
    for layer in short:
        if layer not in known:
            raise CandidateError(f"{layer}: no such layer in the exported graph; is it used?")
    placement = place(typed, eight)
    ranges = calibrate(typed, placement.layers, calibration, examples) if eight else {}
    weights = {t.name: numpy_helper.to_array(t) for t in typed.graph.initializer}
    sources = {n.name: (n.input[0], n.input[1]) for n in typed.graph.node if len(n.input) > 1}
    _halve(typed, _short_nodes(typed, {*short, *eight}))
    _quantize(typed, placement, ranges, weights, sources)
    del typed.graph.value_info[:]
    return typed


def _short_nodes(model: ModelProto, layers: set[str]) -> set[str]:
    """Names of the nodes that compute in float16: those layers, and what reads no float32 value
    but a constant."""
    constants = {t.name for t in model.graph.initializer}
    kinds = _kinds(model)
    full, names = {v.name for v in model.graph.input}, set[str]()
    for node in model.graph.node:
        if any(a.HasField("g") or a.graphs for a in node.attribute):
            raise CandidateError(
                f"export: {node.op_type} is control flow; its types cannot be set layer by layer"
            )
        if not any(kinds.get(name) == FLOAT for name in node.input):
            continue  # it makes floats of something else, and stays as it is
        if node.op_type in FLOAT_OPS and len(node.input) > 1 and node.input[1] in constants:
            is_short = node.name.partition("#")[0] in layers or node.name in layers
        else:
            is_short = not full.intersection(node.input)
        if is_short:
            names.add(node.name)
        else:
            full.update(name for name in node.output if kinds.get(name, FLOAT) == FLOAT)
    return names


def _kinds(model: ModelProto) -> dict[str, int]:
    """The element type of every tensor."""
    graph = model.graph
    known = {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.value_info)}
    return known | {t.name: t.data_type for t in graph.initializer}


def _halve(model: ModelProto, short: set[str]) -> None:
    """Make the nodes ``short`` compute in float16, with casts where types meet."""
    graph, kinds = model.graph, _kinds(model)
    constants = {t.name: t for t in graph.initializer}
    shared = {
        name
        for node in graph.node
        for index, name in enumerate(node.input)
        if node.name not in short or index in FLOAT_INPUTS.get(node.op_type, ())
    }
    made, casts, nodes = set[str](), dict[str, str](), list[NodeProto]()

    def cast(name: str, kind: int) -> str:
        """``name`` as the other type, by one node however many read it."""
        if name not in casts:
            casts[name] = f"{name}_{'float16' if kind == SHORT else 'float32'}"
            nodes.append(helper.make_node("Cast", [name], [casts[name]], casts[name], to=kind))
        return casts[name]

    for node in list(graph.node):
        is_short = node.name in short
        for index, name in enumerate(node.input):
            floats = index in FLOAT_INPUTS.get(node.op_type, ())
            if is_short and not floats and name in constants and kinds[name] == FLOAT:
                node.input[index] = _short_constant(model, constants[name], name in shared)
            elif is_short and not floats and kinds.get(name) == FLOAT and name not in made:
                node.input[index] = cast(name, SHORT)
            elif name in made and (floats or not is_short):
                node.input[index] = cast(name, FLOAT)
        nodes.append(node)
        if is_short:
            made.update(name for name in node.output if kinds.get(name, FLOAT) == FLOAT)
            for attribute in node.attribute:
                if node.op_type == "Cast" and attribute.i == FLOAT:
                    attribute.i = SHORT
    for value in graph.output:
        if value.name in made:
            inner = f"{value.name}_float16"
            for node in nodes:
                for names in (node.input, node.output):
                    for index, name in enumerate(names):
                        names[index] = inner if name == value.name else name
            nodes.append(helper.make_node("Cast", [inner], [value.name], value.name, to=FLOAT))
    del graph.node[:]
    graph.node.extend(nodes)


def _short_constant(model: ModelProto, tensor: TensorProto, shared: bool) -> str:
    """The name of a constant in float16; a copy where float32 nodes read it too."""
    name = f"{tensor.name}_float16" if shared else tensor.name
    if not any(t.name == name and t.data_type == SHORT for t in model.graph.initializer):
        most = float(np.finfo(np.float16).max)
        value = np.clip(numpy_helper.to_array(tensor), -most, most).astype(np.float16)
        made = numpy_helper.from_array(value, name)
        if shared:
            model.graph.initializer.append(made)
        else:
            tensor.CopyFrom(made)
    return name


def _quantize(
    model: ModelProto,
    placement: Placement,
    ranges: dict[str, tuple[float, float]],
    weights: dict[str, np.ndarray],
    sources: dict[str, tuple[str, str]],
) -> None:
    """Put Q/DQ pairs before the layers of ``placement``, which compute in float16.

    ranges, weights: by the names of the float32 model. sources: node -> its input and weight there.
    """
    graph = model.graph
    rounded, stored, nodes = dict[str, str](), dict[str, str](), list[NodeProto]()
    held = {t.name: t for t in graph.initializer}
    for node in graph.node:
        if node.name in placement.layers:
            given, weight = sources[node.name]
            if node.input[0] not in rounded:
                most = max(map(abs, ranges[given]))
                scale = np.float16(max(most / 127, LEAST_SCALE))
                pair = _pair(model, node.input[0], scale)
                nodes += pair
                rounded[node.input[0]] = pair[-1].output[0]
            if weight not in stored:
                value = np.asarray(weights[weight], dtype=np.float32)
                unpack = _weight(model, node, weight, value)
                nodes.append(unpack)
                stored[weight] = unpack.output[0]
            unused = node.input[1]
            node.input[0], node.input[1] = rounded[node.input[0]], stored[weight]
            if unused in held and not any(unused in other.input for other in graph.node):
                graph.initializer.remove(held.pop(unused))
        elif node.op_type == "Add" and node.name in placement.others:
            for index, name in enumerate(node.input):
                node.input[index] = rounded.get(name, name)
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)


def _pair(model: ModelProto, tensor: str, scale: np.float16) -> list[NodeProto]:
    """Q and DQ of an activation."""
    names = _constants(model, tensor, np.asarray(scale), np.zeros((), np.int8))
    eight, again = f"{tensor}_quantized", f"{tensor}_rounded"
    return [
        helper.make_node("QuantizeLinear", [tensor, *names], [eight], f"{tensor}_quantize"),
        helper.make_node("DequantizeLinear", [eight, *names], [again], f"{tensor}_dequantize"),
    ]


def _weight(model: ModelProto, node: NodeProto, name: str, value: np.ndarray) -> NodeProto:
    """Store a weight as int8; the node that unpacks it."""
    turned = rows(node, value) is not value
    by_rows = np.ascontiguousarray(rows(node, value))
    scale = weight_grid(by_rows, 8, name=node.name).weight_scale
    scale = np.maximum(scale, np.float32(LEAST_SCALE)).astype(np.float16)
    integers = to_integers(by_rows, Grid(scale.astype(np.float32)), *limits(8)).astype(np.int8)
    stored = np.ascontiguousarray(integers.T if turned else integers)
    model.graph.initializer.append(numpy_helper.from_array(stored, f"{name}_quantized"))
    names = _constants(model, name, scale, np.zeros(len(scale), np.int8))
    return helper.make_node(
        "DequantizeLinear",
        [f"{name}_quantized", *names],
        [f"{name}_rounded"],
        f"{name}_dequantize",
        axis=1 if turned else 0,
    )


def _constants(model: ModelProto, name: str, scale: np.ndarray, zero: np.ndarray) -> list[str]:
    names = [f"{name}_scale", f"{name}_zero_point"]
    values = zip((scale, zero), names, strict=True)
    model.graph.initializer.extend(numpy_helper.from_array(v, n) for v, n in values)
    return names
