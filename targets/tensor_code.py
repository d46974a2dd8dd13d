"""Lossless codes for one tensor: whatever made its values, the smallest exact form is chosen.

Each row (output channel) is stored as the smallest of: its bytes; one scale and small integers,
where the values are integer multiples of it to the last bit; or a table of its distinct values and
their places. A table may also serve the whole tensor, and a bit mask may take the zeros out first.
Nothing needs to be known of the quantiser, and decoding gives every value back bit for bit.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field

import numpy as np

from ..errors import InputError

RAW, TABLE, STEPS, ROWS = range(4)
MOST_VALUES = 256
MINUS_ZERO = np.uint32(1 << 31)


@dataclass
class Reader:
    """Takes bytes from the front of ``data``; what is not there is an InputError at ``where``."""

    data: bytes
    where: str
    place: int = field(default=0)

    def take(self, count: int) -> bytes:
        """The next ``count`` bytes."""
        if count < 0 or self.place + count > len(self.data):
            raise damaged(self.where)
        self.place += count
        return self.data[self.place - count : self.place]

    def numbers(self, form: str) -> tuple[int, ...]:
        """Integers by a :mod:`struct` format."""
        return struct.unpack("<" + form, self.take(struct.calcsize("<" + form)))


def damaged(where: str) -> InputError:
    """The one answer to every container that is not what ``encode`` wrote."""
    return InputError(where, "the archive is damaged or not one", "make it again from the model")


def encode_tensor(values: np.ndarray) -> bytes:
    """The smallest code of an array (out, ...), as it will be after deflating."""
    bits = _bits(values)
    rows = bits.reshape(len(bits), -1) if values.ndim > 1 and bits.size else bits.reshape(1, -1)
    floats = values.dtype == np.float32
    choices = [bytes([0]) + _whole(list(rows), floats)]
    zero = rows == 0
    if zero.mean() > 0.1 if zero.size else False:
        mask = np.packbits(~zero).tobytes()
        left = [row[~gone] for row, gone in zip(rows, zero, strict=True)]
        choices.append(bytes([1]) + mask + _whole(left, floats))
    return min(choices, key=_deflated)


def decode_tensor(reader: Reader, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """The array that :func:`encode_tensor` was given. Raises InputError on anything else."""
    kind = np.dtype(f"u{dtype.itemsize}")
    count = int(np.prod(shape, dtype=np.int64))
    rows = (shape[0], count // shape[0]) if len(shape) > 1 and count else (1, count)
    (sparse,) = reader.take(1)
    if sparse > 1:
        raise damaged(reader.where)
    stay = np.ones(rows, dtype=bool)
    if sparse:
        mask = np.frombuffer(reader.take((count + 7) // 8), np.uint8)
        stay = np.unpackbits(mask, count=count).astype(bool).reshape(rows)
    bits = np.zeros(rows, dtype=kind)
    bits[stay] = _read_whole(reader, stay.sum(1), kind)
    return bits.reshape(shape).view(dtype)


def _whole(rows: list[np.ndarray], floats: bool) -> bytes:
    together = np.concatenate(rows) if rows else np.zeros(0, np.uint8)
    choices = [bytes([RAW]) + _planes(together)]
    for tight in (True, False):
        if table := _table(together, tight):
            choices.append(bytes([TABLE]) + table)
        if len(rows) > 1:
            choices.append(bytes([ROWS]) + b"".join(_row(row, floats, tight) for row in rows))
        elif floats and (steps := _steps(together, tight)):
            choices.append(bytes([STEPS]) + steps)
        if len(min(choices, key=len)) == len(choices[0]):
            break  # nothing but the bytes themselves
    return min(choices, key=_deflated)


def _row(row: np.ndarray, floats: bool, tight: bool) -> bytes:
    if floats and (steps := _steps(row, tight)):
        return bytes([STEPS]) + steps
    table = _table(row, tight)
    if table is not None and len(table) < row.nbytes:
        return bytes([TABLE]) + table
    return bytes([RAW]) + _planes(row)


def _read_whole(reader: Reader, counts: np.ndarray, kind: np.dtype) -> np.ndarray:
    (method,) = reader.take(1)
    if method == ROWS:
        parts = [_read(reader, reader.take(1)[0], int(n), kind) for n in counts]
        return np.concatenate(parts) if parts else np.zeros(0, kind)
    return _read(reader, method, int(counts.sum()), kind)


def _read(reader: Reader, method: int, count: int, kind: np.dtype) -> np.ndarray:
    if method == RAW:
        planes = np.frombuffer(reader.take(count * kind.itemsize), np.uint8)
        return np.ascontiguousarray(planes.reshape(kind.itemsize, count).T).view(kind).reshape(-1)
    if method == TABLE:
        (size,) = reader.numbers("H")
        table = np.frombuffer(reader.take(size * kind.itemsize), kind)
        codes = _read_codes(reader, count)
        if count and (not size or int(codes.max()) >= size):
            raise damaged(reader.where)
        values: np.ndarray = table[codes]
        return values
    if method == STEPS and kind.itemsize == 4:
        scale = np.frombuffer(reader.take(4), np.float32)[0]
        lowest, minus = reader.numbers("hB")
        codes = _read_codes(reader, count)
        with np.errstate(all="ignore"):
            steps = codes.astype(np.float32) + np.float32(lowest - bool(minus))
            values = (steps * scale).view(np.uint32)
        return np.where(codes == 0, MINUS_ZERO, values) if minus else values
    raise damaged(reader.where)


def _table(bits: np.ndarray, tight: bool) -> bytes | None:
    """At most 256 distinct values, and for each element its place among them."""
    values, codes = np.unique(bits, return_inverse=True)
    if len(values) > MOST_VALUES:
        return None
    return struct.pack("<H", len(values)) + values.tobytes() + _codes(codes.astype(np.uint8), tight)


def _steps(bits: np.ndarray, tight: bool) -> bytes | None:
    """A float32 scale and integers, if their products are exactly the values.

    The lowest integer is stored with the scale; minus zero, where it occurs, has code 0.
    """
    found = bits.view(np.float32)
    values = np.unique(found)
    nonzero = values[values != 0]
    if not len(nonzero) or len(values) > MOST_VALUES or not np.isfinite(values).all():
        return None
    gaps = np.diff(np.unique(np.append(values, np.float32(0))).astype(np.float64))
    largest = float(nonzero[np.abs(nonzero).argmax()])
    minus = bits == MINUS_ZERO
    for part in (1, 2, 3):
        most = abs(largest) / (float(gaps.min()) / part)
        if most > MOST_VALUES:
            return None
        near = np.float32(abs(largest) / round(most))
        for nudge in (0, 1, -1, 2, -2, 3, -3):
            scale = (near.view(np.int32) + np.int32(nudge)).view(np.float32)
            with np.errstate(all="ignore"):
                steps = np.rint(found / scale)
                exact = np.array_equal(steps * scale, found)
            lowest = int(steps.min()) if exact else 0
            if exact and steps.max() - lowest + minus.any() < MOST_VALUES:
                codes = (steps - lowest + minus.any()).astype(np.uint8)
                codes[minus] = 0
                head = scale.tobytes() + struct.pack("<hB", lowest, bool(minus.any()))
                return head + _codes(codes, tight)
    return None


def _codes(codes: np.ndarray, tight: bool) -> bytes:
    """Small integers, in as few bits as they need or (which may deflate better) a byte each."""
    width = int(codes.max(initial=0)).bit_length()
    if not tight and width:
        return bytes([8]) + codes.tobytes()
    packed = np.unpackbits(codes[:, None], axis=1)[:, 8 - width :] if width else codes[:0]
    return bytes([width]) + np.packbits(packed).tobytes()


def _read_codes(reader: Reader, count: int) -> np.ndarray:
    (width,) = reader.take(1)
    if width > 8:
        raise damaged(reader.where)
    packed = np.frombuffer(reader.take((count * width + 7) // 8), np.uint8)
    if width == 8:
        return packed
    codes = np.zeros((count, 8), np.uint8)
    codes[:, 8 - width :] = np.unpackbits(packed, count=count * width).reshape(count, width)
    return np.packbits(codes, axis=1).reshape(-1)


def _bits(values: np.ndarray) -> np.ndarray:
    contiguous = np.ascontiguousarray(values)
    return contiguous.view(f"u{values.dtype.itemsize}").reshape(values.shape)


def _planes(bits: np.ndarray) -> bytes:
    """All first bytes, then all second ones ...: exponents lie together and deflate."""
    return bits[:, None].view(np.uint8).T.tobytes()


def _deflated(code: bytes) -> int:
    return len(zlib.compress(code, 6))
