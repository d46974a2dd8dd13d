"""The secret that an agent and its searchers share, in a file that only its owner can read."""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

from ..errors import InputError

LEAST, MOST = 32, 1024


def read_token(path: Path, where: str = "token_file") -> str:
    """The token in ``path``. Raises InputError where others may read it, or it is too short."""
    try:
        mode = path.stat().st_mode
        text = path.read_text(encoding="ascii").strip() if stat.S_ISREG(mode) else ""
    except OSError as error:
        raise InputError(
            where, f"{str(path)!r} cannot be read ({error.strerror})", "copy the agent's token file"
        ) from error
    except UnicodeDecodeError:
        text = ""
    if os.name == "posix" and mode & 0o077:
        raise InputError(
            where,
            f"{str(path)!r} can be read by others (mode {stat.S_IMODE(mode):04o})",
            f"chmod 600 {path}",
        )
    if not LEAST <= len(text) <= MOST or not text.isprintable() or " " in text:
        raise InputError(
            where,
            f"{str(path)!r} holds no token of {LEAST} characters or more",
            "remove the file and let the agent write a new one",
        )
    return text


def read_or_create_token(path: Path, where: str = "--token-file") -> tuple[str, bool]:
    """The token in ``path``, and whether it was made just now (32 random bytes, mode 0600)."""
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return read_token(path, where), False
    except OSError as error:
        raise InputError(
            where, f"{str(path)!r} cannot be written ({error.strerror})", ""
        ) from error
    token = secrets.token_urlsafe(32)
    with os.fdopen(handle, "w", encoding="ascii") as file:
        file.write(token + "\n")
    return token, True
