"""One worker process, as the driver sees it: start it, talk to it, end it, say how it died."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from typing import Any

from .channel import Channel, ChannelError

_OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP)  # no program does this to itself
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
_TAIL_BYTES = 4000


class WorkerProcess:
    """A fresh Python process in its own process group, with one thread for its arithmetic.

    hello: what it loads (see :mod:`.worker`). What it prints goes to a temporary file, whose end
    is given as the detail of a crash.
    """

    def __init__(self, hello: dict[str, Any]) -> None:
        ours, theirs = socket.socketpair()
        read, self._lifeline = os.pipe()
        self._log = tempfile.TemporaryFile("a+b")  # noqa: SIM115  (kept open while it lives)
        arguments = ["-P", "-m", "paretune.search.worker", str(theirs.fileno()), str(read)]
        try:
            self._process = subprocess.Popen(
                [sys.executable, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                pass_fds=(theirs.fileno(), read),
                env={**os.environ, **dict.fromkeys(_THREADS, "1"), "OMP_WAIT_POLICY": "PASSIVE"},
                start_new_session=True,
            )
        finally:
            theirs.close()
            os.close(read)
        self.channel = Channel(ours)
        self.ready = False
        self.job: Any = None  # what it works on: the pool's business
        self.since = time.monotonic()  # of the job, or of the start
        self.alive = self.since  # the last sign of life while at it
        self._greeting: dict[str, Any] = hello
        with contextlib.suppress(ChannelError):  # a worker that died at once is noticed by poll()
            self.channel.send(hello, timeout_s=60.0)

    @property
    def pid(self) -> int:
        """The process id, which is its group's too."""
        return self._process.pid

    def give(self, job: Any, message: dict[str, Any]) -> None:
        """Send a request. Raises ChannelError when the worker is gone or does not read."""
        self._log.truncate(0)
        self.job, self.since = job, time.monotonic()
        self.alive = self.since
        self.channel.send(message)

    def dead(self) -> bool:
        """Whether the process ended (it stays unreaped, so that its group keeps its number)."""
        if self._process.returncode is not None:
            return True
        flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
        try:
            return os.waitid(os.P_PID, self.pid, flags) is not None
        except ChildProcessError:
            return True

    def end(self, wait_s: float = 0.0) -> bool:
        """Kill the whole group, after waiting ``wait_s`` for the process to go by itself; reap it.

        Returns whether the process went by itself.
        """
        until = time.monotonic() + wait_s
        while not (went := self.dead()) and time.monotonic() < until:
            time.sleep(0.01)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1
        self.channel.close()
        return went

    def death(self) -> str:
        """How it ended: ``killed by SIGSEGV`` or ``ended with exit code 7``. After :meth:`end`."""
        code = self._process.returncode
        if code is None or code >= 0:
            return f"the worker ended with exit code {code}"
        with contextlib.suppress(ValueError):
            return f"killed by {signal.Signals(-code).name}"
        return f"killed by signal {-code}"

    def killed_from_outside(self) -> bool:
        """Whether it ended by a signal that comes from elsewhere. After :meth:`end`."""
        return self._process.returncode in [-s for s in _OUTSIDE]

    def printed(self) -> str:
        """The end of what it printed since its last request; the file is closed then."""
        if self._log.closed:
            return ""
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size - _TAIL_BYTES))
        text = self._log.read().decode(errors="replace").strip()
        self._log.close()
        return text
