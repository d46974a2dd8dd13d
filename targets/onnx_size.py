"""How many bytes the ONNX writer's file of a compressed network has, without writing it.

The file of the uncompressed network is taken apart once. A plan changes the shapes of tensors,
puts two or three nodes in the place of one, and surrounds nodes with what int8 needs; each of
these changes the length of a few protobuf messages, which are added up here by the rules of
:mod:`paretune.targets.onnx_quantize` and of ONNX Runtime's quantiser.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from onnx import ModelProto

from .onnx_lengths import (
    AXIS,
    BETA,
    field_length,
    integer_weight_length,
    message_length,
    op_length,
    scalar_length,
    scale_names,
    tensor_length,
    varint,
    weight_length,
)
from .onnx_skeleton import Node, Part, Skeleton, Stored, layer_of

MICROSOFT = "com.microsoft"
_INTEGER = {
    "Conv": ("QLinearConv", ""),
    "MatMul": ("QLinearMatMul", ""),
    "Gemm": ("QGemm", MICROSOFT),
}


@dataclass
class _File:
    """A file being added up: bytes of nodes and tensors, what is held in 8 bits, and under which
    names (those of its integers and of its scale)."""

    total: int = 0
    held: dict[str, tuple[str, str]] = field(default_factory=dict)
    paired: set[str] = field(default_factory=set)
    microsoft: bool = False


class FileSize(Skeleton):
    """Bytes of the files that a writer makes of one network.

    model: the uncompressed network as exported (float32, layers named). format: ``"qoperator"`` or
    ``"qdq"``. owners: constant (not a layer's own) -> module whose output channels it follows.
    """

    def __init__(self, model: ModelProto, format: str, owners: Mapping[str, str]) -> None:
        super().__init__(model)
        self._format, self._owners = format, dict(owners)
        self._memo: dict[tuple[object, ...], int] = {}
        self._whole: dict[str, Stored] = {}

    def bytes(self, layers: Mapping[str, Stored], kept: Mapping[str, tuple[int, int]]) -> int:
        """Size of the file. layers: every layer by name. kept: module -> (channels left, of)."""
        joined = self.joined(layers)
        file = _File()
        if self._format == "qdq" and any(joined):
            self._add_pairs(file, layers, joined)
        else:
            self._add_integers(file, layers, joined)
        quantised: set[str] = set()
        vanished: set[str] = set()
        for node, on in zip(self.nodes, joined, strict=True):
            if on and node.constants and node.kind != "layer":
                (vanished if node.kind == "bounded" else quantised).update(node.constants)
        for name, (around, payload) in self.free.items():
            if name in vanished:
                continue
            left, of = kept.get(self._owners.get(name, ""), (1, 1))
            payload = payload * left // of
            if name in quantised and payload > 8:
                file.total += field_length(around + len("_quantized") + 1 + payload // 4)
                file.total += 2 * scalar_length(name)
            else:
                file.total += field_length(around + varint(payload) + payload)
        graph = self.around + file.total
        return self.header + field_length(graph) + (19 if file.microsoft else 0)

    def _add_integers(self, file: _File, layers: Mapping[str, Stored], joined: list[bool]) -> None:
        names: dict[str, str] = {}  # tensor -> what it is called in this file
        for node, on in zip(self.nodes, joined, strict=True):
            inputs = [names.get(name, name) for name in node.inputs]
            if node.kind == "layer":
                stored = layers.get(layer_of(node.name)) or self._as_is(node)
                suffix = stored.parts[-1].suffix
                if suffix and node.outputs[0] not in self.outputs:
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
                    file.total += self._quantise(name)
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
                file.total += message_length(words, node.bare)
                for name in outputs:
                    file.held[name] = (name, given[0][1])
            else:
                words = []
                for q, scale in given:
                    words += [f"{q}_quantized", *scale_names(scale)]
                for name in node.constants:
                    words += [f"{name}_quantized", *scale_names(name)]
                words += [*scale_names(outputs[0]), f"{outputs[0]}_quantized", f"{node.name}_quant"]
                more = len("QLinear") + field_length(len(MICROSOFT))
                file.total += message_length(words, node.bare, more) + 2 * scalar_length(outputs[0])
                file.held[outputs[0]] = (outputs[0], outputs[0])
                file.microsoft = True
        self._float_inputs(file, list(self.outputs))

    def _float_inputs(self, file: _File, inputs: list[str]) -> None:
        """DequantizeLinear nodes for tensors held as integers that a float node reads."""
        for name in inputs:
            if name in file.held and name not in file.paired:
                q, scale = file.held[name]
                words = [f"{name}_DequantizeLinear", f"{q}_quantized", *scale_names(scale), name]
                file.total += message_length(words, op_length("DequantizeLinear"))
                file.paired.add(name)

    def _quantise(self, name: str) -> int:
        """A QuantizeLinear node with its scale and zero point."""
        words = [f"{name}_QuantizeLinear", name, *scale_names(name), f"{name}_quantized"]
        return message_length(words, op_length("QuantizeLinear")) + 2 * scalar_length(name)

    def _plain(self, node: Node, inputs: list[str], outputs: list[str]) -> int:
        """A node that is written as it stands."""
        key = (node.name, *inputs, *outputs)
        if key not in self._memo:
            words = [*inputs, *node.constants, *outputs, node.name]
            self._memo[key] = message_length(words, node.bare)
        return self._memo[key]

    def _as_is(self, node: Node) -> Stored:
        if node.name not in self._whole:
            shape = tuple(self.tensors[node.constants[0]].dims)
            self._whole[node.name] = Stored((Part("", shape),))
        return self._whole[node.name]

    def _layer(
        self,
        node: Node,
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
        self, node: Node, stored: Stored, given: str, scale: str, made: str, integer: bool
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
                total += message_length(words, op_length(op), attributes)
                total += 0 if node.shared else weight_length(weight, part.shape, stored.bits[0])
                total += tensor_length(f"{name}.bias", part.shape[:1], 4) if bias else 0
            else:
                kind, domain = _INTEGER[op]
                if op == "Gemm":
                    attributes -= BETA
                words = [f"{name}_quant", f"{given}_quantized", *scale_names(scale)]
                words += [f"{weight}_quantized", *scale_names(weight)]
                words += [*scale_names(out), f"{out}_quantized"]
                words += [f"{name}.bias_quantized"] if bias else []
                more = field_length(len(domain)) if domain else 0
                total += message_length(words, op_length(kind), attributes, more)
                total += (
                    0 if node.shared else integer_weight_length(weight, part.shape, stored.bits[0])
                )
                total += 2 * scalar_length(out)
                total += tensor_length(f"{name}.bias_quantized", part.shape[:1], 4) if bias else 0
            given = scale = out
        return total

    def _add_pairs(self, file: _File, layers: Mapping[str, Stored], joined: list[bool]) -> None:
        names = self._names(layers, joined)
        paired: set[str] = set()
        scales: dict[str, str] = {}  # of what only passes on its input's scale
        for node, on in zip(self.nodes, joined, strict=True):
            if on and node.kind != "bounded":
                paired.update(names[n] for n in (*node.inputs, *node.outputs))
                if node.kind == "passing" or node.op == "AveragePool":
                    scale = scales.get(names[node.inputs[0]], names[node.inputs[0]])
                    scales.update({names[n]: scale for n in node.outputs})
        file.total += sum(self._pair(name, scales.get(name, name)) for name in paired)
        for node, on in zip(self.nodes, joined, strict=True):
            if on and node.kind == "bounded":
                continue
            inputs = [names[n] for n in node.inputs]
            inputs = [f"{n}_DequantizeLinear_Output" if n in paired else n for n in inputs]
            outputs = [names[n] for n in node.outputs]
            if node.kind != "layer":
                file.total += self._plain(node, inputs, outputs)
                continue
            stored = layers.get(layer_of(node.name)) or self._as_is(node)
            if on:
                file.total += self._paired_layer(node, stored, inputs[0], outputs[0])
            else:
                file.total += self._layer(node, stored, inputs, outputs, False)

    def _pair(self, name: str, scale: str) -> int:
        """A tensor rounded between two nodes, by its own scale or that of another one."""
        made, back = f"{name}_QuantizeLinear_Output", f"{name}_DequantizeLinear_Output"
        words = [f"{name}_QuantizeLinear", name, *scale_names(scale), made]
        total = message_length(words, op_length("QuantizeLinear"))
        words = [f"{name}_DequantizeLinear", made, *scale_names(scale), back]
        total += message_length(words, op_length("DequantizeLinear"))
        return total + (2 * scalar_length(name) if scale == name else 0)

    def _names(self, layers: Mapping[str, Stored], joined: list[bool]) -> dict[str, str]:
        """What each tensor is called: a factorised layer's output has its last factor's name, and
        the input of a vanished Relu that of the Relu's output."""
        names = {name: name for node in self.nodes for name in (*node.inputs, *node.outputs)}
        for node, on in zip(self.nodes, joined, strict=True):
            if node.kind == "layer" and node.outputs[0] not in self.outputs:
                stored = layers.get(layer_of(node.name))
                if stored is not None:
                    names[node.outputs[0]] += stored.parts[-1].suffix
            elif node.kind == "bounded" and on:
                names[node.inputs[0]] = names[node.outputs[0]]
        return names

    def _paired_layer(self, node: Node, stored: Stored, given: str, made: str) -> int:
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
            total += message_length(words, op_length(op), attributes)
            total += 0 if node.shared else integer_weight_length(weight, part.shape, stored.bits[0])
            back = f"{weight}_DequantizeLinear_Output"
            total += self._dequantise(weight, f"{weight}_quantized", back, weight)
            if bias:
                integers = f"{zeros}_quantized"
                total += self._dequantise(zeros, integers, zeros, integers)
                tensors = (integers, *scale_names(integers))
                total += sum(tensor_length(n, part.shape[:1], 4) for n in tensors)
            if not last:
                total += self._pair(out, out)
                given = f"{out}_DequantizeLinear_Output"
        self._memo[key] = total
        return total

    @staticmethod
    def _dequantise(stem: str, integers: str, made: str, scale: str) -> int:
        words = [f"{stem}_DequantizeLinear", integers, *scale_names(scale), made]
        return message_length(words, op_length("DequantizeLinear"), AXIS)
