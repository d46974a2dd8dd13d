"""Two points, or two searches, side by side: what differs, by how much, and who beats whom."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from ..errors import InputError
from ..spaces.plan import CompressionPlan, LayerChoice
from .front import ParetoFront
from .hypervolume import SCORES, ratios
from .objective import QUANTITIES, quantity_name
from .point import Point
from .ties import TIE_ERRORS, TIE_SHARE, tie_groups


@dataclass(frozen=True)
class Difference:
    """One value of two points. error: one standard error of the difference, 0 where none is known.

    better: ``"A"``, ``"B"``, or ``""`` where they differ by less than two errors (0.1 % for a value
    without one) or where neither direction is better.
    """

    name: str
    a: float
    b: float
    error: float
    better: str


@dataclass(frozen=True)
class PointComparison:
    """Two points of one study. dominates: ``"A"``, ``"B"`` or ``""``, in the objectives, as
    measured; tied: whether errors leave nothing to tell them apart. plan: (layer or group, A's
    choice, B's choice) where they differ."""

    values: tuple[Difference, ...]
    dominates: str
    tied: bool
    plan: tuple[tuple[str, str, str], ...]


def compare_points(front: ParetoFront, a: Point, b: Point) -> PointComparison:
    """What tells two measured points apart.

    Raises InputError when one was measured again on the evaluation split and the other was not:
    such accuracies cannot be compared.
    """
    if (a.rung == "confirm") != (b.rung == "confirm"):
        again, other = (a, b) if a.rung == "confirm" else (b, a)
        raise InputError(
            f"trials {a.number} and {b.number}",
            f"trial {again.number} was confirmed on the evaluation data, {other.number} was not",
            "compare two points of the front, or two that are not on it",
        )
    names = [n for n in QUANTITIES if n in a.values and n in b.values]
    names += sorted({*a.values} & {*b.values} - {*names})
    values = tuple(_difference(n, a, b) for n in names)
    goals = [_signs(a, b, o.name, o.maximize) for o in front.objectives]
    comparable = all(g is not None for g in goals)
    signs = [g for g in goals if g is not None]
    dominates = ""
    if comparable and any(signs):
        dominates = "A" if min(signs) >= 0 else "B" if max(signs) <= 0 else ""
    pair = [replace(p, front=True) for p in (a, b)]
    tied = comparable and len(tie_groups(pair, [o.name for o in front.objectives])) == len(pair)
    return PointComparison(values, dominates, tied, _plan_differences(a.plan, b.plan))


def _signs(a: Point, b: Point, name: str, maximize: bool) -> int | None:
    """1 where A is better, -1 where B is, 0 where they are equal."""
    if name not in a.values or name not in b.values:
        return None
    sign = np.sign(a.values[name] - b.values[name])
    return int(sign if maximize else -sign)


def _difference(name: str, a: Point, b: Point) -> Difference:
    x, y = a.values[name], b.values[name]
    error = _error(name, a, b)
    known = quantity_name(name)
    apart = abs(x - y) > (TIE_ERRORS * error or TIE_SHARE * max(abs(x), abs(y)))
    if known is None or not apart:
        return Difference(name, x, y, error, "")
    higher = "A" if x > y else "B"
    lower = "B" if higher == "A" else "A"
    return Difference(name, x, y, error, higher if QUANTITIES[known].maximize else lower)


def _error(name: str, a: Point, b: Point) -> float:
    """One standard error of a difference. Scores of the same examples are paired: each point's
    against the baseline's, so that the errors of what was lost bound that of the difference."""
    error = math.hypot(a.errors.get(name, 0.0), b.errors.get(name, 0.0))
    paired = [p.errors.get("accuracy_drop", 0.0) for p in (a, b)]
    return min(error, math.hypot(*paired)) if name == "accuracy" and all(paired) else error


def _plan_differences(a: CompressionPlan, b: CompressionPlan) -> tuple[tuple[str, str, str], ...]:
    rows = [
        (f"{name} channels", str(a.groups.get(name, "–")), str(b.groups.get(name, "–")))
        for name in dict.fromkeys([*a.groups, *b.groups])
    ]
    whole = LayerChoice()
    rows += [
        (name, str(a.layers.get(name, whole)), str(b.layers.get(name, whole)))
        for name in dict.fromkeys([*a.layers, *b.layers])
    ]
    return tuple(row for row in rows if row[1] != row[2])


@dataclass(frozen=True)
class Side:
    """One search of two. beaten: points of its front that a point of the other's front dominates;
    hypervolume, useful: as everywhere, each over its own baseline."""

    points: int
    measured: int
    beaten: int
    hypervolume: float
    useful: float
    baseline: Mapping[str, float]


@dataclass(frozen=True)
class SearchComparison:
    """Two searches. axes: what is compared, every value over the search's own baseline.
    confirmed: whether the values are those of the evaluation split. warnings: what makes the
    comparison doubtful."""

    a: Side
    b: Side
    axes: tuple[str, ...]
    confirmed: bool
    warnings: tuple[str, ...]


def compare_fronts(a: ParetoFront, b: ParetoFront) -> SearchComparison:
    """Two fronts of the same kind of search.

    Points are compared by what they lost and saved relative to their own baseline (accuracy lost,
    size ratio, latency ratio; MACs where latency is not measured): the hypervolume's axes. Who
    beats whom is Zitzler and Thiele's coverage (1999, IEEE TEC 3(4), section III), with strict
    dominance. Raises InputError when the searches have no baseline or other axes.
    """
    axes = [axes_of_search(front) for front in (a, b)]
    if axes[0] != axes[1] or not axes[0]:
        shown = [", ".join(names) or "nothing" for names in axes]
        raise InputError(
            "compare", f"one search measured {shown[0]}, the other {shown[1]}", "search alike"
        )
    coordinates = [_coordinates(front) for front in (a, b)]
    sides = [
        Side(
            points=len(front),
            measured=len(front.points),
            beaten=_beaten(coordinates[i], coordinates[1 - i]),
            hypervolume=front.hypervolume(),
            useful=front.hypervolume_useful(),
            baseline=dict(front.baseline.values) if front.baseline else {},
        )
        for i, front in enumerate((a, b))
    ]
    rungs = {p.rung for front in (a, b) for p in front}
    return SearchComparison(
        sides[0], sides[1], tuple(axes[0]), rungs == {"confirm"}, tuple(_warnings(a, b))
    )


def axes_of_search(front: ParetoFront) -> list[str]:
    """``accuracy``, ``size_bytes``, ``latency_ms`` or ``macs``: those that its baseline has."""
    base = front.baseline.values if front.baseline else {}
    return ratios([], base)[0]


def _coordinates(front: ParetoFront) -> np.ndarray:
    base = front.baseline.values if front.baseline else {}
    return ratios([p.values for p in front], base)[1]


def _beaten(mine: np.ndarray, others: np.ndarray) -> int:
    """How many of mine some other one dominates."""
    return sum(
        bool(np.any(np.all(others <= row, axis=1) & np.any(others < row, axis=1))) for row in mine
    )


def _warnings(a: ParetoFront, b: ParetoFront) -> list[str]:
    found: list[str] = []
    if a.baseline is None or b.baseline is None:
        return found
    x, y = a.baseline, b.baseline
    for name in ("params", "macs", "size_bytes"):
        if x.values.get(name) != y.values.get(name):
            found.append(f"the baselines differ in {name}: not the same network or export")
            break
    score = next((n for n in SCORES if n in x.values and n in y.values), None)
    if score is not None:
        error = math.hypot(x.errors.get(score, 0.0), y.errors.get(score, 0.0))
        if abs(x.values[score] - y.values[score]) > TIE_ERRORS * error + 1e-12:
            found.append(f"the baselines differ in {score}: not the same weights or data")
    there, here = (e.notes.get("environment") or {} for e in (x, y))
    if there.get("cpu") != here.get("cpu"):
        found.append("measured on different processors: latency ratios need not carry over")
    if {p.rung for p in a} != {p.rung for p in b}:
        found.append("one front is confirmed on the evaluation data, the other is not")
    return found
