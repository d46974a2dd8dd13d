"""What is in an ONNX file, read without the onnx library: is it a plain network and no more?

A reader of Protocol Buffers that knows only the fields it must look into (onnx.proto, IR 13),
walks every occurrence of them, and refuses whatever it does not understand.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..errors import CandidateError

DOMAINS = frozenset({"", "ai.onnx", "com.microsoft"})
CONTROL_FLOW = frozenset({"If", "Loop", "Scan", "SequenceMap"})
MICROSOFT = frozenset(
    {
        *("QLinearAdd", "QLinearMul", "QLinearAveragePool", "QLinearGlobalAveragePool"),
        *("QLinearConcat", "QLinearLeakyRelu", "QLinearSigmoid", "QLinearSoftmax", "QLinearWhere"),
        *("QGemm", "QAttention", "QLinearReduceMean", "QuantizeLinear", "DequantizeLinear"),
        *("MatMulNBits", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM"),
        *("FusedConv", "FusedGemm", "FusedMatMul", "Gelu", "BiasGelu", "FastGelu", "QuickGelu"),
        *("Attention", "MultiHeadAttention", "LayerNormalization", "SkipLayerNormalization"),
        *("GroupQueryAttention", "RotaryEmbedding", "SimplifiedLayerNormalization", "NhwcMaxPool"),
        "SkipSimplifiedLayerNormalization",
    }
)
"""The operators of ONNX Runtime's own domain that compressed networks use."""
MOST_NODES, MOST_TENSORS, MOST_FIELDS = 20_000, 100_000, 2_000_000

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass
class Summary:
    """What a model holds: how many nodes, tensors, and fields of the file in all."""

    nodes: int = 0
    tensors: int = 0
    fields: int = 0


def inspect(data: bytes, where: str = "model") -> Summary:
    """Check that ``data`` is an ONNX model that may be run: one graph of permitted operators.

    Raises CandidateError naming what is refused: weights in another file, control flow, functions,
    operators of other domains, graphs too large, and bytes that are no such file.
    """
    found = Summary()
    try:
        _model(memoryview(data), found)
    except _Malformed as error:
        raise CandidateError(f"{where}: not an ONNX file ({error})") from None
    except _Refused as error:
        raise CandidateError(f"{where}: {error}") from None
    if not found.nodes:
        raise CandidateError(f"{where}: not an ONNX file (no graph in it)")
    return found


class _Malformed(Exception):
    pass


class _Refused(Exception):
    pass


def _model(data: memoryview, found: Summary) -> None:
    for number, value in _messages(
        data, {7: "graph", 8: "opset", 20: "training", 25: "function"}, found
    ):
        if number == 7:
            _graph(value, found)
        elif number == 8:
            for _, domain in _messages(value, {1: "domain"}, found):
                _domain(_text(domain))
        elif number == 20:
            raise _Refused("it carries training information; export for inference")
        else:
            raise _Refused("it defines functions; export with them inlined")


def _graph(data: memoryview, found: Summary) -> None:
    for number, value in _messages(data, {1: "node", 5: "initializer", 15: "sparse"}, found):
        if number == 1:
            found.nodes += 1
            _node(value, found)
        elif number == 5:
            _tensor(value, found)
        else:
            _sparse(value, found)
    if found.nodes > MOST_NODES:
        raise _Refused(f"{found.nodes:,} nodes; at most {MOST_NODES:,} are taken")


def _node(data: memoryview, found: Summary) -> None:
    operators, domains = [], [""]
    for number, value in _messages(data, {4: "operator", 5: "attribute", 7: "domain"}, found):
        if number == 4:
            operators.append(_text(value))
        elif number == 7:
            domains.append(_text(value))
        else:
            _attribute(value, found)
    for operator in operators:
        if operator in CONTROL_FLOW:
            raise _Refused(f"operator {operator!r} is control flow, which the agent does not run")
    for domain in domains:
        _domain(domain)
    if "com.microsoft" in domains:
        for operator in operators:
            if operator not in MICROSOFT:
                raise _Refused(f"operator 'com.microsoft.{operator}' is not one the agent runs")


def _attribute(data: memoryview, found: Summary) -> None:
    known = {5: "tensor", 6: "graph", 10: "tensors", 11: "graphs", 22: "sparse", 23: "sparse"}
    for number, value in _messages(data, known, found):
        if number in (6, 11):
            raise _Refused("a node holds a graph of its own (control flow)")
        if number in (5, 10):
            _tensor(value, found)
        else:
            _sparse(value, found)


def _sparse(data: memoryview, found: Summary) -> None:
    for _, value in _messages(data, {1: "values", 2: "indices"}, found):
        _tensor(value, found)


def _tensor(data: memoryview, found: Summary) -> None:
    found.tensors += 1
    if found.tensors > MOST_TENSORS:
        raise _Refused(f"more than {MOST_TENSORS:,} tensors")
    for number, kind, _, value in _fields(data, found):
        if number == 13 or (number == 14 and (kind != _VARINT or value != 0)):
            raise _Refused("a tensor lies in another file; write one file without external data")


def _domain(name: str) -> None:
    if name not in DOMAINS:
        raise _Refused(f"operators of domain {name[:60]!r} need a library that the agent has not")


def _text(value: memoryview) -> str:
    try:
        return bytes(value[:200]).decode("ascii")
    except UnicodeDecodeError:
        raise _Malformed("a name is not plain text") from None


def _messages(
    data: memoryview, known: dict[int, str], found: Summary
) -> Iterator[tuple[int, memoryview]]:
    """The length-delimited fields whose number is ``known``; other fields are skipped."""
    for number, kind, content, _ in _fields(data, found):
        if number in known:
            if kind != _BYTES:
                raise _Malformed(f"field {known[number]!r} is of another type")
            yield number, content


def _fields(data: memoryview, found: Summary) -> Iterator[tuple[int, int, memoryview, int]]:
    """Every field as (number, wire type, content where it is bytes, value where it is a varint)."""
    at, end = 0, len(data)
    while at < end:
        found.fields += 1
        if found.fields > MOST_FIELDS:
            raise _Refused(f"more than {MOST_FIELDS:,} fields; write weights as raw data")
        key, at = _varint(data, at)
        number, kind = key >> 3, key & 7
        if not 0 < number < 1 << 29:
            raise _Malformed(f"field number {number}")
        content, value = data[:0], 0
        if kind == _VARINT:
            value, at = _varint(data, at)
        elif kind == _BYTES:
            length, at = _varint(data, at)
            if length > end - at:
                raise _Malformed("cut off in the middle")
            content = data[at : at + length]
            at += length
        elif kind in (_FIXED64, _FIXED32):
            at += 8 if kind == _FIXED64 else 4
            if at > end:
                raise _Malformed("cut off in the middle")
        else:
            raise _Malformed(f"wire type {kind}")
        yield number, kind, content, value


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for place in range(10):
        if at + place >= len(data):
            raise _Malformed("cut off in the middle")
        byte = data[at + place]
        value |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            return value, at + place + 1
    raise _Malformed("a number of more than ten bytes")
