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

from .onnx_float_layers import TWIN
from .onnx_lengths import (
    field_length,
    message_length,
    op_length,
    scalar_length,
    scale_names,
    varint,
)
from .onnx_node_sizes import MICROSOFT, NodeSizes
from .onnx_skeleton import Stored, layer_of


@dataclass
class _File:
    """A file being added up: bytes of nodes and tensors, what is held in 8 bits, under which
    names (those of its integers and of its scale), and what is dequantised channel by channel."""

    total: int = 0
    held: dict[str, tuple[str, str]] = field(default_factory=dict)
    by_channel: dict[str, int] = field(default_factory=dict)  # tensor -> channels
    paired: set[str] = field(default_factory=set)
    microsoft: bool = False


class FileSize(NodeSizes):
    """Bytes of the files that a writer makes of one network.

    model: the uncompressed network as exported (float32, layers named). format: ``"qoperator"`` or
    ``"qdq"``. owners: constant (not a layer's own) -> module whose output channels it follows.
    """

    def __init__(self, model: ModelProto, format: str, owners: Mapping[str, str]) -> None:
        super().__init__(model)
        self._format, self._owners = format, dict(owners)

    def bytes(self, layers: Mapping[str, Stored], kept: Mapping[str, tuple[int, int]]) -> int:
        """Size of the file. layers: every layer by name. kept: module -> (channels left, of)."""
        joined = self.joined(layers)
        file = _File(by_channel=self.dequantised(layers, joined))
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
                    names[node.outputs[0]] = renamed = node.outputs[0] + suffix
                    if node.outputs[0] in file.by_channel:
                        file.by_channel[renamed] = file.by_channel[node.outputs[0]]
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
                scales, size = list(scale_names(scale)), 0
                if name in file.by_channel:
                    scales, size = self._by_channel(name, file.by_channel[name])
                words = [f"{name}_DequantizeLinear", f"{q}_quantized", *scales, name]
                file.total += size + message_length(words, op_length("DequantizeLinear"))
                file.paired.add(name)

    def _add_pairs(self, file: _File, layers: Mapping[str, Stored], joined: list[bool]) -> None:
        names = self._names(layers, joined)
        paired: set[str] = set()
        integer: set[str] = set()  # what 8-bit nodes read
        channels = {names[name]: count for name, count in file.by_channel.items()}
        scales: dict[str, str] = {}  # of what only passes on its input's scale
        for node, on in zip(self.nodes, joined, strict=True):
            if on and node.kind != "bounded":
                paired.update(names[n] for n in (*node.inputs, *node.outputs))
                integer.update(names[n] for n in node.inputs)
                if node.kind == "passing" or node.op == "AveragePool":
                    scale = scales.get(names[node.inputs[0]], names[node.inputs[0]])
                    scales.update({names[n]: scale for n in node.outputs})
        file.total += sum(
            self._pair(name, scales.get(name, name), channels.get(name, 0), name in integer)
            for name in paired
        )
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
                if {names[node.inputs[0]]} <= channels.keys() & paired & integer:
                    inputs[0] += TWIN
                file.total += self._layer(node, stored, inputs, outputs, False)

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
