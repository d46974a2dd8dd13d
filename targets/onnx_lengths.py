"""Lengths of protobuf messages in an ONNX file, from the names and shapes that are in them."""

from __future__ import annotations

from math import prod

import numpy as np
from onnx import TensorProto, numpy_helper

BESIDE = 2  # bytes of an empty doc string, which every node and tensor carries


BETA, AXIS = 16, 13  # bytes of the attributes ``beta`` and ``axis``


def scale_names(name: str) -> tuple[str, str]:
    return f"{name}_scale", f"{name}_zero_point"


def op_length(op: str) -> int:
    return field_length(len(op)) + BESIDE


def scalar_length(name: str) -> int:
    """Mean bytes of a scale and a zero point of one number."""
    return 2 + len(name) + 19


def strings_length(words: list[str]) -> int:
    return sum(field_length(len(word)) for word in words)


def varint(number: int) -> int:
    return max(1, (int(number).bit_length() + 6) // 7)


def field_length(length: int) -> int:
    return 1 + varint(length) + length


def payload_length(tensor: TensorProto) -> int:
    return int(np.asarray(numpy_helper.to_array(tensor)).nbytes)


def tensor_length(name: str, shape: tuple[int, ...], item: int) -> int:
    """A stored tensor of ``item`` bytes an element."""
    dims = sum(1 + varint(d) for d in shape)
    content = field_length(item * prod(shape))
    return field_length(dims + 2 + field_length(len(name)) + content + BESIDE)


def message_length(words: list[str], *more: int) -> int:
    """A node with these names in it, and ``more`` bytes besides."""
    return field_length(strings_length(words) + sum(more))
