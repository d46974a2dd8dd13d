"""The lock that lets one driver, and one only, write a study."""

from __future__ import annotations

import json
import os
import socket
import time
import weakref
from datetime import datetime
from pathlib import Path
from typing import Any

from ..errors import EnvironmentFault, InputError


class FileLock:
    """An advisory lock on a file that the system lifts when its holder dies, however it dies.

    ``FileLock.take(path, what)`` returns the held lock, or raises InputError within a second
    that names the holder (process, machine, since when). The lock file stays where it is; a file
    without a living holder is not a lock.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor: int | None = descriptor
        _ours.add(self)

    @classmethod
    def take(cls, path: Path, what: str, wait_seconds: float = 0.2) -> FileLock:
        """Hold ``path``, waiting at most ``wait_seconds`` (one who asks :meth:`held` holds it for
        an instant, and is no driver).

        what: the activity named in the error, e.g. ``"search"``.
        Raises InputError when another process (or this one) holds it, EnvironmentFault when the
        file cannot be written.
        """
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise EnvironmentFault(
                f"{path}: cannot be opened for writing ({error.strerror}); "
                "make the folder writable or name another"
            ) from None
        deadline = time.monotonic() + wait_seconds
        while not _flock(descriptor):
            if time.monotonic() >= deadline:
                os.close(descriptor)
                raise InputError(
                    str(path.parent),
                    f"another {what} holds it: {_holder(path)}",
                    "wait until it ends, or stop it",
                )
            time.sleep(0.01)
        lock = cls(path, descriptor)
        lock._sign()
        return lock

    @staticmethod
    def held(path: Path) -> bool:
        """Whether some process holds ``path`` at this moment."""
        try:
            descriptor = os.open(path, os.O_RDWR)
        except OSError:
            return False
        try:
            return not _flock(descriptor)
        finally:
            os.close(descriptor)

    def release(self) -> None:
        """Let go; a second call does nothing."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def _sign(self) -> None:
        if self._descriptor is None:
            return
        note = {"pid": os.getpid(), "host": socket.gethostname(), "start": time.time()}
        try:
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, json.dumps(note).encode(), 0)
        except OSError:  # a full disk: the lock holds all the same, only unsigned
            return

    def __enter__(self) -> FileLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


_ours: weakref.WeakSet[FileLock] = weakref.WeakSet()


def _let_go() -> None:
    """A forked child must not keep its parent's locks alive."""
    for lock in list(_ours):
        lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


def _flock(descriptor: int) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows: no advisory whole-file lock; SQLite's own lock still guards rows
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _holder(path: Path) -> str:
    try:
        note: dict[str, Any] = json.loads(path.read_text())
        since = datetime.fromtimestamp(note["start"]).strftime("%Y-%m-%d %H:%M:%S")
        return f"process {note['pid']} on {note['host']} since {since}"
    except (OSError, ValueError, KeyError, TypeError):
        return "a process that did not sign"
