"""One number for how good a whole front is: the volume it dominates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from .dominance import Floats, costs, non_dominated
from .objective import Objective

WHOLE_LOSS = 0.40
"""Accuracy lost at the reference point."""
USEFUL_LOSS = 0.03
"""The same for the useful region near the baseline."""
RATIO = 1.05
"""Size and latency ratio of the reference point."""
SCORES = ("accuracy", "fidelity")


def hypervolume(points: Floats, reference: Floats) -> float:
    """The exact volume that ``points`` dominate below ``reference`` (less is better everywhere).

    points: (n, objectives); reference: (objectives,). Rows that are not below the reference in
    every objective add nothing. Dimension sweep: the points are sorted along the last objective
    and the volume is the sum of its slices, each the volume of one dimension less
    (While et al. 2006, "A faster algorithm for calculating hypervolume", section on slicing).
    """
    reference = np.asarray(reference, dtype=np.float64)
    points = np.asarray(points, dtype=np.float64).reshape(-1, len(reference))
    points = points[np.all(points < reference, axis=1)]
    return _volume(points[non_dominated(points)], reference)


def gain(points: Floats, point: Floats, reference: Floats) -> float:
    """The volume that ``point`` (objectives,) dominates and none of ``points`` does: what it
    dominates at all, less what they dominate of that (While et al. 2012, "A fast way of calculating
    exact hypervolumes")."""
    alone = float(np.prod(np.maximum(reference - point, 0.0)))
    if alone == 0.0:
        return 0.0
    return max(alone - hypervolume(np.maximum(points, point), reference), 0.0)


def _volume(points: Floats, reference: Floats) -> float:
    if len(points) == 0:
        return 0.0
    if len(reference) == 1:
        return float(reference[0] - points.min())
    if len(reference) == 2:
        ordered = points[np.lexsort((points[:, 1], points[:, 0]))]
        lowest = np.minimum.accumulate(ordered[:, 1])
        widths = np.diff(np.r_[ordered[:, 0], reference[0]])
        return float(np.sum(widths * (reference[1] - lowest)))
    ordered = points[np.argsort(points[:, -1], kind="stable")]
    heights = np.diff(np.r_[ordered[:, -1], reference[-1]])
    total = 0.0
    slab = np.empty((0, len(reference) - 1))
    for row, height in zip(ordered, heights, strict=True):
        slab = np.vstack([slab, row[:-1]])
        if height > 0:
            slab = slab[non_dominated(slab)]
            total += float(height) * _volume(slab, reference[:-1])
    return total


def ratios(
    values: Iterable[Mapping[str, float]], baseline: Mapping[str, float]
) -> tuple[list[str], Floats]:
    """The points on the hypervolume's axes: (axis names, array (points, axes), less is better).

    Axes: score lost against the baseline (accuracy, or fidelity without labels; a gain counts as
    no loss), size over the baseline's, latency over the baseline's. Where latency is not measured
    the ratio of MACs takes its place; an axis that the baseline does not have is left out. A point
    that lacks the value of an axis gets infinity there, so that it adds nothing.
    """
    score = "accuracy" if "accuracy" in baseline else "fidelity"
    speed = "latency_ms" if "latency_ms" in baseline else "macs"
    axes = [name for name in (score, "size_bytes", speed) if name in baseline]
    rows = [[_on_axis(name, point, baseline[name]) for name in axes] for point in values]
    return axes, np.asarray(rows, dtype=np.float64).reshape(len(rows), len(axes))


def _on_axis(name: str, point: Mapping[str, float], baseline: float) -> float:
    """One coordinate. What was measured beside the baseline (drop, ratio) is preferred to the
    difference or quotient of two separate measurements."""
    beside = {
        "accuracy": "accuracy_drop",
        "size_bytes": "size_ratio",
        "latency_ms": "latency_ratio",
    }
    if beside.get(name) in point:
        return max(point[beside[name]], 0.0)
    if name not in point:
        return np.inf
    if name in SCORES:
        return max(baseline - point[name], 0.0)
    return max(point[name] / baseline, 0.0) if baseline > 0 else np.inf


def normalized_hypervolume(
    values: Iterable[Mapping[str, float]],
    baseline: Mapping[str, float],
    loss: float = WHOLE_LOSS,
) -> float:
    """The share of the box between the reference point and the ideal that these points dominate.

    values: of each point, named as in QUANTITIES. baseline: the identity plan's values.
    Reference: ``loss`` of accuracy lost (0.40; the useful region: 0.03), 1.05 times the baseline's
    size and 1.05 times its latency (MACs where latency is not measured). The ideal is no accuracy
    lost, no bytes, no time; gains over the baseline's accuracy count as no loss. 0 to 1.
    """
    axes, points = ratios(values, baseline)
    if not axes:
        return 0.0
    reference = corner(axes, loss)
    return hypervolume(points, reference) / float(np.prod(reference))


def corner(axes: Sequence[str], loss: float = WHOLE_LOSS) -> Floats:
    """The reference point on these axes, see :func:`normalized_hypervolume`."""
    return np.array([loss if name in SCORES else RATIO for name in axes])


def growth(
    values: Sequence[Mapping[str, float]],
    baseline: Mapping[str, float],
    objectives: Sequence[Objective],
) -> list[tuple[float, float, int]]:
    """After each point in turn: (hypervolume, that of the useful region, points on the front)."""
    names, axes = ratios(values, baseline)
    corners = [corner(names, loss) for loss in (WHOLE_LOSS, USEFUL_LOSS)] if names else []
    goals = costs(values, objectives)
    both = np.hstack([goals, axes])
    kept = np.zeros(0, dtype=np.intp)
    volumes, steps = [0.0, 0.0], []
    size = 0
    for index, row in enumerate(both):
        if not np.any(np.all(both[kept] <= row, axis=1)):
            for i, reference in enumerate(corners):
                volumes[i] += gain(axes[kept], axes[index], reference) / float(np.prod(reference))
            kept = np.append(kept[np.any(both[kept] < row, axis=1)], index)
            size = int(non_dominated(goals[kept]).sum())
        steps.append((volumes[0], volumes[1], size))
    return steps
