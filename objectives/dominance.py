"""Which points are beaten by another in everything: Pareto dominance with directions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from .objective import Objective

Floats = npt.NDArray[np.float64]


def costs(values: Sequence[Mapping[str, float]], objectives: Sequence[Objective]) -> Floats:
    """The objectives as an array (points, objectives) where less is better."""
    rows = [[-v[o.name] if o.maximize else v[o.name] for o in objectives] for v in values]
    return np.asarray(rows, dtype=np.float64).reshape(len(rows), len(objectives))


def dominates(
    a: Mapping[str, float], b: Mapping[str, float], objectives: Sequence[Objective]
) -> bool:
    """Whether ``a`` is nowhere worse than ``b`` and somewhere better."""
    first, second = costs([a, b], objectives)
    return bool(np.all(first <= second) and np.any(first < second))


def non_dominated(points: Floats) -> npt.NDArray[np.bool_]:
    """Mask of the rows of ``points`` (n, objectives; less is better) that no other row dominates.

    Equal rows do not dominate each other: all of them stay. Two objectives take one sort and a
    sweep; more are compared in lexicographic order with the rows kept so far, which is enough
    because a row can only be dominated by one that sorts before it.
    """
    count, width = points.shape
    if count == 0:
        return np.zeros(0, dtype=bool)
    distinct, inverse = np.unique(points, axis=0, return_inverse=True)  # sorted lexicographically
    keep = np.ones(len(distinct), dtype=bool)
    if width == 2:
        best_before = np.minimum.accumulate(np.r_[np.inf, distinct[:-1, 1]])
        keep = distinct[:, 1] < best_before
    else:
        front = np.empty((0, width))
        for index, row in enumerate(distinct):
            keep[index] = not np.any(np.all(front <= row, axis=1))
            if keep[index]:
                front = np.vstack([front, row])
    return np.asarray(keep[np.asarray(inverse).reshape(-1)])
