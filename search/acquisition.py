"""Which candidates to try next: those that are expected to add most hypervolume."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr

from .knapsack import Floats

POINTS = 4096
"""Sample points of each of the two boxes."""
_LOOKED_AT = 640  # of the points that are not dominated yet, for one decision
_ROUNDS = 8


class Region:
    """The part of the objectives' space that counts, as sample points, less what is dominated.

    Coordinates: (loss of score, ratio to the baseline ...), less is better. Two boxes are filled
    evenly: the whole one and the useful one near the baseline. The share of the points of a box
    that become dominated is the gain in its normalised hypervolume; ``focus`` is the weight of the
    useful one.

    lengths: (whole, useful) reference of the loss; ratio: reference of the other axes.
    allowed: whether a point meets the constraints. Where none does, all points count.
    """

    def __init__(
        self,
        axes: int,
        lengths: tuple[float, float],
        ratio: float,
        focus: float,
        rng: np.random.Generator,
        allowed: Callable[[Floats], Sequence[bool]] | None = None,
    ) -> None:
        parts, weights = [], []
        for length, weight in zip(lengths, (1.0 - focus, focus), strict=True):
            if weight <= 0:
                continue
            corner = np.array([length, *[ratio] * (axes - 1)])
            points = _sampled(rng, corner, allowed)
            parts.append(points)
            weights.append(np.full(len(points), weight / max(1, len(points))))
        self.points = np.concatenate(parts)
        self.weights = np.concatenate(weights)
        self.feasible = allowed is None or bool(len(self.points))
        if not len(self.points):  # nothing in the boxes meets the constraints
            corner = np.array([lengths[0], *[ratio] * (axes - 1)])
            self.points = rng.random((POINTS, axes)) * corner
            self.weights = np.full(POINTS, 1.0 / POINTS)
        self.open = np.ones(len(self.points), dtype=bool)

    def dominate(self, point: Floats) -> None:
        """A true result: what it dominates can be gained no more."""
        self.open &= ~np.all(point <= self.points, axis=1)

    def view(self, rng: np.random.Generator, beside: Floats | None = None) -> tuple[Floats, Floats]:
        """Some of the points that can still be gained, with their weights. beside: results (n,
        axes) that count for this look only."""
        found = np.flatnonzero(self.open)
        if beside is not None and len(beside):
            found = found[~_below(beside, self.points[found]).any(axis=0)]
        if len(found) > _LOOKED_AT:
            picked = rng.choice(len(found), _LOOKED_AT, replace=False)
            found = found[np.sort(picked)]
        return self.points[found], self.weights[found]


def _sampled(
    rng: np.random.Generator,
    corner: Floats,
    allowed: Callable[[Floats], Sequence[bool]] | None,
) -> Floats:
    if allowed is None:
        return np.asarray(rng.random((POINTS, len(corner))) * corner)
    found: list[Floats] = []
    for _ in range(_ROUNDS):
        points = rng.random((POINTS, len(corner))) * corner
        found.append(points[np.asarray(allowed(points), dtype=bool)])
        if sum(len(f) for f in found) >= POINTS:
            break
    return np.concatenate(found)[:POINTS]


def _below(some: Floats, points: Floats) -> npt.NDArray[np.bool_]:
    """(some, points): which of some are nowhere above which point; both (n, axes)."""
    below = np.ones((len(some), len(points)), dtype=bool)
    for axis in range(points.shape[1]):
        below &= some[:, axis][:, None] <= points[:, axis][None, :]
    return below


def chances(loss: Floats, error: Floats, ratios: Floats, points: Floats) -> Floats:
    """(candidates, points): the probability that a candidate dominates a point.

    Its ratios are taken as certain, its loss as normally distributed about the expected one.
    """
    below = _below(ratios, points[:, 1:])
    out = np.zeros(below.shape)
    who, where = np.nonzero(below)  # the rest is certain
    out[who, where] = ndtr((points[where, 0] - loss[who]) / error[who])
    return out


def pick(chance: Floats, weights: Floats, count: int, bonus: Floats) -> list[int]:
    """Candidates in the order in which a greedy eye takes them, at most ``count``.

    Each adds the expected hypervolume that those before it leave (sequential greedy expected
    hypervolume improvement, Daulton et al. 2020, section 3.4); ``bonus`` (candidates,) decides
    where nothing is expected.
    """
    left = weights.copy()
    gains = chance @ left
    taken: list[int] = []
    floor = 1e-9 * max(float(weights.sum()), 1e-12)
    for _ in range(min(count, len(chance))):
        value = gains + floor * bonus
        value[taken] = -np.inf
        best = int(np.argmax(value))
        taken.append(best)
        left = left * (1.0 - chance[best])
        gains = chance @ left
    return taken
