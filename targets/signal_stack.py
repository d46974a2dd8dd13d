"""The stack on which a thread's signals are handled, kept as it was."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Iterator


class _Stack(ctypes.Structure):
    """``stack_t`` of Linux: see sigaltstack(2)."""

    _fields_ = (("address", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextlib.contextmanager
def kept_signal_stack() -> Iterator[None]:
    """Give this thread back the signal stack that it has, whatever a library does to it inside.

    Each OpenVINO core (2026.4, Linux) sets one of its own and unmaps it when it goes, in whichever
    thread and order that is: the thread is left with a stack that is no longer there, and the next
    Ctrl-C, whose Python handler runs on it, is a segmentation fault.
    """
    if sys.platform != "linux":
        yield
        return
    libc, before = ctypes.CDLL(None), _Stack()
    libc.sigaltstack(None, ctypes.byref(before))
    try:
        yield
    finally:
        libc.sigaltstack(ctypes.byref(before), None)
