"""Two folders change names in one step, so that a reader finds the old one or the new one."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def put_in_place(new: Path, place: Path) -> None:
    """Give the folder ``new`` the name ``place``; a folder that is there gets the name ``new``.

    On Linux in a single system call (``renameat2``), so that ``place`` is never missing. Where the
    system or the file system cannot do that, by two renames. Raises OSError; then ``place`` is
    what it was.
    """
    if not place.exists():
        os.replace(new, place)
        return
    if _exchanged(new, place):
        return
    aside = new.with_name(f"{new.name}.old")
    os.replace(place, aside)
    try:
        os.replace(new, place)
    except OSError:
        os.replace(aside, place)
        raise
    os.replace(aside, new)


def _exchanged(one: Path, other: Path) -> bool:
    if not sys.platform.startswith("linux"):
        return False
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    names = os.fsencode(one), os.fsencode(other)
    return bool(call(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0)
