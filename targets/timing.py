"""The honest stopwatch: how much faster is a candidate than a baseline on a busy machine?

Absolute milliseconds drift by tens of percent on a shared machine, and so do plain medians of
two networks timed one after the other. So baseline and candidate alternate,

    B C B C B ... B

a *round* is one C with the two B groups that flank it, its ratio is C over the mean of the two,
and the answer is the median ratio over the rounds of one speed state (see speed_states.py); in a
fast state that comes only now and then, the ratio of matched quantiles.
Each group is a few calls after a discarded one (the caches belong to the other network then);
a group's level is the mean of its faster three quarters.

The clock is the CPU time of the calling thread: preemption by another process is not the
network's doing, and unpreempted CPU time equals wall time. A network that works in several
threads is timed by wall time.
"""

from __future__ import annotations

import contextlib
import gc
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from .cpu import pinned, quiet_core
from .speed_states import SpeedStates
from .timing_result import Timing

Call = Callable[[], object]
Clock = Callable[[], int]

GROUP_MS = 2.5  # a group of calls lasts about this long: short beside the life of a speed state
MOST_CALLS = 16  # in a group
RARE = 0.5  # of the rounds: a fast state rarer than this is compared by matched quantiles
PARTS = 8
LEAST_SHARE = 0.05  # of the rounds: a level met by chance is not a state
P90_SAMPLES, P99_SAMPLES = 64, 662  # fewer samples say nothing about these percentiles


@dataclass(frozen=True)
class Effort:
    """How long to measure.

    error, rounds: stop when the relative standard error of the ratio is this small and the
    reference state has twice ``rounds`` rounds. seconds, fair_error: stop here if the error is
    at least fair and the reference state has ``rounds`` rounds. most_seconds: stop here anyway.
    Fewer than ``rounds`` rounds of one state are unstable; so many rounds are made at any cost.
    """

    seconds: float = 2.0
    most_seconds: float = 5.0
    error: float = 0.004
    fair_error: float = 0.015
    rounds: int = 9

    def satisfied(self, picked: _Rounds, reference: int, spent_s: float) -> bool:
        """Whether these rounds, made in ``spent_s`` seconds, are enough."""
        if spent_s >= self.most_seconds:
            return True
        if picked.state != reference:
            return False
        relative = picked.error / picked.ratio
        if relative <= self.error and len(picked.used) >= 2 * self.rounds:
            return True
        return relative <= self.fair_error and spent_s >= self.seconds


def compare(
    candidate: Call,
    baseline: Call,
    *,
    states: SpeedStates | None = None,
    effort: Effort | None = None,
    clock: Clock = time.thread_time_ns,
    wall: Clock = time.perf_counter_ns,
    pin: bool = True,
) -> Timing:
    """How long ``candidate`` takes in units of ``baseline``, both called here, interleaved.

    states: learned before with :func:`learn_states`; else found in this comparison alone.
    clock, wall: nanoseconds; ``clock`` times the calls, ``wall`` limits the effort.
    pin: keep this thread on the quietest core meanwhile.

    The reference state is used if it has enough rounds, else the state with most rounds; with
    too few of any, the median over all rounds is given and flagged ``unstable``.
    """
    effort = Effort() if effort is None else effort
    with _quiet(pin) as core:
        begin = wall()
        calls = {call: _group_size(call, clock) for call in (candidate, baseline)}

        def group(call: Call) -> tuple[float, list[float]]:
            return _level_ms(call, calls[call], clock)

        bases, middles, samples = [group(baseline)[0]], [], []
        check = effort.rounds
        while True:
            level, row = group(candidate)
            middles.append(level)
            samples.append(row)
            bases.append(group(baseline)[0])
            if len(middles) < check:
                continue
            check = 1 + int(1.1 * check)
            known = states or SpeedStates.from_levels(bases)
            picked = _Rounds.pick(bases, middles, known, effort.rounds)
            spent = (wall() - begin) / 1e9
            if effort.satisfied(picked, known.reference, spent):
                break
    used = [ms for index in picked.used for ms in samples[index]]
    measured = float(np.median([bases[i] for i in picked.used]))
    notes: dict[str, Any] = {
        "clock": getattr(clock, "__name__", "clock"),
        "core": core,
        "calls_per_group": [calls[baseline], calls[candidate]],
        "seconds": round(spent, 3),
        "rounds_in_all": len(middles),
        "reference": picked.state == known.reference,
        "levels_ms": list(known.levels_ms),
        "measured_baseline_ms": round(measured, 6),
        **_percentiles(used, "candidate"),
    }
    known_level = states is not None and picked.state is not None
    return Timing(
        ratio=picked.ratio,
        ratio_error=picked.error,
        baseline_ms=known.levels_ms[picked.state or 0] if known_level else measured,
        rounds=len(picked.used),
        state=-1 if picked.state is None else picked.state,
        share=round(len(picked.used) / len(middles), 4),
        unstable=picked.state is None,
        notes=notes,
    )


def learn_states(
    baseline: Call,
    *,
    of: str = "",
    seconds: float = 2.0,
    clock: Clock = time.thread_time_ns,
    wall: Clock = time.perf_counter_ns,
    pin: bool = True,
) -> SpeedStates:
    """The speed states that ``baseline`` shows in the next ``seconds`` (at least 12 groups)."""
    with _quiet(pin):
        count = _group_size(baseline, clock)
        levels: list[float] = []
        begin = wall()
        while len(levels) < 12 or wall() - begin < seconds * 1e9:
            levels.append(_level_ms(baseline, count, clock)[0])
    return SpeedStates.from_levels(levels, of)


@dataclass(frozen=True)
class _Rounds:
    """The rounds of one state, and their ratio with its standard error."""

    state: int | None
    used: list[int]
    ratio: float
    error: float

    @classmethod
    def pick(
        cls, bases: list[float], middles: list[float], known: SpeedStates, least: int
    ) -> _Rounds:
        """Rounds whose two flanking groups lie in one state: the reference, or the fullest."""
        of_base = [known.classify(level) for level in bases]
        by_state: dict[int, list[int]] = {}
        for index in range(len(middles)):
            state = of_base[index]
            if state is not None and state == of_base[index + 1]:
                by_state.setdefault(state, []).append(index)
        enough = max(least, math.ceil(LEAST_SHARE * len(middles)))
        full = {state: used for state, used in by_state.items() if len(used) >= enough}
        chosen: int | None = _fullest(full) if full else None
        if len(by_state.get(known.reference, ())) >= least:
            chosen = known.reference
        used = list(range(len(middles))) if chosen is None else by_state[chosen]
        if chosen == 0 and len(used) < RARE * len(middles):
            share = sum(state == 0 for state in of_base) / len(of_base)
            return cls(chosen, used, *_matched_ratio(bases[:-1], middles, share))
        ratios = np.array([2 * middles[i] / (bases[i] + bases[i + 1]) for i in used])
        return cls(chosen, used, float(np.median(ratios)), _median_error(ratios))


def _matched_ratio(bases: list[float], middles: list[float], share: float) -> tuple[float, float]:
    """Ratio in a fast state that the machine is in for only a ``share`` of the time, and its error.

    Rounds picked by their fast flanks would be unfair: such moments are short, and what lies
    between two of them is often slower. Both networks meet the same moments though, so the fastest
    ``share`` of the candidate's groups stand against the fastest ``share`` of the baseline's: the
    medians of those, that is the quantile ``share / 2`` of each. Error: from eight interleaved
    parts.
    """
    b, c = np.asarray(bases), np.asarray(middles)
    ratio = float(np.quantile(c, share / 2) / np.quantile(b, share / 2))
    parts = [
        float(np.quantile(c[i::PARTS], share / 2) / np.quantile(b[i::PARTS], share / 2))
        for i in range(PARTS)
    ]
    return ratio, float(np.std(parts, ddof=1)) / math.sqrt(PARTS)


def _fullest(by_state: dict[int, list[int]]) -> int:
    return max(by_state, key=lambda state: len(by_state[state]))


def _median_error(values: np.ndarray) -> float:
    """One standard error of the median of values in time order.

    From the median absolute deviation (normal consistency 1.4826; a median needs pi/2 times the
    samples of a mean), or from medians of eight consecutive blocks if those spread further, as
    they do when neighbouring rounds are alike.
    """
    centre = np.median(values)
    spread = 1.4826 * float(np.median(np.abs(values - centre)))
    error = math.sqrt(math.pi / 2) * spread / math.sqrt(len(values))
    if len(values) >= 40:
        blocks = [float(np.median(block)) for block in np.array_split(values, 8)]
        error = max(error, float(np.std(blocks, ddof=1)) / math.sqrt(8))
    return error


def _level_ms(call: Call, count: int, clock: Clock) -> tuple[float, list[float]]:
    """Mean of the faster three quarters of ``count`` calls after one discarded, and all of them."""
    call()
    samples = []
    for _ in range(count):
        begin = clock()
        call()
        samples.append((clock() - begin) / 1e6)
    kept = sorted(samples)[: max(1, math.ceil(0.75 * count))]
    return max(sum(kept) / len(kept), 1e-9), samples


def _group_size(call: Call, clock: Clock) -> int:
    """Calls in a group of about GROUP_MS, after a warm-up."""
    for _ in range(3):
        call()
    begin = clock()
    call()
    return max(1, min(MOST_CALLS, round(GROUP_MS / max((clock() - begin) / 1e6, 1e-6))))


def _percentiles(samples: list[float], name: str) -> dict[str, float]:
    """Diagnostics: minimum, median, and the tail where there are samples enough for it."""
    points = {"min": 0.0, "p50": 50.0}
    if len(samples) >= P90_SAMPLES:
        points["p90"] = 90.0
    if len(samples) >= P99_SAMPLES:
        points["p99"] = 99.0
    return {
        f"{name}_{key}_ms": round(float(np.percentile(samples, q)), 6) for key, q in points.items()
    }


@contextlib.contextmanager
def _quiet(pin: bool) -> Iterator[int | None]:
    """No garbage collection and, with ``pin``, one core; gives the core. Restored afterwards."""
    core = quiet_core() if pin else None
    collected = gc.isenabled()
    gc.disable()
    try:
        with pinned(core) as worked:
            yield core if worked else None
    finally:
        if collected:
            gc.enable()
