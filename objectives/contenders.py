"""Points that only the error of a measurement may keep off the front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from .dominance import Floats, costs, non_dominated
from .evaluation import Evaluation
from .objective import Objective

MOST_ERRORS = 1.0
"""Standard errors by which a point may be beaten and still be worth another look."""


def worth_confirming(found: Mapping[int, Evaluation], objectives: Sequence[Objective]) -> list[int]:
    """Numbers of the points beside the front of ``found`` that deserve a second look.

    A score counted on a thousand examples is wrong by half a point, so the front of a search is in
    part a front of lucky scores. These are the points that would be on it were they better by at
    most one standard error, those that need least first, at most as many as the front has.
    """
    names = [o.name for o in objectives]
    numbers = sorted(n for n, e in found.items() if all(name in e.values for name in names))
    if not numbers:
        return []
    points = costs([found[n].values for n in numbers], objectives)
    on = non_dominated(points)
    errors = np.array([[_error(found[n], name) for name in names] for n in numbers])
    needed = {
        n: _needed(points[i], errors[i], points[on]) for i, n in enumerate(numbers) if not on[i]
    }
    near = sorted((n for n in needed if needed[n] <= MOST_ERRORS), key=lambda n: (needed[n], n))
    return near[: int(on.sum())]


def _error(evaluation: Evaluation, name: str) -> float:
    """One standard error; of an accuracy that of what was lost, which the same examples tell."""
    errors = evaluation.errors
    return float(errors.get("accuracy_drop" if name == "accuracy" else name, errors.get(name, 0.0)))


def _needed(point: Floats, error: Floats, front: Floats) -> float:
    """By how many standard errors ``point`` must be better for nothing on the front to beat it."""
    beats = front[np.all(front <= point, axis=1)]
    with np.errstate(divide="ignore", invalid="ignore"):
        behind = np.where(error > 0, (point - beats) / error, np.inf)
    return float(behind.min(axis=1).max(initial=0.0))
