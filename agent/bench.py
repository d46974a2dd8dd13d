"""The bench of a board: models by their hash, one job at a time, each in a process of its own."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CandidateError, EnvironmentFault
from ..targets.wire import LONGEST_LINE, pack, unpack
from .child import read_frame, write_frame
from .graph import inspect
from .limits import Limits

KEPT_CHILDREN = 2  # processes with a loaded model, waiting for more inputs


class Busy(Exception):
    """Another job is being done."""


class Unknown(Exception):
    """A model that was not sent, or has made room for others."""


class Bench:
    """Stores models in a temporary folder of its own and runs them in disposable processes."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.folder = Path(tempfile.mkdtemp(prefix="paretune-agent-"))
        self._models: OrderedDict[str, int] = OrderedDict()
        self._predicting: OrderedDict[tuple[str, int], Child] = OrderedDict()
        self._turn = threading.Lock()

    @property
    def busy(self) -> bool:
        """Whether a job is being done."""
        return self._turn.locked()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """The right to use the bench, for one. Raises Busy at once where another has it."""
        if not self._turn.acquire(blocking=False):
            raise Busy
        try:
            yield
        finally:
            self._turn.release()

    def store(self, digest: str, data: bytes) -> None:
        """Keep a model.

        Raises CandidateError where it is not what its hash says, or is refused; EnvironmentFault
        where it cannot be written.
        """
        if hashlib.sha256(data).hexdigest() != digest:
            raise CandidateError("model: its bytes do not have the hash that was said")
        if digest in self._models:
            return
        inspect(data)
        while self._models and sum(self._models.values()) + len(data) > self.limits.store_bytes:
            oldest, _ = self._models.popitem(last=False)
            self._path(oldest).unlink(missing_ok=True)
        path = self._path(digest)
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(handle, "wb") as file:
                file.write(data)
        except OSError as error:
            with suppress(OSError):
                path.unlink(missing_ok=True)
            raise EnvironmentFault(
                f"model: the board cannot store it ({error.strerror}); make room, or restart it"
            ) from error
        self._models[digest] = len(data)

    def measure(
        self,
        candidate: str,
        baseline: str,
        inputs: np.ndarray,
        threads: int,
        seconds: float,
        states: Mapping[str, Any] | None,
    ) -> dict[str, Any]:
        """``timing`` and ``states`` as JSON, measured in a fresh process.

        Raises Unknown, or CandidateError with what went wrong in the process.
        """
        job = {
            "job": "measure",
            "candidate": str(self._known(candidate)),
            "baseline": str(self._known(baseline)),
            "threads": threads,
            "seconds": seconds,
            "states": states,
        }
        child = Child(self.folder, self.limits, threads)
        try:
            fields, _ = child.ask(job, inputs)
        finally:
            child.end()
        return fields

    def predict(self, model: str, inputs: np.ndarray, threads: int) -> np.ndarray:
        """Outputs for a batch; a model's process is kept for the next batch of the same model.

        For a while: the limit of CPU time is of the whole process.
        """
        path, key = self._known(model), (model, threads)
        child = self._predicting.pop(key, None) or Child(self.folder, self.limits, threads)
        job = {"job": "predict", "model": str(path), "threads": threads}
        try:
            _, outputs = child.ask(job, inputs)
        except BaseException:
            child.end()
            raise
        if child.worked_s < self.limits.wall_s:  # enough is left for a job of the longest
            self._predicting[key] = child
        else:
            child.end()
        while len(self._predicting) > KEPT_CHILDREN:
            self._predicting.popitem(last=False)[1].end()
        if outputs is None:
            raise CandidateError("model: no outputs")
        return outputs

    def close(self) -> None:
        """End every process and remove the folder."""
        for child in self._predicting.values():
            child.end()
        self._predicting.clear()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, digest: str) -> Path:
        return self.folder / f"{digest}.onnx"

    def _known(self, digest: str) -> Path:
        path = self._path(digest)
        if digest not in self._models or not path.is_file():
            self._models.pop(digest, None)  # a cleaner of temporary folders may have been here
            raise Unknown(digest)
        self._models.move_to_end(digest)
        return path


class Child:
    """One disposable process; killed with its group when a job takes longer than the limit.

    worked_s: seconds that its jobs took so far. Raises EnvironmentFault where none can be started.
    """

    def __init__(self, folder: Path, limits: Limits, threads: int) -> None:
        self._limits, self.worked_s = limits, 0.0
        lifeline, self._alive = os.pipe()
        path = [os.path.abspath(entry) for entry in sys.path if entry]
        keep = ("LD_LIBRARY_PATH", "SYSTEMROOT", "LANG")
        environment = {name: os.environ[name] for name in keep if name in os.environ}
        environment |= {"PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": str(threads)}
        environment |= {"HOME": str(folder), "TMPDIR": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
        environment |= {"ORT_DISABLE_TELEMETRY": "1"}
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", f"{__package__}.child", str(lifeline)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd=folder,
                env=environment,
                pass_fds=(lifeline,),
                start_new_session=True,
            )
        except OSError as error:
            os.close(self._alive)
            raise EnvironmentFault(
                f"model: the board can start no process ({error.strerror})"
            ) from error
        finally:
            os.close(lifeline)
        cpu_s = 2 * limits.wall_s * threads + 60
        self._send(
            pack(
                {
                    "memory_bytes": limits.memory_bytes,
                    "cpu_s": cpu_s,
                    "body_bytes": limits.body_bytes,
                }
            )
        )

    def ask(
        self, job: Mapping[str, Any], inputs: np.ndarray
    ) -> tuple[dict[str, Any], np.ndarray | None]:
        """The answer to one job. Raises CandidateError: its own error, or how the process died."""
        late = threading.Event()

        def stop() -> None:
            late.set()
            self._kill()

        deadline = threading.Timer(self._limits.wall_s, stop)
        deadline.start()
        begin = time.monotonic()
        try:
            self._send(pack(job, inputs))
            most = self._limits.body_bytes + 2 * LONGEST_LINE
            answer = read_frame(self._process.stdout, most) if self._process.stdout else None
        finally:
            deadline.cancel()
            self.worked_s += time.monotonic() - begin
        if answer is None:
            self._kill()
            code = self._process.wait()
            why = f"took longer than {self._limits.wall_s:g} s" if late.is_set() else _died(code)
            raise CandidateError(f"model: its process {why}")
        fields, outputs = unpack(answer)
        if "error" in fields:
            raise CandidateError(str(fields["error"])[:400])
        return fields, outputs

    def end(self) -> None:
        """Kill the process and close the pipes."""
        self._kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with suppress(OSError):
                    stream.close()
        if self._alive >= 0:
            os.close(self._alive)
            self._alive = -1

    def _send(self, data: bytes) -> None:
        with suppress(BrokenPipeError):  # it died: reading its answer will tell
            if self._process.stdin is not None:
                write_frame(self._process.stdin, data)

    def _kill(self) -> None:
        if self._process.poll() is None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)


def _died(code: int) -> str:
    if code < 0:
        with suppress(ValueError):
            return f"died of {signal.Signals(-code).name}"
    return f"ended with code {code}"
