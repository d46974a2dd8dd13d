"""Is this answer of a board possible at all? A number that cannot be true is not used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import InputError, ParetuneError
from .speed_states import SpeedStates
from .timing_result import Timing

FASTEST, SLOWEST = 1e-4, 1e4  # ratios
SHORTEST_MS, LONGEST_MS = 1e-5, 1e6
SLACK = 0.95  # rounding: a time is a mean of the fastest calls, so that all took longer


class ImpossibleAnswer(ParetuneError):
    """A board says what cannot be: another model, another question, or no possible number."""


def check_echo(fields: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """The answer must repeat what was asked (nonce and hashes), to the letter."""
    for name, value in asked.items():
        if fields.get(name) != value:
            raise ImpossibleAnswer(f"its answer is to another question ({name} differs)")


def read_outputs(outputs: np.ndarray | None, count: int) -> np.ndarray:
    """A row of outputs for each of ``count`` inputs."""
    if outputs is None or outputs.ndim == 0 or len(outputs) != count:
        raise ImpossibleAnswer(f"its answer holds no {count} rows of outputs")
    return outputs


def read_timing(fields: Mapping[str, Any], wall_s: float) -> tuple[Timing, SpeedStates]:
    """The timing and the speed states in an answer that took ``wall_s`` seconds to come.

    Raises ImpossibleAnswer: a field missing, not finite or out of range, or more rounds than fit
    into the time that passed here.
    """
    said = fields.get("timing")
    if not isinstance(said, Mapping) or set(said) != set(Timing.__dataclass_fields__):
        raise ImpossibleAnswer("its timing has other fields than a timing")
    ratio = _number(said, "ratio", FASTEST, SLOWEST)
    baseline_ms = _number(said, "baseline_ms", SHORTEST_MS, LONGEST_MS)
    error = _number(said, "ratio_error", 0.0, 10 * ratio)
    share = _number(said, "share", 0.0, 1.0)
    loop_ms = _number(said, "loop_ms", SHORTEST_MS, LONGEST_MS)
    loop_ratio = _number(said, "loop_ratio", 1.0, SLOWEST)
    rounds = _whole(said, "rounds", 1, 10_000_000)
    state = _whole(said, "state", -1, 100)
    unstable, notes = said["unstable"], said["notes"]
    if type(unstable) is not bool or not isinstance(notes, dict) or len(notes) > 64:
        raise ImpossibleAnswer("its timing says neither stable nor unstable, or notes too much")
    if not unstable and (state < 0 or share <= 0):
        raise ImpossibleAnswer("its timing is stable in no speed state")
    least_s = SLACK * rounds * (1 + ratio) * baseline_ms / 1000
    if least_s > wall_s:
        raise ImpossibleAnswer(
            f"it says {rounds} rounds of {(1 + ratio) * baseline_ms:.3g} ms, "
            f"but answered after {wall_s:.3g} s"
        )
    try:
        states = SpeedStates.from_json(fields.get("states"), "its speed states")
    except (InputError, TypeError, ValueError, OverflowError) as problem:
        raise ImpossibleAnswer(str(problem)[:200]) from None
    for level in states.levels_ms:
        if not SHORTEST_MS <= level <= LONGEST_MS:
            raise ImpossibleAnswer(f"a speed state of {level!r} ms")
    if states.loop_ms is None or not SHORTEST_MS <= states.loop_ms <= LONGEST_MS:
        raise ImpossibleAnswer(f"a reference loop of {states.loop_ms!r} ms")
    if state >= len(states.levels_ms):
        raise ImpossibleAnswer(f"speed state {state} of {len(states.levels_ms)}")
    if not unstable and states.classify(baseline_ms) != state:
        raise ImpossibleAnswer("the baseline's time is not one of its speed state")
    return (
        Timing(
            *(ratio, error, baseline_ms, rounds, state, share, unstable),
            *(loop_ms, loop_ratio, notes),
        ),
        states,
    )


def _number(said: Mapping[str, Any], name: str, least: float, most: float) -> float:
    value = said[name]
    if type(value) not in (int, float) or not least <= value <= most:  # nor is NaN
        raise ImpossibleAnswer(f"{name} is {value!r:.40}")
    return float(value)


def _whole(said: Mapping[str, Any], name: str, least: int, most: int) -> int:
    value = said[name]
    if type(value) is not int or not least <= value <= most:
        raise ImpossibleAnswer(f"{name} is {value!r:.40}")
    return value
