"""Files that are either the old one or all of the new one, whatever happens in between."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from ..errors import EnvironmentFault


def write_durably(path: Path, fill: Callable[[Path], None]) -> None:
    """Give ``path`` its content in one step: a reader sees the old file, or all of the new one.

    fill: writes the temporary file beside ``path`` whose name it is given.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        fill(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise EnvironmentFault(
            f"{path}: cannot be written ({error.strerror}); free space or make it writable"
        ) from None
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sync_folder(folder: Path) -> None:
    """Make a rename in ``folder`` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
