"""An exported ONNX graph made small and legible: constants folded, nodes named after layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

SMALL = 4096  # elements of a folded constant that depends on a shape; others may be of any size
BATCHES = (1, 2, 3)  # a shape that is the same for all three does not depend on the batch

Run = Callable[[ModelProto, dict[str, np.ndarray], list[str]], list[np.ndarray]]
"""Runs a model: (model, inputs by name, output names) -> outputs."""


def simplify(model: ModelProto, example: np.ndarray, run: Run) -> None:
    """Fold what does not depend on the input's values or its batch size, and drop the rest.

    example: one input (1, ...) float32; its spatial size is kept fixed. Arithmetic on shapes
    becomes constants, a batch size in a Reshape becomes -1, identities vanish. In place.
    """
    graph = model.graph
    _lift_constants(graph)
    _drop_identities(graph)
    static = _static_tensors(graph)
    if static:
        _fold(model, static, example, run)
    _drop_dead(graph)


def strip(model: ModelProto) -> None:
    """Remove what no runtime needs and what could tell about this machine: doc strings, scopes,
    paths, shape annotations of inner tensors. In place."""
    del model.metadata_props[:]
    model.doc_string = model.producer_version = model.domain = ""
    model.producer_name = "paretune"
    graph = model.graph
    graph.doc_string = ""
    graph.name = "network"
    del graph.value_info[:], graph.metadata_props[:]
    for item in (*graph.node, *graph.initializer, *graph.input, *graph.output):
        item.doc_string = ""
        del item.metadata_props[:]


def rename(model: ModelProto, layers: Mapping[int, str]) -> None:
    """Name nodes and their tensors: ``layers[i]`` for node i, else its operator and a count.

    Weights become ``<layer>.weight`` and ``<layer>.bias``; graph input and output keep their names.
    Each layer has a bias of its own, so that it can have its own scale: the exporter stores equal
    tensors once (all biases of a network that was never trained are zero). In place.
    """
    graph = model.graph
    tensors = {v.name: v.name for v in (*graph.input, *graph.output)}
    initialisers = {t.name: t for t in graph.initializer}
    taken = {*tensors.values(), *layers.values()}
    counts: dict[str, int] = {}
    elsewhere = {
        name
        for index, node in enumerate(graph.node)
        for place, name in enumerate(node.input)
        if place != 2 or index not in layers
    }

    def fresh(stem: str) -> str:
        while True:
            counts[stem] = counts.get(stem, 0) + 1
            name = stem if counts[stem] == 1 else f"{stem}_{counts[stem]}"
            if name not in taken:
                taken.add(name)
                return name

    for index, node in enumerate(graph.node):
        node.name = layers.get(index) or fresh(node.op_type)
        for part, place in (("weight", 1), ("bias", 2)):
            if index in layers and len(node.input) > place:
                old = initialisers.get(node.input[place])
                if old is None:
                    continue
                if part == "bias" and (old.name in tensors or old.name in elsewhere):
                    copy = graph.initializer.add()
                    copy.CopyFrom(old)
                    copy.name = node.input[place] = f"{old.name}#{node.name}"
                    old = copy
                tensors.setdefault(old.name, f"{node.name}.{part}")
        for place, name in enumerate(node.output):
            if name and name not in tensors:
                tensors[name] = node.name if place == 0 else f"{node.name}:{place}"
    for tensor in graph.initializer:
        if tensor.name not in tensors:
            tensors[tensor.name] = fresh("constant")
    for node in graph.node:
        node.input[:] = [tensors.get(name, name) for name in node.input]
        node.output[:] = [tensors.get(name, name) for name in node.output]
    for tensor in graph.initializer:
        tensor.name = tensors[tensor.name]


def rows(node: NodeProto, weight: np.ndarray) -> np.ndarray:
    """The weight of a layer's node with output channels first, as torch stores it."""
    kind = node.op_type.removeprefix("QLinear").removeprefix("Q")
    if kind == "MatMul" and weight.ndim == 2:
        return weight.T
    if kind == "Gemm":
        transposed = any(a.name == "transB" and a.i for a in node.attribute)
        return weight if transposed else weight.T
    return weight


def _lift_constants(graph: GraphProto) -> None:
    kept: list[NodeProto] = []
    for node in graph.node:
        value = _constant_value(node)
        if value is None:
            kept.append(node)
        else:
            graph.initializer.append(numpy_helper.from_array(value, node.output[0]))
    _replace_nodes(graph, kept)


def _constant_value(node: NodeProto) -> np.ndarray | None:
    if node.op_type != "Constant" or len(node.attribute) != 1:
        return None
    attribute = node.attribute[0]
    value = helper.get_attribute_value(attribute)
    if isinstance(value, TensorProto):
        return np.asarray(numpy_helper.to_array(value))
    kinds = {"value_int": np.int64, "value_ints": np.int64}
    kinds |= {"value_float": np.float32, "value_floats": np.float32}  # type: ignore[dict-item]
    kind = kinds.get(attribute.name)
    return None if kind is None else np.asarray(value, dtype=kind)


def _drop_identities(graph: GraphProto) -> None:
    outputs = {v.name for v in graph.output}
    alias: dict[str, str] = {}
    kept = []
    for node in graph.node:
        node.input[:] = [alias.get(name, name) for name in node.input]
        if node.op_type == "Identity" and node.output[0] not in outputs:
            alias[node.output[0]] = node.input[0]
        else:
            kept.append(node)
    _replace_nodes(graph, kept)


def _static_tensors(graph: GraphProto) -> dict[str, bool]:
    """Tensors that depend on constants and shapes only -> whether on a shape."""
    constant = {t.name for t in graph.initializer}
    static: dict[str, bool] = {}
    for node in graph.node:
        names = [name for name in node.input if name]
        if node.op_type.startswith(("Random", "Multinomial", "Bernoulli")) or _has_graph(node):
            continue
        if node.op_type in {"Shape", "Size"}:
            static |= {name: True for name in node.output}
        elif names and all(name in constant or name in static for name in names):
            shaped = any(static.get(name, False) for name in names)
            static |= {name: shaped for name in node.output if name}
    return static


def _fold(model: ModelProto, static: dict[str, bool], example: np.ndarray, run: Run) -> None:
    """Replace static tensors that other nodes read by the value they have for every batch."""
    graph = model.graph
    outputs = {v.name for v in graph.output}
    readers: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            if name in static and not any(out in static for out in node.output):
                readers.setdefault(name, []).append(node)
    wanted = [name for name in static if name in readers and name not in outputs]
    if not wanted:
        return
    reshapes = [n for n in graph.node if n.op_type == "Reshape" and static.get(n.input[1])]
    shaped = [n.output[0] for n in reshapes]
    probe = ModelProto()
    probe.CopyFrom(model)
    if not any(static[name] for name in wanted):
        _replace_nodes(probe.graph, [n for n in graph.node if any(o in static for o in n.output)])
        del probe.graph.input[:], probe.graph.output[:]
    new = [name for name in (*wanted, *shaped) if name not in outputs]
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in new)
    name = graph.input[0].name
    values = [
        run(probe, {name: np.repeat(example, n, axis=0)} if probe.graph.input else {}, new)
        for n in (BATCHES if probe.graph.input else BATCHES[:1])
    ]
    columns = dict(zip(new, zip(*values, strict=True), strict=True))
    for tensor in wanted:
        column = columns[tensor]
        if column[0].size > SMALL and static[tensor]:
            continue
        if all(c.shape == column[0].shape and np.array_equal(c, column[0]) for c in column):
            _set_constant(graph, readers[tensor], tensor, column[0])
    for node in reshapes:
        column = columns.get(node.output[0], ())
        free = _with_free_batch([np.array(c.shape, dtype=np.int64) for c in column])
        if free is not None:
            _set_constant(graph, [node], node.input[1], free)


def _with_free_batch(shapes: list[np.ndarray]) -> np.ndarray | None:
    """The shape that a Reshape gives, with -1 where it grows with the batch, if in one place."""
    if not shapes or 0 in shapes[0] or any(s.shape != shapes[0].shape for s in shapes):
        return None
    grows = np.flatnonzero(np.any([s != shapes[0] for s in shapes], axis=0))
    if len(grows) != 1:
        return None
    place = int(grows[0])
    if any(s[place] != shapes[0][place] * n for s, n in zip(shapes, BATCHES, strict=True)):
        return None
    free = shapes[0].copy()
    free[place] = -1
    return free


def _set_constant(
    graph: GraphProto, readers: Iterable[NodeProto], tensor: str, value: np.ndarray
) -> None:
    name = f"{tensor}/folded/{len(graph.initializer)}"
    graph.initializer.append(numpy_helper.from_array(value, name))
    for node in readers:
        node.input[:] = [name if i == tensor else i for i in node.input]


def _drop_dead(graph: GraphProto) -> None:
    needed = {v.name for v in graph.output}
    kept: list[NodeProto] = []
    for node in reversed(graph.node):
        if any(name in needed for name in node.output):
            kept.append(node)
            needed |= set(_reads(node))
    _replace_nodes(graph, kept[::-1])
    tensors = [t for t in graph.initializer if t.name in needed]
    copies = []
    for tensor in tensors:
        copy = TensorProto()
        copy.CopyFrom(tensor)
        copies.append(copy)
    del graph.initializer[:]
    graph.initializer.extend(copies)


def _reads(node: NodeProto) -> Iterator[str]:
    yield from node.input
    for attribute in node.attribute:
        for inner in (attribute.g, *attribute.graphs):
            for child in inner.node:
                yield from _reads(child)
            yield from (v.name for v in inner.output)


def _has_graph(node: NodeProto) -> bool:
    return any(a.HasField("g") or a.graphs for a in node.attribute)


def _replace_nodes(graph: GraphProto, nodes: Iterable[NodeProto]) -> None:
    kept = []
    for node in nodes:
        copy = NodeProto()
        copy.CopyFrom(node)
        kept.append(copy)
    del graph.node[:]
    graph.node.extend(kept)
