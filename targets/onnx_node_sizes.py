"""How many bytes the nodes of one operator or layer take in a file, with their tensors."""

from __future__ import annotations

from onnx import ModelProto

from .onnx_float_layers import SUFFIXES, TWIN
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
    weight_length,
)
from .onnx_skeleton import Node, Part, Skeleton, Stored

MICROSOFT = "com.microsoft"
_QUANTIZE, _DEQUANTIZE = op_length("QuantizeLinear"), op_length("DequantizeLinear")
_INTEGER = {
    "Conv": ("QLinearConv", ""),
    "MatMul": ("QLinearMatMul", ""),
    "Gemm": ("QGemm", MICROSOFT),
}


class NodeSizes(Skeleton):
    """Bytes of single nodes, of layers, and of the conversions around them.

    A node's bytes follow from the names of its tensors: ``inputs`` and ``outputs`` as they are
    called in the file. What was added up once is remembered.
    """

    def __init__(self, model: ModelProto) -> None:
        super().__init__(model)
        self._memo: dict[tuple[object, ...], int] = {}
        self._whole: dict[str, Stored] = {}

    def _quantise(self, name: str) -> int:
        """A QuantizeLinear node with its scale and zero point."""
        words = [f"{name}_QuantizeLinear", name, *scale_names(name), f"{name}_quantized"]
        return message_length(words, _QUANTIZE) + 2 * scalar_length(name)

    @staticmethod
    def _by_channel(name: str, channels: int) -> tuple[list[str], int]:
        """The scale and zero point with an entry a channel: their names and bytes."""
        words = [name + suffix for suffix in SUFFIXES]
        scale, zero = words
        size = tensor_length(scale, (channels,), 4) + tensor_length(zero, (channels,), 1)
        return words, size

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
            self._whole[node.name] = Stored((Part("", shape, node.groups),))
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

    def _pair(self, name: str, scale: str, channels: int = 0, twin: bool = False) -> int:
        """A tensor rounded between two nodes, by its own scale or that of another one.

        channels: it is dequantised by as many scales; twin: by a second node.
        """
        made, back = f"{name}_QuantizeLinear_Output", f"{name}_DequantizeLinear_Output"
        node, scales = f"{name}_DequantizeLinear", list(scale_names(scale))
        total = message_length([f"{name}_QuantizeLinear", name, *scales, made], _QUANTIZE)
        if twin or not channels:
            total += message_length([node, made, *scales, back], _DEQUANTIZE)
        if channels:
            many, size = self._by_channel(back, channels)
            more = TWIN if twin else ""
            total += size + message_length([node + more, made, *many, back + more], _DEQUANTIZE)
        return total + (2 * scalar_length(name) if scale == name else 0)

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
        return message_length(words, _DEQUANTIZE, AXIS)
