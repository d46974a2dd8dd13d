"""Latency of an exported file beside the baseline, in one speed state, one timing at a time."""

from __future__ import annotations

import fcntl
import json
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CandidateError
from ..targets.speed_states import NEAR, SpeedStates
from ..targets.target import Target, Timing
from .evaluation import Evaluation
from .table import write_whole

SPEED_STATES = ".speed_states.json"
ATTEMPTS = 3
SAME_STATE = NEAR
"""Baseline levels closer than this share are one speed state."""
BETWEEN_TIMINGS = 0.015
"""What timings of one file minutes apart differ by (relative), beyond the error that one of them
can see (``benchmarks/timing.py`` measures it)."""
OTHER_STATE_ERROR = 0.15
"""Least relative error of a ratio that could only be had in another speed state (an int8 network
suffers up to a quarter more from a neighbour than its float32 baseline)."""


@dataclass(frozen=True)
class Timed:
    """latency_ms and latency_ratio with their standard errors, and how they were obtained."""

    values: dict[str, float]
    errors: dict[str, float]
    conditions: dict[str, Any]


@dataclass
class Undisturbed:
    """Timings beside one baseline, begun again where a neighbour slowed them down.

    best_ms: the best level that the baseline came to in any of them. attempts: of the next timing
    at most, three; one after a timing that three did not help, until one is undisturbed again.
    """

    best_ms: float = math.inf
    attempts: int = ATTEMPTS

    def timing(
        self, attempt: Callable[[], Timing], expected_ms: float = math.inf, patient: bool = False
    ) -> tuple[Timing, bool]:
        """The best of its attempts, and whether it was undisturbed: the core was its own, and the
        baseline at its best level: at ``expected_ms``, where it was timed before, or at a better
        one that it came to since (a baseline that was slowed down itself must not be the measure).
        patient: three attempts in any case. An unstable timing is always made again."""
        alone, most = False, ATTEMPTS if patient else self.attempts
        made: list[Timing] = []
        while len(made) < ATTEMPTS:
            made.append(timing := attempt())
            if timing.unstable:
                continue
            level, best = timing.baseline_ms, min(expected_ms, self.best_ms)
            near = math.isinf(best) or abs(level / best - 1) <= SAME_STATE
            alone = near and timing.own_core
            self.best_ms = min(level, self.best_ms)
            if alone or len(made) >= most:
                break
        self.attempts = ATTEMPTS if alone else 1
        return timing if alone else min(made, key=_disturbance), alone


def _disturbance(timing: Timing) -> tuple[bool, float]:
    return timing.unstable, timing.loop_ratio * timing.baseline_ms


class LatencyMeter:
    """Times files on one target for one study, shared by all its workers through file locks.

    folder: the study folder. inputs: the batch that is timed, float32 (batch, ...).
    states: the file in it that keeps the machine's speed states.
    """

    def __init__(
        self, target: Target, folder: Path, inputs: np.ndarray, states: str = SPEED_STATES
    ) -> None:
        self._target, self._folder, self._inputs = target, folder, inputs
        self._states = folder / states
        self._undisturbed = Undisturbed()

    def measure(self, path: Path, reference: Path, rung: str, baseline: Evaluation | None) -> Timed:
        """Latency of ``path`` beside the file ``reference`` (the baseline's own, or itself).

        baseline: its evaluation; None: this is the baseline. Milliseconds are the ratio times the
        baseline's. Raises CandidateError when no number can be had that deserves trust.
        """
        timing, same_state = self._timing(path, reference, rung, baseline)
        if timing.unstable:
            raise CandidateError(
                f"latency unstable in {ATTEMPTS} attempts: the machine's speed changes"
            )
        ratio, error = timing.ratio, timing.ratio_error
        if baseline is None:
            latency_ms, ratio = timing.baseline_ms, 1.0
        else:
            latency_ms = ratio * baseline.values["latency_ms"]
            error = math.hypot(error, BETWEEN_TIMINGS * ratio)
            error = error if same_state else max(error, OTHER_STATE_ERROR * ratio)
        return Timed(
            {"latency_ms": latency_ms, "latency_ratio": ratio},
            {"latency_ms": error * latency_ms / ratio, "latency_ratio": error},
            {
                "batch": len(self._inputs),
                "rounds": timing.rounds,
                "state": timing.state,
                "share": timing.share,
                "baseline_ms": timing.baseline_ms,
                "loop_ratio": timing.loop_ratio,
                "same_state": same_state,
                "quiet": rung == "confirm",
            },
        )

    @contextmanager
    def working(self, rung: str) -> Iterator[None]:
        """While a front is confirmed: this core is busy, timings wait."""
        if rung != "confirm":
            yield
            return
        with _held(self._folder / ".machine.lock", fcntl.LOCK_SH):
            yield

    def _timing(
        self, path: Path, reference: Path, rung: str, baseline: Evaluation | None
    ) -> tuple[Timing, bool]:
        """A timing in the speed state that the baseline was timed in, if that can be had.

        A confirmed one waits until no other candidate is at work on this machine.
        """

        def attempt() -> Timing:
            self._target.states = self._known_states()
            with ExitStack() as locks:
                if rung == "confirm":
                    locks.enter_context(_held(self._folder / ".machine.lock", fcntl.LOCK_EX))
                device = getattr(self._target, "device", self._target.name)
                if device is not None:  # else it does one job at a time of itself
                    lock = self._folder / f".device-{device}.lock"
                    locks.enter_context(_held(lock, fcntl.LOCK_EX))
                timing = self._target.time(path, reference, self._inputs)
            if not timing.unstable:
                self._keep_states()
            return timing

        expected_ms = baseline.values["latency_ms"] if baseline is not None else math.inf
        patient = rung == "confirm" or baseline is None
        return self._undisturbed.timing(attempt, expected_ms, patient)

    def _known_states(self) -> SpeedStates | None:
        """The machine's speed states as learned with the first baseline, at their best since."""
        path = self._states
        if not path.exists():
            return None
        return SpeedStates.from_json(json.loads(path.read_text(encoding="utf-8")), path.name)

    def _keep_states(self) -> None:
        states, known = self._target.states, self._known_states()
        if states is None:
            return
        if known is not None and states.levels_ms[0] >= known.levels_ms[0]:
            if (states.loop_ms or math.inf) >= (known.loop_ms or math.inf):
                return
            states = replace(known, loop_ms=states.loop_ms)
        write_whole(self._states, json.dumps(states.to_json()))


@contextmanager
def _held(lock: Path, kind: int) -> Iterator[None]:
    """A file lock shared by the processes of this machine, released even when they are killed."""
    with lock.open("a") as file:
        fcntl.flock(file, kind)
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)
