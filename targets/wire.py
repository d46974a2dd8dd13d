"""What travels between a searcher and a board: one line of JSON, then a float32 array.

    {"model": "9f86…", "nonce": "…", "shape": [1, 3, 32, 32]}\\n<bytes of the array>

Nothing else is ever decoded: no pickle, no NumPy headers, no file names.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

PROTOCOL = 2
"""Of the conversation; a searcher and an agent must speak the same."""
DEFAULT_PORT = 8765
TIMINGS = 8
"""An agent's wall limit has room for so many times the ``seconds`` of a timing; at most two times
that are spent on each of two timings, and once on each learning of the speed states before."""
LONGEST_LINE = 65_536
MOST_AXES = 8
_DIGEST = re.compile(r"[0-9a-f]{64}")


class WireError(ValueError):
    """These bytes are no message."""


def pack(fields: Mapping[str, Any], array: np.ndarray | None = None) -> bytes:
    """A message of ``fields`` (plain finite JSON) and an array, sent as float32."""
    line = dict(fields)
    data = b""
    if array is not None:
        line["shape"] = list(array.shape)
        data = np.ascontiguousarray(array, dtype="<f4").tobytes()
    return json.dumps(line, separators=(",", ":"), allow_nan=False).encode() + b"\n" + data


def unpack(message: bytes) -> tuple[dict[str, Any], np.ndarray | None]:
    """The fields (without ``shape``) and the array of a message, or None where it has none.

    Raises WireError where the bytes are not exactly one message.
    """
    end = message.find(b"\n", 0, LONGEST_LINE)
    if end < 0:
        raise WireError(f"no line of JSON in the first {LONGEST_LINE:,} bytes")
    try:
        fields = json.loads(
            message[:end].decode("utf-8"),
            parse_constant=_finite,
            parse_float=_finite,
            parse_int=_whole,
        )
    except (ValueError, RecursionError) as error:
        raise WireError(f"the first line is not JSON ({type(error).__name__})") from None
    if not isinstance(fields, dict):
        raise WireError("the first line is not a JSON object")
    rest = memoryview(message)[end + 1 :]
    if "shape" not in fields:
        if len(rest):
            raise WireError("data without a shape")
        return fields, None
    shape = fields.pop("shape")
    sound = isinstance(shape, list) and len(shape) <= MOST_AXES
    if not sound or not all(type(n) is int and 0 < n < 2**40 for n in shape):
        raise WireError(f"the shape {str(shape)[:60]} is not one of positive whole numbers")
    if 4 * math.prod(shape) != len(rest):
        raise WireError(f"{len(rest)} bytes are no float32 array of shape {shape}")
    return fields, np.frombuffer(rest, dtype="<f4").reshape(shape)


def is_digest(text: object) -> bool:
    """Whether this is a SHA-256 in lower-case hexadecimal."""
    return isinstance(text, str) and _DIGEST.fullmatch(text) is not None


def _whole(text: str) -> int:
    """A whole number that other arithmetic than Python's can hold too."""
    if len(text) > 18:
        raise ValueError(text)
    return int(text)


def _finite(text: str) -> float:
    """A number of JSON; ``NaN``, ``Infinity`` and ``1e999`` are none."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value
