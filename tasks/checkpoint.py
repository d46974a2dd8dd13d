"""Weights files read without running anything in them and without trusting their claims.

safetensors: the header is bounded and compared before tensors are read. torch: ``weights_only``,
and the zip directory is checked first, so that a small file cannot unfold into a huge one.
"""

from __future__ import annotations

import json
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from .user_code import last_line

MOST_TENSORS = 100_000
MOST_HEADER_BYTES = 32 * 1024 * 1024

RefusedCode = pickle.UnpicklingError
"""What ``weights_only`` raises on a file that holds more than weights."""

Header = dict[str, tuple[tuple[int, ...], bool]]
"""tensor name -> (shape, whether it holds floating-point numbers)"""

_AS_SAFETENSORS = (
    "load it where you trust it and save the plain state_dict: "
    "safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')"
)


def tensor_header(tensors: Mapping[str, Tensor]) -> Header:
    """The header of tensors already at hand."""
    return {n: (tuple(t.shape), t.is_floating_point()) for n, t in tensors.items()}


def safetensors_header(path: Path, where: str) -> Header:
    """Names, shapes and kinds of a safetensors file, from its header alone."""
    size = path.stat().st_size
    with open(path, "rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if length < 2 or length > MOST_HEADER_BYTES or 8 + length > size:
            raise InputError(
                where,
                f"{path.name!r} is not a safetensors file, or is cut off "
                f"(header of {length:,} bytes in a file of {size:,})",
                "fetch or save it again",
            )
        raw = stream.read(length)
    try:
        data = json.loads(raw)
        entries = {n: e for n, e in data.items() if n != "__metadata__"}
        if len(entries) > MOST_TENSORS:
            raise InputError(where, f"{len(entries):,} tensors, over {MOST_TENSORS:,}", "")
        end = max((int(e["data_offsets"][1]) for e in entries.values()), default=0)
        header = {
            str(name): (tuple(int(d) for d in entry["shape"]), entry["dtype"][:1] in ("F", "B"))
            for name, entry in entries.items()
        }
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise InputError(
            where, f"{path.name!r} has a broken safetensors header", "fetch or save it again"
        ) from error
    if 8 + length + end > size:
        raise InputError(
            where,
            f"{path.name!r} is cut off: {size:,} bytes of {8 + length + end:,}",
            "fetch or save it again",
        )
    return {n: (s, f and entries[n]["dtype"] != "BOOL") for n, (s, f) in header.items()}


def read_safetensors(path: Path, where: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file; check :func:`safetensors_header` first."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except (SafetensorError, OSError, ValueError, MemoryError, KeyError) as error:
        raise InputError(
            where, f"{path.name!r} cannot be read: {last_line(error)}", "fetch or save it again"
        ) from error


def read_torch(path: Path, where: str, capacity: int) -> dict[str, Tensor]:
    """The state_dict in a ``torch.save`` file, read with ``weights_only=True``.

    capacity: bytes of the network's tensors; a file that claims far more is refused unread.
    """
    zipped = zipfile.is_zipfile(path)
    if zipped:
        _check_zip(path, where, capacity)
    elif path.stat().st_size > _allowance(capacity):
        raise InputError(where, f"{path.name!r} is far larger than the network", "")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # on unusual pickle protocols
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except RefusedCode as error:
        # the original text advises to switch the protection off: it is not passed on
        named = re.search(r"(?:GLOBAL|Unsupported class) ([\w.]+)", str(error))
        what = f" ({named[1]})" if named else ""
        if not named and not zipped and not _starts_a_pickle(path):
            raise InputError(
                where, f"{path.name!r} is not a torch.save file, or is cut off", "save it again"
            ) from None
        raise InputError(
            where,
            f"{path.name!r} holds code{what}, not only weights, and is not loaded",
            _AS_SAFETENSORS,
        ) from None
    except Exception as error:
        raise InputError(
            where,
            f"{path.name!r} is not a torch.save file, or is cut off ({last_line(error)[:120]})",
            "fetch or save it again",
        ) from None
    return _state_dict(content, path, where)


def _check_zip(path: Path, where: str, capacity: int) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise InputError(where, f"{path.name!r} is cut off or damaged", "save it again") from error
    names = [entry.filename for entry in entries]
    if any(n.endswith("/constants.pkl") or "/code/" in n or "archive_format" in n for n in names):
        raise InputError(
            where, f"{path.name!r} is a program (TorchScript or .pt2)", _AS_SAFETENSORS
        )
    if len(entries) > MOST_TENSORS:
        raise InputError(where, f"{len(entries):,} records, over {MOST_TENSORS:,}", "")
    claimed = sum(entry.file_size for entry in entries)
    packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
    if packed or claimed > path.stat().st_size or claimed > _allowance(capacity):
        raise InputError(
            where,
            f"{path.name!r} unfolds to {claimed:,} bytes from {path.stat().st_size:,} "
            f"for a network of {capacity:,}",
            "save the plain state_dict with torch.save or safetensors",
        )


def _allowance(capacity: int) -> int:
    """Bytes a checkpoint may hold: optimiser state and copies included."""
    return 20 * capacity + 64 * 1024 * 1024


def _starts_a_pickle(path: Path) -> bool:
    with open(path, "rb") as stream:
        start = stream.read(2)
    return len(start) == 2 and start[0] == 0x80 and 2 <= start[1] <= 5


def _state_dict(content: Any, path: Path, where: str) -> dict[str, Tensor]:
    if isinstance(content, Tensor) or not isinstance(content, Mapping):
        kind = type(content).__name__
        raise InputError(where, f"{path.name!r} holds a {kind}, not a state_dict", _AS_SAFETENSORS)
    if len(content) > MOST_TENSORS:
        raise InputError(where, f"{len(content):,} entries, over {MOST_TENSORS:,}", "")
    for key, value in content.items():
        if isinstance(value, Mapping) and any(isinstance(v, Tensor) for v in value.values()):
            raise InputError(
                where,
                f"the tensors of {path.name!r} lie inside {key!r:.80}",
                f"save only checkpoint[{key!r:.80}]",
            )
    tensors: dict[str, Tensor] = {}
    for key, value in content.items():
        if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_quantized:
            kind = type(value).__name__ if not isinstance(value, Tensor) else "special tensor"
            raise InputError(
                where, f"{key!r:.80} in {path.name!r} is a {kind}", "save a plain state_dict"
            )
        tensors[str(key)] = value.detach()
    if not tensors:
        raise InputError(where, f"{path.name!r} holds no tensors", "save the state_dict")
    return tensors
