"""The speed states of a shared machine: the levels between which its clock seems to switch.

A virtual machine whose neighbours come and go runs the same network at two or three distinct
speeds, for fractions of a second to minutes each; and the ratio of an int8 network to its
float32 baseline differs between them, because the two suffer differently. Numbers are
comparable only within one state.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from ..errors import InputError

VERSION = 1
WIDEST = math.log(1.20)  # a level further than this from every state belongs to none
NEAR = 0.08  # a level further than this above a state's is disturbed, if it belongs to no other
BANDWIDTH = 0.035  # of the density estimate, in log milliseconds
VALLEY = 0.75  # two peaks are two states if the density between them falls below this share
LEAST_SHARE = 0.08
BEST_WITHIN = 0.05  # of the fastest level: the machine's best speed
LEAST_BEST, BEST_SHARE = 6, 0.02  # so many groups, and this share, make it a state


@dataclass(frozen=True)
class SpeedStates:
    """Baseline levels of the speed states of one machine, fastest first.

    levels_ms: the baseline's time for one batch in each state, milliseconds.
    shares: how much of the learning time each state took. reference: the index of the state
    that comparisons are made in if they can: the fastest, in which the machine is undisturbed
    (a neighbour only ever adds time, and to some networks more than to others).
    of: what was timed (a digest of the baseline file, the batch and the threads). loop_ms: the
    reference loop's best time on this machine (see timing.py), milliseconds; None: not known.
    """

    levels_ms: tuple[float, ...]
    shares: tuple[float, ...]
    reference: int
    of: str = ""
    loop_ms: float | None = None

    @classmethod
    def from_levels(
        cls,
        levels_ms: Sequence[float] | np.ndarray,
        of: str = "",
        loop_ms: float | None = None,
    ) -> SpeedStates:
        """Find the states in baseline levels measured one after another (milliseconds, > 0).

        Peaks of a Gaussian kernel density over the logarithm, parted by a clear valley; and the
        machine's best speed, where it was met often enough to be no accident, even if a busy
        neighbour left no peak there.

        >>> SpeedStates.from_levels([1.0] * 30 + [1.35] * 60).levels_ms
        (1.0, 1.35)
        """
        levels = np.sort(np.asarray(levels_ms, dtype=np.float64))
        if levels.size == 0 or not np.all(np.isfinite(levels)) or levels[0] <= 0:
            raise InputError("speed states", "need levels above 0", "time the baseline first")
        logs = np.log(levels)
        grid = np.arange(logs[0] - 3 * BANDWIDTH, logs[-1] + 3 * BANDWIDTH, BANDWIDTH / 4)
        distance = (grid[:, None] - logs[None, :]) / BANDWIDTH
        density = np.exp(-0.5 * distance * distance).sum(axis=1)
        centres = [float(grid[i]) for i in _peaks(density)]
        best = logs[logs <= logs[0] + BEST_WITHIN]
        enough = best.size >= max(LEAST_BEST, BEST_SHARE * logs.size)
        if enough and centres[0] - float(np.median(best)) > 2 * BEST_WITHIN:
            centres.insert(0, float(np.median(best)))
        edges = [-math.inf, *((a + b) / 2 for a, b in pairwise(centres)), math.inf]
        parts = [logs[(logs >= a) & (logs < b)] for a, b in pairwise(edges)]
        near = [part[np.abs(part - c) <= WIDEST] for part, c in zip(parts, centres, strict=True)]
        kept = [
            n
            for i, n in enumerate(near)
            if n.size >= (BEST_SHARE if i == 0 else LEAST_SHARE) * logs.size
        ]
        kept = kept or [max(near, key=len)] if any(n.size for n in near) else [logs]
        shares = tuple(round(n.size / logs.size, 4) for n in kept)
        return cls(
            levels_ms=tuple(round(float(np.exp(np.median(n))), 6) for n in kept),
            shares=shares,
            reference=0,
            of=of,
            loop_ms=loop_ms,
        )

    def classify(self, level_ms: float) -> int | None:
        """The state nearest to a baseline level, or None: all are further than 20 % away."""
        if not level_ms > 0:
            return None
        place = math.log(level_ms)
        centres = [math.log(level) for level in self.levels_ms]
        index = min(range(len(centres)), key=lambda i: abs(place - centres[i]))
        return index if abs(place - centres[index]) <= WIDEST else None

    def undisturbed(self, level_ms: float) -> bool:
        """Whether a baseline level is that of the reference state, or faster."""
        return level_ms <= self.levels_ms[self.reference] * (1 + NEAR)

    def reached(self, level_ms: float, loop_ms: float) -> SpeedStates:
        """The same, where the fastest state or the loop turned out to be faster than learned."""
        levels = self.levels_ms
        if level_ms < levels[0] and self.classify(level_ms) == 0:
            levels = (round(level_ms, 6), *levels[1:])
        best = loop_ms if self.loop_ms is None else min(loop_ms, self.loop_ms)
        return replace(self, levels_ms=levels, loop_ms=best)

    def to_json(self) -> dict[str, Any]:
        """The states as plain JSON; :meth:`from_json` reads them back equal."""
        return {
            "version": VERSION,
            "levels_ms": list(self.levels_ms),
            "shares": list(self.shares),
            "reference": self.reference,
            "of": self.of,
            "loop_ms": self.loop_ms,
        }

    @classmethod
    def from_json(cls, data: Any, where: str = "speed states") -> SpeedStates:
        """Read states back. Raises InputError where they are not states of this version."""
        if not isinstance(data, Mapping) or data.get("version") != VERSION:
            raise InputError(where, "not speed states of this version", "learn them again")
        levels, shares = data.get("levels_ms"), data.get("shares")
        reference, loop_ms = data.get("reference"), data.get("loop_ms")
        sound = (
            isinstance(levels, list)
            and isinstance(shares, list)
            and len(levels) == len(shares) > 0
            and all(isinstance(v, int | float) and v > 0 for v in (*levels, *shares))
            and sorted(levels) == levels
            and isinstance(reference, int)
            and 0 <= reference < len(levels)
            and (loop_ms is None or (isinstance(loop_ms, int | float) and 0 < loop_ms < math.inf))
        )
        if not sound:
            raise InputError(where, f"levels, shares, reference or loop are wrong in {data!r}", "")
        return cls(
            levels_ms=tuple(float(v) for v in levels or ()),
            shares=tuple(float(v) for v in shares or ()),
            reference=int(reference or 0),
            of=str(data.get("of", "")),
            loop_ms=None if loop_ms is None else float(loop_ms),
        )


def what_is_timed(baseline: bytes, shape: Sequence[int], threads: int) -> str:
    """``SpeedStates.of`` for a baseline file, the shape of the batch and the threads."""
    digest = hashlib.sha256(baseline).hexdigest()[:16]
    return f"{digest} {'x'.join(map(str, shape))} threads={threads}"


def _peaks(density: np.ndarray) -> list[int]:
    """Indices of the peaks that are parted from every higher-placed neighbour by a valley."""
    inner = (density[1:-1] >= density[:-2]) & (density[1:-1] > density[2:])
    peaks = [int(i) + 1 for i in np.flatnonzero(inner)] or [int(np.argmax(density))]
    merged = True
    while merged and len(peaks) > 1:
        merged = False
        for left, right in pairwise(list(peaks)):
            lower = min(density[left], density[right])
            if density[left : right + 1].min() > VALLEY * lower:
                peaks.remove(left if density[left] < density[right] else right)
                merged = True
                break
    return peaks
