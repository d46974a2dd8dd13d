"""How many bytes the ONNX writer's file of a compressed network has, without writing it.

The file of the uncompressed network is taken apart once. A plan changes the shapes of tensors,
puts two or three nodes in the place of one, and surrounds nodes with what int8 needs; each of
these changes the length of a few protobuf messages, which are added up here by the rules of
:mod:`paretune.targets.onnx_quantize` and of ONNX Runtime's quantiser.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from .onnx_quantize import BOUNDED_OPS, FLOAT_OPS, MOVING_OPS, PASSING_OPS, SCALING_OPS

MICROSOFT = "com.microsoft"
_INTEGER = {
    "Conv": ("QLinearConv", ""),
    "MatMul": ("QLinearMatMul", ""),
    "Gemm": ("QGemm", MICROSOFT),
}
_BESIDE = 2  # bytes of an empty doc string, which every node and tensor carries


@dataclass(frozen=True)
class Part:
    """One node that stands for a layer, or for a factor of it.

    suffix: "" or ".0", ".1" ...: what its name adds to the layer's. shape: of its weight, output
    channels first. bits: (weight, activation).
    """

    suffix: str
    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Stored:
    """How one layer lies in the file: its parts in order, and its bits (weight, activation).

    Sizes are remembered per object: give the same one for the same layer.
    """

    parts: tuple[Part, ...]
    bits: tuple[int, int] = (32, 32)


@dataclass
class _Node:
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


@dataclass
class _File:
    """A file being added up: bytes of nodes and tensors, what is held in 8 bits, and under which
    names (those of its integers and of its scale)."""

    total: int = 0
    held: dict[str, tuple[str, str]] = field(default_factory=dict)
    paired: set[str] = field(default_factory=set)
    microsoft: bool = False


class FileSize:
    """Bytes of the files that a writer makes of one network.

    model: the uncompressed network as exported (float32, layers named). format: ``"qoperator"`` or
    ``"qdq"``. owners: constant (not a layer's own) -> module whose output channels it follows.
    """

    def __init__(self, model: ModelProto, format: str, owners: Mapping[str, str]) -> None:
        self._format = format
        graph = model.graph
        self._tensors = {t.name: t for t in graph.initializer}
        self._outputs = {v.name for v in graph.output}
        self._nodes = [self._read(node) for node in graph.node]
        seen: set[str] = set()
        for node in self._nodes:
            if node.kind == "layer":
                node.shared = node.constants[0] in seen
                seen.add(node.constants[0])
        self._owners = dict(owners)
        own = {c for n in self._nodes if n.kind == "layer" for c in n.constants}
        self._free = {
            name: (t.ByteSize() - _payload(t), _payload(t))
            for name, t in self._tensors.items()
            if name not in own
        }
        readers: dict[str, int] = dict.fromkeys(self._outputs, 1)
        for node in self._nodes:
            for name in node.inputs:
                readers[name] = readers.get(name, 0) + 1
        self._readers = readers
        counted = sum(_field(n.ByteSize()) for n in graph.node)
        counted += sum(_field(t.ByteSize()) for t in graph.initializer)
        self._around = graph.ByteSize() - counted
        self._header = model.ByteSize() - _field(graph.ByteSize())
        self._memo: dict[tuple[object, ...], int] = {}
        self._whole: dict[str, Stored] = {}

    def _read(self, node: NodeProto) -> _Node:
        constants = [name for name in node.input if name in self._tensors]
        kind = "other"
        weighted = node.op_type in FLOAT_OPS and len(node.input) > 1
        if weighted and node.input[1] in self._tensors:
            kind = "layer"
        for name, operators in (
            ("bounded", BOUNDED_OPS),
            ("scaling", SCALING_OPS),
            ("passing", PASSING_OPS),
            ("moving", MOVING_OPS),
        ):
            kind = name if node.op_type in operators else kind
        strings = sum(_field(len(s)) for s in (*node.input, *node.output, node.name))
        attributes = sum(_field(a.ByteSize()) for a in node.attribute)
        return _Node(
            node.name,
            node.op_type,
            kind,
            [n for n in node.input if n and n not in self._tensors],
            constants,
            list(node.output),
            attributes,
            node.ByteSize() - strings,
            bias=kind == "layer" and len(node.input) > 2,
        )

    def bytes(self, layers: Mapping[str, Stored], kept: Mapping[str, tuple[int, int]]) -> int:
        """Size of the file. layers: every layer by name. kept: module -> (channels left, of)."""
        joined = self._joined(layers)
        file = _File()
        if self._format == "qdq" and any(joined):
            self._add_pairs(file, layers, joined)
        else:
            self._add_integers(file, layers, joined)
        quantised, vanished = set(), set()
        for node, on in zip(self._nodes, joined, strict=True):
            if on and node.constants and node.kind != "layer":
                (vanished if node.kind == "bounded" else quantised).update(node.constants)
        for name, (around, payload) in self._free.items():
            if name in vanished:
                continue
            left, of = kept.get(self._owners.get(name, ""), (1, 1))
            payload = payload * left // of
            if name in quantised and payload > 8:
                file.total += _field(around + len("_quantized") + payload // 4)
                file.total += 2 * _scalar(name)
            else:
                file.total += _field(around + _varint(payload) - 1 + payload)
        graph = self._around + file.total
        return self._header + _field(graph) + (19 if file.microsoft else 0)

    def _joined(self, layers: Mapping[str, Stored]) -> list[bool]:
        """Which nodes run on 8 bits: the rules of :func:`paretune.targets.onnx_quantize.place`."""
        eight_bit: set[str] = set()
        maker: dict[str, _Node] = {}
        out = []
        for node in self._nodes:
            held = bool(node.inputs) and all(name in eight_bit for name in node.inputs)
            on = held
            if node.kind == "layer":
                stored = layers.get(_layer(node.name))
                on = held = stored is not None and stored.bits == (8, 8)
            elif node.kind == "bounded":
                before = maker.get(node.inputs[0])
                own = before is not None and before.kind in ("scaling", "layer")
                on = held = held and own and self._readers[node.inputs[0]] == 1
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

    # -- integer operators ------------------------------------------------------------------

    def _add_integers(self, file: _File, layers: Mapping[str, Stored], joined: list[bool]) -> None:
        names: dict[str, str] = {}  # tensor -> what it is called in this file
        for node, on in zip(self._nodes, joined, strict=True):
            inputs = [names.get(name, name) for name in node.inputs]
            if node.kind == "layer":
                stored = layers.get(_layer(node.name)) or self._as_is(node)
                suffix = stored.parts[-1].suffix
                if suffix and node.outputs[0] not in self._outputs:
                    names[node.outputs[0]] = node.outputs[0] + suffix
            else:
                stored = None
            outputs = [names.get(name, name) for name in node.outputs]
            if not on:
                self._float_inputs(file, inputs)
                if stored is None:
                    file.total += self._plain(node, inputs, outputs)
                else:
                    file.total += self._layer(node, stored, inputs, outputs, False)
                continue
            if node.kind == "bounded":
                file.held[outputs[0]] = file.held[inputs[0]]
                continue
            for name in inputs:
                if name not in file.held:
                    file.total += self._quantise(name, f"{name}_quantized")
                    file.held[name] = (name, name)
                    file.paired.add(name)
            given = [file.held[name] for name in inputs]
            if stored is not None:
                file.microsoft |= node.op == "Gemm"
                words = [q for q, _ in given]
                file.total += self._layer(node, stored, words, outputs, True, given[0][1])
                file.held[outputs[0]] = (outputs[0], outputs[0])
            elif node.kind == "passing":
                words = [f"{q}_quantized" for q, _ in given]
                made = [f"{name}_quantized" for name in outputs]
                words += [*node.constants, *made, node.name]
                file.total += _field(_strings(words) + node.bare)
                for name in outputs:
                    file.held[name] = (name, given[0][1])
            else:
                words = []
                for q, scale in given:
                    words += [f"{q}_quantized", *_pair(scale)]
                for name in node.constants:
                    words += [f"{name}_quantized", *_pair(name)]
                words += [*_pair(outputs[0]), f"{outputs[0]}_quantized", f"{node.name}_quant"]
                more = len("QLinear") + _field(len(MICROSOFT))
                file.total += _field(_strings(words) + node.bare + more) + 2 * _scalar(outputs[0])
                file.held[outputs[0]] = (outputs[0], outputs[0])
                file.microsoft = True
        self._float_inputs(file, list(self._outputs))

    def _float_inputs(self, file: _File, inputs: list[str]) -> None:
        """DequantizeLinear nodes for tensors held as integers that a float node reads."""
        for name in inputs:
            if name in file.held and name not in file.paired:
                q, scale = file.held[name]
                words = [f"{name}_DequantizeLinear", f"{q}_quantized", *_pair(scale), name]
                file.total += _field(_strings(words) + _op("DequantizeLinear"))
                file.paired.add(name)

    def _quantise(self, name: str, made: str) -> int:
        """A QuantizeLinear node with its scale and zero point."""
        key = ("quantise", name, made)
        if key in self._memo:
            return self._memo[key]
        words = [f"{name}_QuantizeLinear", name, *_pair(name), made]
        self._memo[key] = _field(_strings(words) + _op("QuantizeLinear")) + 2 * _scalar(name)
        return self._memo[key]

    def _plain(self, node: _Node, inputs: list[str], outputs: list[str]) -> int:
        """A node that is written as it stands."""
        key = (node.name, *inputs, *outputs)
        if key not in self._memo:
            words = [*inputs, *node.constants, *outputs, node.name]
            self._memo[key] = _field(_strings(words) + node.bare)
        return self._memo[key]

    def _as_is(self, node: _Node) -> Stored:
        if node.name not in self._whole:
            shape = tuple(self._tensors[node.constants[0]].dims)
            self._whole[node.name] = Stored((Part("", shape),))
        return self._whole[node.name]

    def _layer(
        self,
        node: _Node,
        stored: Stored,
        inputs: list[str],
        outputs: list[str],
        integer: bool,
        scale: str = "",
    ) -> int:
        """Nodes and tensors of one layer (QOperator, or float32)."""
        key = (node.name, stored, tuple(inputs), tuple(outputs), integer, scale)
        if key not in self._memo:
            self._memo[key] = self._layer_bytes(
                node, stored, inputs[0], scale or inputs[0], outputs[0], integer
            )
        return self._memo[key]

    def _layer_bytes(
        self, node: _Node, stored: Stored, given: str, scale: str, made: str, integer: bool
    ) -> int:
        total = 0
        for index, part in enumerate(stored.parts):
            last = index == len(stored.parts) - 1
            name, op, attributes = node.name + part.suffix, node.op, node.attributes
            bias = node.bias and last
            if op == "Gemm" and not bias:
                op, attributes = "MatMul", 0
            out = made if last else name
            weight = f"{name}.weight"
            if not integer:
                words = [name, given, weight, *([f"{name}.bias"] if bias else []), out]
                total += _field(_strings(words) + _op(op) + attributes)
                total += 0 if node.shared else self._tensor(weight, part.shape, 4)
                total += self._tensor(f"{name}.bias", part.shape[:1], 4) if bias else 0
            else:
                kind, domain = _INTEGER[op]
                if op == "Gemm":
                    attributes -= _BETA
                words = [f"{name}_quant", f"{given}_quantized", *_pair(scale)]
                words += [f"{weight}_quantized", *_pair(weight), *_pair(out), f"{out}_quantized"]
                words += [f"{name}.bias_quantized"] if bias else []
                more = _field(len(domain)) if domain else 0
                total += _field(_strings(words) + _op(kind) + attributes + more)
                total += 0 if node.shared else self._integers(weight, part.shape)
                total += 2 * _scalar(out)
                total += self._tensor(f"{name}.bias_quantized", part.shape[:1], 4) if bias else 0
            given = scale = out
        return total

    def _integers(self, weight: str, shape: tuple[int, ...]) -> int:
        """An int8 weight with its scales and zero points, one a channel."""
        return (
            self._tensor(f"{weight}_quantized", shape, 1)
            + self._tensor(f"{weight}_scale", shape[:1], 4)
            + self._tensor(f"{weight}_zero_point", shape[:1], 1)
        )

    @staticmethod
    def _tensor(name: str, shape: tuple[int, ...], item: int) -> int:
        dims = sum(1 + _varint(d) for d in shape)
        return _field(dims + 2 + _field(len(name)) + _field(item * prod(shape)) + _BESIDE)

    # -- pairs of Quantize and Dequantize -----------------------------------------------------

    def _add_pairs(self, file: _File, layers: Mapping[str, Stored], joined: list[bool]) -> None:
        names = self._names(layers, joined)
        paired: set[str] = set()
        scales: dict[str, str] = {}  # of what only passes on its input's scale
        for node, on in zip(self._nodes, joined, strict=True):
            if on and node.kind != "bounded":
                paired.update(names[n] for n in (*node.inputs, *node.outputs))
                if node.kind == "passing" or node.op == "AveragePool":
                    scale = scales.get(names[node.inputs[0]], names[node.inputs[0]])
                    scales.update({names[n]: scale for n in node.outputs})
        for name in paired:
            scale = _pair(scales.get(name, name))
            made, back = f"{name}_QuantizeLinear_Output", f"{name}_DequantizeLinear_Output"
            file.total += _field(
                _strings([f"{name}_QuantizeLinear", name, *scale, made]) + _op("QuantizeLinear")
            )
            file.total += _field(
                _strings([f"{name}_DequantizeLinear", made, *scale, back]) + _op("DequantizeLinear")
            )
            file.total += 0 if name in scales else 2 * _scalar(name)
        for node, on in zip(self._nodes, joined, strict=True):
            if on and node.kind == "bounded":
                continue
            inputs = [names[n] for n in node.inputs]
            inputs = [f"{n}_DequantizeLinear_Output" if n in paired else n for n in inputs]
            outputs = [names[n] for n in node.outputs]
            if node.kind != "layer":
                file.total += self._plain(node, inputs, outputs)
                continue
            stored = layers.get(_layer(node.name)) or self._as_is(node)
            if on:
                file.total += self._paired_layer(node, stored, inputs[0], outputs[0])
            else:
                file.total += self._layer(node, stored, inputs, outputs, False)

    def _names(self, layers: Mapping[str, Stored], joined: list[bool]) -> dict[str, str]:
        """What each tensor is called: a factorised layer's output has its last factor's name, and
        the input of a vanished Relu that of the Relu's output."""
        names = {name: name for node in self._nodes for name in (*node.inputs, *node.outputs)}
        for node, on in zip(self._nodes, joined, strict=True):
            if node.kind == "layer" and node.outputs[0] not in self._outputs:
                stored = layers.get(_layer(node.name))
                if stored is not None:
                    names[node.outputs[0]] += stored.parts[-1].suffix
            elif node.kind == "bounded" and on:
                names[node.inputs[0]] = names[node.outputs[0]]
        return names

    def _paired_layer(self, node: _Node, stored: Stored, given: str, made: str) -> int:
        key = (node.name, stored, given, made)
        if key in self._memo:
            return self._memo[key]
        total = 0
        for index, part in enumerate(stored.parts):
            last = index == len(stored.parts) - 1
            name, op, attributes = node.name + part.suffix, node.op, node.attributes
            bias = node.bias and last
            if op == "Gemm" and not bias:
                op, attributes = "MatMul", 0
            out, weight, zeros = made if last else name, f"{name}.weight", f"{name}.bias"
            words = [name, given, f"{weight}_DequantizeLinear_Output", out]
            words += [zeros] if bias else []
            total += _field(_strings(words) + _op(op) + attributes)
            total += 0 if node.shared else self._integers(weight, part.shape)
            back = f"{weight}_DequantizeLinear_Output"
            total += self._dequantise(weight, f"{weight}_quantized", back, weight)
            if bias:
                integers = f"{zeros}_quantized"
                total += self._dequantise(zeros, integers, zeros, integers)
                total += sum(
                    self._tensor(n, part.shape[:1], 4) for n in (integers, *_pair(integers))
                )
            if not last:
                total += self._quantise(out, f"{out}_QuantizeLinear_Output")
                given = f"{out}_DequantizeLinear_Output"
                words = [f"{out}_DequantizeLinear", f"{out}_QuantizeLinear_Output"]
                words += [*_pair(out), given]
                total += _field(_strings(words) + _op("DequantizeLinear"))
        self._memo[key] = total
        return total

    @staticmethod
    def _dequantise(stem: str, integers: str, made: str, scale: str) -> int:
        words = [f"{stem}_DequantizeLinear", integers, *_pair(scale), made]
        return _field(_strings(words) + _op("DequantizeLinear") + _AXIS)


_BETA, _AXIS = 16, 13  # bytes of the attributes ``beta`` and ``axis``


def _layer(name: str) -> str:
    return name.partition("#")[0]


def _pair(name: str) -> tuple[str, str]:
    return f"{name}_scale", f"{name}_zero_point"


def _op(op: str) -> int:
    return _field(len(op)) + _BESIDE


def _scalar(name: str) -> int:
    """Mean bytes of a scale and a zero point of one number."""
    return 2 + len(name) + 19


def _strings(words: list[str]) -> int:
    return sum(_field(len(word)) for word in words)


def _varint(number: int) -> int:
    return max(1, (int(number).bit_length() + 6) // 7)


def _field(length: int) -> int:
    return 1 + _varint(length) + length


def _payload(tensor: TensorProto) -> int:
    return int(np.asarray(numpy_helper.to_array(tensor)).nbytes)
