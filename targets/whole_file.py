"""Writing a file whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from ..errors import EnvironmentFault


def write_bytes(path: Path, data: bytes) -> None:
    """Write one file atomically: a crash leaves the old file or the new one, never a part.

    Raises EnvironmentFault when the disk refuses.
    """
    part: str | None = None
    try:
        handle, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(part, 0o644)
        os.replace(part, path)
    except OSError as error:
        raise EnvironmentFault(
            f"{path}: cannot be written ({error.strerror}); free space?"
        ) from error
    finally:
        if part is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(part)
