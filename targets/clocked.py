"""What targets that run in this process share: their options, running in chunks, the stopwatch."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CandidateError, InputError
from .cpu import cpu_features
from .speed_states import SpeedStates, what_is_timed
from .target import Bits, Grid, Runtime, Timing
from .timing import Clock, compare_in_states

Run = Callable[[np.ndarray], np.ndarray]
"""A loaded file: float32 inputs (n, ...) -> outputs (n, ...)."""
PREDICT_BATCH = 100


class ClockedTarget:
    """A runtime of this machine; a subclass exports, and opens what it exported with ``_open``.

    threads: of what is timed. batch: examples a timed call computes.
    calibration_examples: how many of the given examples set the activation ranges.
    seconds: timing of one candidate ends after this, or earlier when the error is small.
    states: speed states learned before (JSON), so that workers compare within the same ones.

    Raises InputError on an option that cannot be.
    """

    name = ""
    format = ""
    device = "cpu"
    """What timings exclude each other on: the runtimes of one processor share it."""

    def __init__(
        self,
        *,
        threads: int = 1,
        batch: int = 1,
        calibration_examples: int = 256,
        seconds: float = 2.0,
        states: Mapping[str, Any] | None = None,
    ) -> None:
        counts = {"threads": threads, "batch": batch, "calibration_examples": calibration_examples}
        for option, value in counts.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(option, f"expected a positive integer, got {value!r}", "")
        number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
        if not number or not 0 < seconds <= 600:
            raise InputError(
                "seconds", f"expected a number of seconds up to 600, got {seconds!r}", ""
            )
        self.threads, self.batch = threads, batch
        self.calibration_examples = calibration_examples
        self.seconds = float(seconds)
        self.states = None if states is None else SpeedStates.from_json(states, "states")
        self._baseline: tuple[tuple[Any, ...], Run, str] | None = None

    @property
    def description(self) -> dict[str, Any]:
        """Versions, options and processor, as plain JSON for manifests."""
        return {
            "target": self.name,
            **self._versions(),
            "threads": self.threads,
            "batch": self.batch,
            "calibration_examples": self.calibration_examples,
            "cpu": cpu_features(),
        }

    def _versions(self) -> dict[str, Any]:
        """Versions of the libraries and options of the subclass."""
        return {}

    def _open(self, data: bytes, threads: int, batch: int | None, where: str) -> Run:
        """The content of an exported file, ready to run.

        batch: the number of examples of every call; None: any number. Raises CandidateError in
        one line, beginning with ``where``.
        """
        raise CandidateError(f"{where}: {self.name} cannot open files")

    @property
    def _clock(self) -> Clock:
        return time.thread_time_ns if self.threads == 1 else time.perf_counter_ns

    def load(self, path: Path, threads: int = 1) -> Runtime:
        """The file, ready to run. Raises CandidateError when the runtime refuses it."""
        path = Path(path)
        run = self._open(read_file(path), threads, None, path.name)
        return _Loaded(run, path.name, max(PREDICT_BATCH, self.batch))

    def time(self, path: Path, baseline: Path, inputs: np.ndarray) -> Timing:
        """Latency of ``path`` beside ``baseline`` for ``self.batch`` of the ``inputs``.

        Fewer inputs than that are repeated. The speed states of the machine are learned from the
        baseline on the first call and kept in ``self.states`` (see ``timing.compare_in_states``).
        Only ratios of one ``Timing.state`` (and one set of levels, in the notes) are strictly
        comparable.
        """
        if len(inputs) == 0:
            raise InputError("inputs", "no example to time with", "give at least one")
        places = np.arange(self.batch) % len(inputs)
        batch = np.ascontiguousarray(inputs[places], dtype=np.float32)
        base_call, of = self._baseline_call(Path(baseline), batch)
        path = Path(path)
        run = self._open(read_file(path), self.threads, len(batch), path.name)
        call = _call(run, batch, path.name)
        timing, self.states = compare_in_states(
            call, base_call, self.states, of=of, seconds=self.seconds, clock=self._clock
        )
        return replace(timing, notes={**timing.notes, "threads": self.threads, "batch": self.batch})

    def _baseline_call(self, path: Path, batch: np.ndarray) -> tuple[Callable[[], object], str]:
        """A call of the baseline (it stays loaded for the next candidate), and what it is."""
        state = path.stat() if path.exists() else None
        key = (str(path.resolve()), state and (state.st_size, state.st_mtime_ns), batch.shape)
        if self._baseline is None or self._baseline[0] != key:
            data = read_file(path)
            of = what_is_timed(data, batch.shape, self.threads)
            run = self._open(data, self.threads, len(batch), path.name)
            self._baseline = (key, run, of)
        return _call(self._baseline[1], batch, path.name), self._baseline[2]


class _Loaded:
    """A loaded file; ``predict`` takes any number of examples."""

    def __init__(self, run: Run, where: str, most: int) -> None:
        self._run, self._where, self._most = run, where, most

    def predict(self, inputs: np.ndarray) -> np.ndarray:
        """Outputs (n, ...) for float32 inputs (n, ...), computed 100 at a time, or a whole batch
        of the target where that is larger: its memory and energy are those of one call."""
        if len(inputs) == 0:
            raise InputError("inputs", "no example to predict", "give at least one")
        data = np.ascontiguousarray(inputs, dtype=np.float32)
        starts = range(0, len(data), self._most)
        try:
            return np.concatenate([self._run(data[i : i + self._most]) for i in starts])
        except CandidateError:
            raise
        except Exception as error:
            raise CandidateError(f"{self._where}: it does not run ({brief(error)})") from error


def _call(run: Run, batch: np.ndarray, where: str) -> Callable[[], object]:
    """A call without arguments, tried once."""
    try:
        run(batch)
    except CandidateError:
        raise
    except Exception as error:
        raise CandidateError(f"{where}: it does not run ({brief(error)})") from error
    return lambda: run(batch)


def in_batches_of(size: int, run: Run) -> Run:
    """``run``, which takes exactly ``size`` examples, for any number: the last part is padded."""

    def whole(inputs: np.ndarray) -> np.ndarray:
        parts = []
        for start in range(0, len(inputs), size):
            part = inputs[start : start + size]
            places = np.minimum(np.arange(size), len(part) - 1)
            parts.append(np.array(run(np.ascontiguousarray(part[places])))[: len(part)])
        return np.concatenate(parts)

    return whole


def check_bits(
    bits: Mapping[str, Bits],
    offered: Iterable[tuple[int, int]],
    layers: Collection[str],
    target: str,
    grids: Mapping[str, Grid] | None = None,
) -> dict[tuple[int, int], list[str]]:
    """The layers of each (weight, activation) width below float32, all of them known and offered.

    layers: the names of the network's modules. Raises CandidateError naming the layer.
    """
    pairs, out = set(offered), dict[tuple[int, int], list[str]]()
    for layer, wanted in bits.items():
        pair = (wanted.weight, wanted.activation)
        if pair not in pairs:
            known = ", ".join(f"{w}/{a}" for w, a in sorted(pairs, reverse=True))
            raise CandidateError(
                f"{layer}: {target} runs weight/activation bits {known}, not {pair[0]}/{pair[1]}"
            )
        if layer not in layers:
            raise CandidateError(f"{layer}: no such layer in the network")
        if pair != (32, 32):
            out.setdefault(pair, []).append(layer)
    if grids:
        raise CandidateError(
            f"{next(iter(grids))}: {target} sets its own steps and cannot use learned ones"
        )
    return out


def first_examples(calibration: Iterable[np.ndarray], count: int) -> np.ndarray:
    """The first ``count`` calibration examples as one float32 array.

    Raises CandidateError when there is none, or they are not finite.
    """
    parts, have = [], 0
    for batch in calibration:
        parts.append(np.asarray(batch, dtype=np.float32)[: count - have])
        have += len(parts[-1])
        if have >= count:
            break
    if not have:
        raise CandidateError("calibration: no example given, activation ranges need some")
    out = np.ascontiguousarray(np.concatenate(parts))
    if not np.isfinite(out).all():
        raise CandidateError("calibration: the examples are not finite")
    return out


def require(module: str, target: str, install: str) -> Any:
    """An optional library. Raises InputError in one line that says how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(
            f"target {target!r}", f"{module.partition('.')[0]} is missing ({error})", install
        ) from error


def read_file(path: Path) -> bytes:
    """A file's content. Raises CandidateError naming the file."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise CandidateError(f"{path.name}: cannot be read ({error.strerror})") from error


def brief(error: BaseException) -> str:
    """An error in one line of at most 240 characters."""
    return " ".join(str(error).split())[:240] or type(error).__name__
