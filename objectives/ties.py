"""Which measured points cannot be told apart."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .point import Point

TIE_ERRORS = 2.0
"""Points closer than this many combined standard errors in every objective are a tie."""
TIE_SHARE = 1e-3
"""The same for values without an error, as a share of the larger one."""


def tie_groups(points: Sequence[Point], names: Sequence[str]) -> dict[int, int]:
    """Number of a tied point -> number of the point that leads its group.

    points: in the order of rank; those on the front lead. names: the objectives. Two points tie
    when in every objective they differ by no more than two combined standard errors (0.1 % for a
    value without an error), on the same split.
    """
    values = np.array([[p.values[name] for name in names] for p in points])
    errors = np.array([[p.errors.get(name, 0.0) for name in names] for p in points])
    values, errors = (a.reshape(len(points), len(names)) for a in (values, errors))
    again = np.array([p.rung == "confirm" for p in points], dtype=bool)
    free = np.ones(len(points), dtype=bool)
    groups: dict[int, int] = {}
    for place, leader in enumerate(points):
        if not leader.front or not free[place]:
            continue
        error = TIE_ERRORS * np.hypot(errors, errors[place])
        share = TIE_SHARE * np.maximum(np.abs(values), np.abs(values[place]))
        near = np.abs(values - values[place]) <= np.where(error > 0, error, share)
        tied = free & (again == again[place]) & near.all(axis=1)
        if tied.sum() > 1:
            free &= ~tied
            groups.update({points[i].number: leader.number for i in np.flatnonzero(tied).tolist()})
    return groups
