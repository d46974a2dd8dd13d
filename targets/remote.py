"""The target ``remote:https://board:8765``: exported here, run and timed there by an agent."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..errors import CandidateError, InputError, nearest
from .board import Board
from .board_answer import check_echo, read_outputs, read_timing
from .boards import Boards
from .cpu import saturates_int8
from .onnx_session import parse_model
from .onnxruntime_cpu import OnnxRuntimeCpu
from .speed_states import SpeedStates
from .target import Bits, Grid, Runtime, Timing
from .token_file import read_token
from .wire import TIMINGS, pack

PREFIX = "remote:"
RUNTIMES = {"onnxruntime-cpu": OnnxRuntimeCpu}
PREDICT_BYTES = 16 << 20  # of inputs in one request


class Remote:
    """Runs files of ``runtime`` on one or several identical boards.

    name: ``remote:https://board:8765``. boards: more addresses; ``fingerprint``: what the agents
    print, in the same order (one for all where they share a certificate); ca: a file of authorities
    instead. token_file: a copy of the agents' (mode 0600). patience: seconds that all boards may be
    gone before the search stops (and can be gone on with). Further options are the runtime's.

    int8 follows the board's processor, not this one's. Timings of several searchers and workers
    queue at the boards. Raises InputError where an agent refuses us or speaks another protocol,
    EnvironmentFault where none answers.
    """

    format = "onnx"
    device = None
    """Nothing here needs to wait for a timing: each board does one job at a time."""

    def __init__(
        self,
        name: str,
        *,
        runtime: str = "onnxruntime-cpu",
        boards: Sequence[str] = (),
        token_file: str | None = None,
        fingerprint: str | Sequence[str] | None = None,
        ca: str | None = None,
        patience: float = 300.0,
        threads: int = 1,
        batch: int = 1,
        seconds: float = 3.0,
        reduce_range: bool | None = None,
        states: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        if runtime not in RUNTIMES:
            raise InputError(
                "runtime", f"{runtime!r} does not run on boards", nearest(runtime, RUNTIMES)
            )
        addresses = [name.removeprefix(PREFIX), *boards]
        pins = _pins(fingerprint, len(addresses))
        token = None if token_file is None else read_token(Path(token_file), "remote.token_file")
        known_as = Path(ca) if ca is not None else None
        self.name = name
        self._boards = Boards(
            [
                Board(address, token, pin, known_as, "remote")
                for address, pin in zip(addresses, pins, strict=True)
            ],
            patience,
        )
        self._status = self._boards.greet()
        if reduce_range is None:
            reduce_range = saturates_int8(self._status["cpu"])
        self._exporter = RUNTIMES[runtime](
            threads=threads,
            batch=batch,
            seconds=seconds,
            reduce_range=reduce_range,
            states=states,
            **options,
        )
        limits = self._status["limits"]
        allowed = {"threads": limits["threads"], "seconds": limits["wall_s"] / TIMINGS}
        for option, wanted in (("threads", threads), ("seconds", seconds)):
            if wanted > allowed[option]:
                raise InputError(option, f"{wanted} on a board that allows {allowed[option]:g}", "")
        self.choices = self._exporter.choices
        self.threads, self.batch, self.seconds = threads, batch, seconds
        self.states = self._exporter.states

    @property
    def description(self) -> dict[str, Any]:
        """The runtime's conditions with the board's processor and versions in place of ours."""
        here = self._exporter.description
        there = {key: self._status[key] for key in ("onnxruntime", "cpu", "system", "version")}
        return {**here, **there, "target": self.name, "runtime": here["target"]}

    def export(
        self,
        network: nn.Module,
        example: torch.Tensor,
        bits: Mapping[str, Bits],
        calibration: Iterable[np.ndarray],
        path: Path,
        grids: Mapping[str, Grid] | None = None,
    ) -> None:
        """Write ``network`` as the runtime's own target does; see Target.export."""
        self._exporter.export(network, example, bits, calibration, path, grids)

    def load(self, path: Path, threads: int = 1) -> Runtime:
        """The file on a board. Raises CandidateError when the agent refuses it."""
        name, data = Path(path).name, _read(Path(path))
        parse_model(data, name)
        digest = hashlib.sha256(data).hexdigest()
        self._boards.do(lambda board: board.send_model(digest, data), name)
        return _OnBoards(self._boards, name, digest, data, threads)

    def time(self, path: Path, baseline: Path, inputs: np.ndarray) -> Timing:
        """Latency of ``path`` beside ``baseline`` on the first board that is free.

        Fewer than ``self.batch`` inputs are repeated. The speed states go with the job and come
        back with the answer, so that identical boards compare within the same ones.
        """
        if len(inputs) == 0:
            raise InputError("inputs", "no example to time with", "give at least one")
        places = np.arange(self.batch) % len(inputs)
        batch = np.ascontiguousarray(inputs[places], dtype=np.float32)
        files = {p: _read(Path(p)) for p in (path, baseline)}
        digests = {p: hashlib.sha256(data).hexdigest() for p, data in files.items()}
        known = None if self.states is None else self.states.to_json()

        def job(board: Board) -> tuple[Timing, SpeedStates]:
            for p, data in files.items():
                board.send_model(digests[p], data)
            asked = {
                "candidate": digests[path],
                "baseline": digests[baseline],
                "nonce": secrets.token_hex(16),
            }
            settings = {"threads": self.threads, "seconds": self.seconds, "states": known}
            begin = time.perf_counter()
            fields, _ = board.ask("measure", pack({**asked, **settings}, batch))
            wall_s = time.perf_counter() - begin
            check_echo(fields, asked)
            timing, states = read_timing(fields, wall_s)
            notes = {**timing.notes, "board": board.address}
            return Timing(**{**vars(timing), "notes": notes}), states

        timing, self.states = self._boards.do(job, Path(path).name)
        return timing


class _OnBoards:
    """A file that boards run; ``predict`` takes any number of examples."""

    def __init__(self, boards: Boards, name: str, digest: str, data: bytes, threads: int) -> None:
        self._boards, self._name, self._threads = boards, name, threads
        self._digest, self._data = digest, data

    def predict(self, inputs: np.ndarray) -> np.ndarray:
        """Outputs (n, ...) for float32 inputs (n, ...), computed on a board."""
        if len(inputs) == 0:
            raise InputError("inputs", "no example to predict", "give at least one")
        rows = max(1, PREDICT_BYTES // max(1, inputs[0].size * 4))
        parts = [self._part(inputs[i : i + rows]) for i in range(0, len(inputs), rows)]
        return np.concatenate(parts)

    def _part(self, inputs: np.ndarray) -> np.ndarray:
        def job(board: Board) -> np.ndarray:
            board.send_model(self._digest, self._data)
            asked = {"model": self._digest, "nonce": secrets.token_hex(16)}
            message = pack({**asked, "threads": self._threads}, inputs)
            fields, outputs = board.ask("predict", message)
            check_echo(fields, asked)
            return read_outputs(outputs, len(inputs))

        try:
            return self._boards.do(job, self._name)
        except CandidateError as error:
            raise CandidateError(f"{self._name}: it does not run on the board ({error})") from error


def _pins(given: str | Sequence[str] | None, count: int) -> list[str | None]:
    """One fingerprint, or none, for each of ``count`` boards."""
    if given is None or isinstance(given, str):
        return [given] * count
    if len(given) != count:
        raise InputError(
            "remote.fingerprint",
            f"{len(given)} fingerprints for {count} boards",
            "give one for each board, the one in the target's name first",
        )
    return list(given)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CandidateError(f"{path.name}: cannot be read ({error.strerror})") from error
