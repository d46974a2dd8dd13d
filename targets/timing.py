"""The honest stopwatch: how much faster is a candidate than a baseline on a busy machine?

Absolute milliseconds drift by tens of percent on a shared machine, and so do plain medians of
two networks timed one after the other. So baseline and candidate alternate,

    B C B C B ... B

in groups of a few calls each after a discarded one (the caches belong to the other network then),
so that both meet the same moments of the machine. Neighbours only ever add time, to some networks
more than to others, for milliseconds or for minutes. So the answer compares what the two take
when they are left alone: the mean of the fastest sixteenth of the candidate's calls over the mean
of the fastest sixteenth of the baseline's. (On a machine with a busy neighbour, medians of rounds
repeat to 5 %, this to 2 %; a bare minimum hangs on one lucky call.) The baseline's level is
then looked up among the speed states of the machine (see speed_states.py): ratios of different
states are not comparable.

The baseline alone does not tell every state: where another guest of the host computes on the other
thread of the same physical core, a float32 network that waits for memory loses 4 % and an int8 one
40 %. So a short loop of plain arithmetic, which loses most (70 %), is timed between the groups; a
timing counts as undisturbed only where the loop, too, came to its best.

The clock is the CPU time of the calling thread: preemption by another process is not the
network's doing, and unpreempted CPU time equals wall time. A network that works in several
threads is timed by wall time.
"""

from __future__ import annotations

import contextlib
import gc
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .cpu import pinned, quiet_core, reference_loop
from .speed_states import SpeedStates
from .timing_result import LOOP_NEAR, Timing

Call = Callable[[], object]
Clock = Callable[[], int]

GROUP_MS = 2.5  # a group of calls lasts about this long: short beside the life of a speed state
MOST_CALLS = 16  # in a group
UNDISTURBED = 1 / 16  # the share of the calls, the fastest, that counts
LEAST_CALLS = 5  # ... but never fewer calls
BLOCKS = 8  # of consecutive rounds, for the error
UNSURE = 0.15  # a relative error beyond this is no answer
P90_SAMPLES, P99_SAMPLES = 64, 662  # fewer samples say nothing about these percentiles


@dataclass(frozen=True)
class Effort:
    """How long to measure.

    error: stop when the relative standard error of the ratio is this small, after a fifth of
    ``seconds`` at the earliest and only where the speed states were known before. seconds,
    fair_error: stop here if the error is at least fair. most_seconds: stop here anyway; before,
    never in another speed state than the reference, nor while a neighbour slows it down. rounds:
    so many are made at any cost.
    """

    seconds: float = 3.0
    most_seconds: float = 6.0
    error: float = 0.002
    fair_error: float = 0.02
    rounds: int = 9

    def satisfied(self, relative_error: float, in_reference: bool, spent_s: float) -> bool:
        """Whether an answer of this error, obtained in ``spent_s`` seconds, is good enough."""
        if spent_s >= self.most_seconds:
            return True
        if not in_reference:
            return False
        if spent_s >= self.seconds:
            return relative_error <= self.fair_error
        return relative_error <= self.error and spent_s >= 0.2 * self.seconds


def compare(
    candidate: Call,
    baseline: Call,
    *,
    states: SpeedStates | None = None,
    effort: Effort | None = None,
    clock: Clock = time.thread_time_ns,
    wall: Clock = time.perf_counter_ns,
    pin: bool = True,
    loop: Call = reference_loop,
) -> Timing:
    """How long ``candidate`` takes in units of ``baseline``, both called here, interleaved.

    states: learned before with :func:`learn_states`; else found in this comparison alone.
    clock, wall: nanoseconds; ``clock`` times the calls, ``wall`` limits the effort.
    pin: keep this thread on the quietest core meanwhile. loop: see :func:`.cpu.reference_loop`.

    ``unstable``: the baseline was in none of the known states, or the error is beyond use.
    """
    effort = Effort() if effort is None else effort
    with _quiet(pin) as core:
        begin = wall()
        calls = {call: _group_size(call, clock) for call in (candidate, baseline)}
        base, other, loops = [_group(baseline, calls[baseline], clock)], [], []
        check = effort.rounds
        while True:
            other.append(_group(candidate, calls[candidate], clock))
            loops.append(_elapsed(loop, clock))
            base.append(_group(baseline, calls[baseline], clock))
            if len(other) < check:
                continue
            check = 1 + int(1.1 * check)
            ratio, error = _ratio(base[1:], other)
            level = undisturbed_ms(_calls(base))
            known = states or SpeedStates.from_levels([undisturbed_ms(group) for group in base])
            state = known.classify(level)
            loop_ms = undisturbed_ms(loops)
            loop_ratio = max(1.0, loop_ms / (known.loop_ms or loop_ms))
            own_core = loop_ratio <= 1 + LOOP_NEAR
            in_reference = state == known.reference and known.undisturbed(level) and own_core
            spent = (wall() - begin) / 1e9
            early = states is not None or spent >= effort.seconds
            if early and effort.satisfied(error / ratio, in_reference, spent):
                break
    of_groups = [known.classify(undisturbed_ms(group)) for group in base]
    share = of_groups.count(state) / len(base)
    notes: dict[str, Any] = {
        "clock": getattr(clock, "__name__", "clock"),
        "core": core,
        "calls_per_group": [calls[baseline], calls[candidate]],
        "seconds": round(spent, 3),
        "reference": in_reference,
        "levels_ms": list(known.levels_ms),
        **_percentiles(_calls(other), "candidate"),
    }
    return Timing(
        ratio=ratio,
        ratio_error=error,
        baseline_ms=round(level, 6),
        rounds=len(other),
        state=-1 if state is None else state,
        share=round(share, 4),
        unstable=state is None or share == 0 or error > UNSURE * ratio,
        loop_ms=round(loop_ms, 9),
        loop_ratio=round(loop_ratio, 4),
        notes=notes,
    )


def compare_in_states(
    candidate: Call,
    baseline: Call,
    states: SpeedStates | None,
    *,
    of: str,
    seconds: float,
    clock: Clock,
    loop: Call = reference_loop,
) -> tuple[Timing, SpeedStates]:
    """:func:`compare` within the machine's speed states, and the states for the next comparison.

    states: of an earlier comparison. They are learned from the baseline where there are none, where
    they are of something else than ``of``, and once more where no round fits them; what the
    reference loop came to is the machine's and is not forgotten. Their reference changes when the
    machine has mostly gone over to another state. seconds: of one comparison.
    """
    effort = Effort(seconds=seconds, most_seconds=2 * seconds)

    def learned() -> SpeedStates:
        found = learn_states(baseline, of=of, seconds=seconds, clock=clock, loop=loop)
        best_ms = states.loop_ms if states else None
        return found if best_ms is None else found.reached(found.levels_ms[0], best_ms)

    def compared() -> Timing:
        return compare(candidate, baseline, states=states, effort=effort, clock=clock, loop=loop)

    if states is None or states.of != of:
        states = learned()
    timing = compared()
    if timing.unstable:
        states = learned()
        timing = compared()
    if timing.share > 0.5 and 0 <= timing.state != states.reference:
        states = replace(states, reference=timing.state)
    if not timing.unstable:
        states = states.reached(timing.baseline_ms, timing.loop_ms)
    return timing, states


def learn_states(
    baseline: Call,
    *,
    of: str = "",
    seconds: float = 2.0,
    clock: Clock = time.thread_time_ns,
    wall: Clock = time.perf_counter_ns,
    pin: bool = True,
    loop: Call = reference_loop,
) -> SpeedStates:
    """The speed states that ``baseline`` shows in the next ``seconds`` (at least 12 groups)."""
    with _quiet(pin):
        count = _group_size(baseline, clock)
        levels: list[float] = []
        loops: list[float] = []
        begin = wall()
        while len(levels) < 12 or wall() - begin < seconds * 1e9:
            levels.append(undisturbed_ms(_group(baseline, count, clock)))
            loops.append(_elapsed(loop, clock))
    return SpeedStates.from_levels(levels, of, round(undisturbed_ms(loops), 9))


def undisturbed_ms(calls_ms: Sequence[float]) -> float:
    """Mean of the fastest sixteenth of the calls, of at least five (or of all, if fewer).

    >>> undisturbed_ms([1.0, 1.0, 1.0, 1.0, 1.0, 1.4, 9.0])
    1.0
    """
    count = max(LEAST_CALLS, math.ceil(UNDISTURBED * len(calls_ms)))
    fastest = np.partition(calls_ms, count - 1)[:count] if count < len(calls_ms) else calls_ms
    return max(float(np.mean(fastest)), 1e-9)


def _ratio(base: list[list[float]], other: list[list[float]]) -> tuple[float, float]:
    """Undisturbed time of ``other`` over that of ``base``, and one standard error of it.

    The error is the jackknife's over eight blocks of consecutive rounds (Kuensch, Annals of
    Statistics 17, 1989: neighbouring rounds are alike, single ones must not be left out).
    """
    ratio = undisturbed_ms(_calls(other)) / undisturbed_ms(_calls(base))
    parts = [(len(other) * i // BLOCKS, len(other) * (i + 1) // BLOCKS) for i in range(BLOCKS)]
    without = np.array(
        [
            undisturbed_ms(_calls(other[:a] + other[b:]))
            / undisturbed_ms(_calls(base[:a] + base[b:]))
            for a, b in parts
        ]
    )
    spread = float(np.sum((without - without.mean()) ** 2))
    return ratio, math.sqrt((BLOCKS - 1) / BLOCKS * spread)


def _calls(groups: list[list[float]]) -> list[float]:
    return [ms for group in groups for ms in group]


def _group(call: Call, count: int, clock: Clock) -> list[float]:
    """Milliseconds of ``count`` calls after one discarded."""
    call()
    return [_elapsed(call, clock) for _ in range(count)]


def _elapsed(call: Call, clock: Clock) -> float:
    """Milliseconds of one call."""
    begin = clock()
    call()
    return max((clock() - begin) / 1e6, 1e-9)


def _group_size(call: Call, clock: Clock) -> int:
    """Calls in a group of about GROUP_MS, after a warm-up."""
    for _ in range(3):
        call()
    return max(1, min(MOST_CALLS, round(GROUP_MS / max(_elapsed(call, clock), 1e-6))))


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
