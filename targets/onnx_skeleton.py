"""An exported network taken apart: its nodes, what they read, and which of them can be 8-bit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from onnx import ModelProto, NodeProto

from .onnx_calibrate import BOUNDED_OPS
from .onnx_float_layers import MOVED_PAST, ROUNDED_OPS
from .onnx_lengths import field_length, payload_length, varint
from .onnx_quantize import FLOAT_OPS, MOVING_OPS, PASSING_OPS, SCALING_OPS


@dataclass(frozen=True)
class Part:
    """One node that stands for a layer, or for a factor of it.

    suffix: "" or ".0", ".1" ...: what its name adds to the layer's. shape: of its weight, output
    channels first. groups: of a convolution.
    """

    suffix: str
    shape: tuple[int, ...]
    groups: int = 1

    @property
    def channels(self) -> int:
        """Of its input."""
        return self.shape[1] * self.groups


@dataclass(frozen=True, eq=False)
class Stored:
    """How one layer lies in the file: its parts in order, and its bits (weight, activation).

    Sizes are remembered per object: give the same one for the same layer.
    """

    parts: tuple[Part, ...]
    bits: tuple[int, int] = (32, 32)


@dataclass
class Node:
    name: str
    op: str
    kind: str  # "layer", "bounded", "scaling", "passing", "moving" or "other"
    inputs: list[str]  # activations
    constants: list[str]
    outputs: list[str]
    attributes: int  # bytes
    bare: int  # bytes of everything but inputs, outputs and name
    bias: bool = False
    shared: bool = False  # its weights lie in the file already
    groups: int = 1  # of a convolution


class Skeleton:
    """The uncompressed network as exported (float32, layers named).

    nodes: in order. tensors: constants by name. free: constants that are no layer's own -> (bytes
    around, bytes of content). outputs: of the graph. readers: of each tensor, counted.
    header, around: bytes of the file beside the graph, and of the graph beside nodes and tensors.
    """

    def __init__(self, model: ModelProto) -> None:
        graph = model.graph
        self.tensors = {t.name: t for t in graph.initializer}
        self.outputs = {v.name for v in graph.output}
        self.nodes = [self._read(node) for node in graph.node]
        seen: set[str] = set()
        for node in self.nodes:
            if node.kind == "layer":
                node.shared = node.constants[0] in seen
                seen.add(node.constants[0])
        own = {c for n in self.nodes if n.kind == "layer" for c in n.constants}
        self.free = {
            name: (t.ByteSize() - payload_length(t) - varint(payload_length(t)), payload_length(t))
            for name, t in self.tensors.items()
            if name not in own
        }
        readers: dict[str, int] = dict.fromkeys(self.outputs, 1)
        for node in self.nodes:
            for name in node.inputs:
                readers[name] = readers.get(name, 0) + 1
        self.readers = readers
        counted = sum(field_length(n.ByteSize()) for n in graph.node)
        counted += sum(field_length(t.ByteSize()) for t in graph.initializer)
        self.around: int = graph.ByteSize() - counted
        self.header: int = model.ByteSize() - field_length(graph.ByteSize())

    def _read(self, node: NodeProto) -> Node:
        constants = [name for name in node.input if name in self.tensors]
        kind = "other"
        weighted = node.op_type in FLOAT_OPS and len(node.input) > 1
        if weighted and node.input[1] in self.tensors:
            kind = "layer"
        for name, operators in (
            ("bounded", BOUNDED_OPS),
            ("scaling", SCALING_OPS),
            ("passing", PASSING_OPS),
            ("moving", MOVING_OPS),
        ):
            kind = name if node.op_type in operators else kind
        strings = sum(field_length(len(s)) for s in (*node.input, *node.output, node.name))
        attributes = sum(field_length(a.ByteSize()) for a in node.attribute)
        return Node(
            node.name,
            node.op_type,
            kind,
            [n for n in node.input if n and n not in self.tensors],
            constants,
            list(node.output),
            attributes,
            node.ByteSize() - strings,
            bias=kind == "layer" and len(node.input) > 2,
            groups=next((a.i for a in node.attribute if a.name == "group"), 1),
        )

    def joined(self, layers: Mapping[str, Stored]) -> list[bool]:
        """Which nodes run on 8 bits: the rules of :func:`paretune.targets.onnx_quantize.place`."""
        eight_bit: set[str] = set()
        maker: dict[str, Node] = {}
        out = []
        for node in self.nodes:
            held = bool(node.inputs) and all(name in eight_bit for name in node.inputs)
            on = held
            if node.kind == "layer":
                stored = layers.get(layer_of(node.name))
                on = held = stored is not None and stored.bits[1] == 8
            elif node.kind == "bounded":
                before = maker.get(node.inputs[0])
                own = before is not None and before.kind in ("scaling", "layer")
                on = held = held and own and self.readers[node.inputs[0]] == 1
            elif node.kind == "moving":
                on = False
            elif node.kind == "other":
                on = held = False
            if held:
                eight_bit.update(node.outputs)
            for name in node.outputs:
                maker[name] = node
            out.append(on)
        return out

    def dequantised(self, layers: Mapping[str, Stored], joined: list[bool]) -> dict[str, int]:
        """What is dequantised channel by channel where it is held in 8 bits -> its channels: see
        :func:`paretune.targets.onnx_float_layers.keep_float`."""
        maker: dict[str, tuple[Node, bool]] = {}
        found: dict[str, int] = {}
        for node, on in zip(self.nodes, joined, strict=True):
            stored = layers.get(layer_of(node.name))
            first = stored.parts[0] if stored is not None else None
            if node.kind == "layer" and first is None:
                first = Part("", tuple(self.tensors[node.constants[0]].dims), node.groups)
            alone = stored is None or len(stored.parts) == 1
            if first is not None and not on and node.op in ROUNDED_OPS:
                tensor = node.inputs[0]
                while tensor in maker:
                    made, integer = maker[tensor]
                    if integer or made.op not in MOVED_PAST:
                        break
                    tensor = made.inputs[0]
                if first.channels > 1 and (node.op != "Gemm" or (node.bias and alone)):
                    found[tensor] = first.channels
            for name in node.outputs:
                maker[name] = node, on
        return found


def layer_of(name: str) -> str:
    return name.partition("#")[0]
