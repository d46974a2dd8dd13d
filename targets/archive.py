"""A packed container for ONNX files whose weights are sparse or take few values.

No runtime loads it: it is decoded into the same ONNX file first, initialisers bit for bit. It
stores what no runtime's format can (3- and 6-bit weights, codebooks, powers of two, zeros) at the
size it really has: :mod:`tensor_code` for every tensor, then deflate (RFC 1951) over everything.

Layout: magic with version, sha256 of the rest, lengths of the body and of all tensors together
(8 bytes each, little endian), the deflated body: the model without its tensors' values (length,
protobuf), then the tensors' codes in the model's order.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from ..errors import CandidateError, InputError
from .tensor_code import Reader, damaged, decode_tensor, encode_tensor

MAGIC = b"PARETUN\x01"
MOST_BYTES = 2**31
_HEAD = len(MAGIC) + 32


def encode(path: Path | str) -> bytes:
    """The container of an exported ONNX file; its length is ``archive_bytes``.

    Raises CandidateError when the file is no ONNX model or keeps its weights elsewhere.
    """
    path = Path(path)
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:
        raise CandidateError(f"{path.name}: not an ONNX file ({type(error).__name__})") from error
    codes, total = [], 0
    for tensor in model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            raise CandidateError(f"{path.name}: {tensor.name} is kept in another file")
        if tensor.data_type == TensorProto.STRING:
            raise CandidateError(f"{path.name}: {tensor.name} holds text")
        values = _values(tensor)
        total += values.nbytes
        codes.append(encode_tensor(values))
        for field in _FIELDS:
            tensor.ClearField(field)
    frame = model.SerializeToString(deterministic=True)
    body = struct.pack("<Q", len(frame)) + frame + b"".join(codes)
    rest = struct.pack("<QQ", len(body), total) + zlib.compress(body, 9)
    return MAGIC + hashlib.sha256(rest).digest() + rest


def decode(data: bytes, where: str = "archive", most_bytes: int = MOST_BYTES) -> bytes:
    """The ONNX file of a container: the same graph, every initialiser the same bit for bit.

    Raises InputError (at ``where``) on anything that :func:`encode` did not write, or that would
    unpack to more than ``most_bytes``.

    >>> Path("model.onnx").write_bytes(decode(Path("model.archive").read_bytes()))
    """
    if data[: len(MAGIC) - 1] != MAGIC[:-1]:
        raise InputError(where, "not a paretune archive", "give the file that encode wrote")
    if data[len(MAGIC) - 1 : len(MAGIC)] != MAGIC[-1:]:
        raise InputError(
            where, f"archive version {data[len(MAGIC) - 1 : len(MAGIC)]!r} is unknown", "update"
        )
    rest = data[_HEAD:]
    if hashlib.sha256(rest).digest() != data[len(MAGIC) : _HEAD]:
        raise damaged(where)
    length, total = Reader(rest, where).numbers("QQ")
    if length + total > most_bytes:
        raise InputError(where, f"it unpacks to {length + total} bytes", f"most: {most_bytes}")
    return _unpacked(_inflated(rest[16:], length, where), total, where)


def _inflated(packed: bytes, length: int, where: str) -> bytes:
    engine = zlib.decompressobj()
    try:
        body = engine.decompress(packed, length + 1)
    except zlib.error as error:
        raise damaged(where) from error
    if len(body) != length or not engine.eof or engine.unused_data:
        raise damaged(where)
    return body


def _unpacked(body: bytes, total: int, where: str) -> bytes:
    reader = Reader(body, where)
    (length,) = reader.numbers("Q")
    try:
        model = onnx.load_model_from_string(reader.take(length))
    except InputError:
        raise
    except Exception as error:
        raise damaged(where) from error
    for tensor in model.graph.initializer:
        shape, dtype = _layout(tensor, where)
        total -= int(np.prod(shape, dtype=object)) * dtype.itemsize
        if total < 0:
            raise damaged(where)
        tensor.raw_data = decode_tensor(reader, shape, dtype).tobytes()
    if total or reader.place != len(body):
        raise damaged(where)
    return bytes(model.SerializeToString(deterministic=True))


_FIELDS = (
    "raw_data",
    "float_data",
    "int32_data",
    "int64_data",
    "double_data",
    "uint64_data",
)


def _is_packed(data_type: int) -> int:
    """Elements in a byte where several share one, else 0."""
    name = TensorProto.DataType.Name(data_type)
    return {"INT4": 2, "UINT4": 2, "FLOAT4E2M1": 2, "INT2": 4, "UINT2": 4}.get(name, 0)


def _values(tensor: TensorProto) -> np.ndarray:
    """The stored values, as an array that ``tobytes`` turns into ``raw_data``."""
    if _is_packed(tensor.data_type) or tensor.HasField("raw_data"):
        if not tensor.HasField("raw_data"):
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))
        shape, dtype = _layout(tensor, tensor.name)
        return np.frombuffer(tensor.raw_data, dtype).reshape(shape)
    return np.ascontiguousarray(numpy_helper.to_array(tensor))


def _layout(tensor: TensorProto, where: str) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of the stored values; elements that share bytes are taken as bytes."""
    shape = tuple(tensor.dims)
    try:
        shared = _is_packed(tensor.data_type)
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
    except (KeyError, ValueError, TypeError) as error:
        raise damaged(where) from error
    if any(d < 0 or d > MOST_BYTES for d in shape) or dtype.itemsize > 8 or dtype.hasobject:
        raise damaged(where)
    if shared:
        count = int(np.prod(shape, dtype=object))
        return (-(-count // shared),), np.dtype(np.uint8)
    return shape, dtype
