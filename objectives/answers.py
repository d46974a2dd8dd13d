"""What a person asks a front first: the fastest, the smallest point within a loss they accept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .wording import legible, points

if TYPE_CHECKING:
    from .expression import Expression
    from .front import ParetoFront
    from .point import Point

WITHIN = (0.005, 0.01, 0.02, 0.05)
_TITLES = {
    "latency_ms": "Fastest",
    "size_bytes": "Smallest",
    "macs": "Fewest MACs",
    "params": "Fewest parameters",
}
_RATIOS = {"latency_ms": "latency", "size_bytes": "bytes", "macs": "MACs", "params": "parameters"}


@dataclass(frozen=True)
class Answer:
    """The best point in ``best`` (e.g. ``latency_ms``) among those that lose at most ``within``."""

    within: float  # accuracy lost, as a share
    best: str
    point: Point

    @property
    def title(self) -> str:
        """``Fastest within 0.5 points``."""
        return f"{_TITLES[self.best]} within {_limit(self.within)}"


def _limit(within: float) -> str:
    return f"{100 * within:g} point{'' if within == 0.01 else 's'}"


def ratio(front: ParetoFront, point: Point, name: str) -> float | None:
    """A point's value over the baseline's, as measured beside it where that is known."""
    beside = {"latency_ms": "latency_ratio", "size_bytes": "size_ratio"}.get(name, "")
    if beside in point.values:
        return point.values[beside]
    base = front.baseline.values.get(name, 0.0) if front.baseline else 0.0
    return point.values[name] / base if base > 0 and name in point.values else None


def cost_names(front: ParetoFront) -> list[str]:
    """What this study saves: latency and size where measured, else MACs and parameters."""
    measured = [n for n in _TITLES if any(n in p.values for p in front.front)]
    return measured[:2]


def answers(front: ParetoFront, within: Sequence[float] = WITHIN) -> list[Answer]:
    """For each accepted loss the best front point in each cost; never the baseline itself."""
    out: list[Answer] = []
    for limit in within:
        for name in cost_names(front):
            near = [p for p in front.front if front.drop(p) <= limit and name in p.values]
            near.sort(key=lambda p: (p.values[name], front.drop(p), p.number))
            share = ratio(front, near[0], name) if near else None
            if near and (share is None or share < 0.999):
                out.append(Answer(limit, name, near[0]))
    return out


def answer(front: ParetoFront, name: str) -> Answer | None:
    """The answer for one cost at the smallest loss that has one."""
    return next((a for a in answers(front) if a.best == name), None)


def gains(front: ParetoFront, point: Point, names: Sequence[str] = ()) -> str:
    """``0.41× latency at 0.22× bytes``; names: the costs to tell (default: those of the study)."""
    parts = [(ratio(front, point, name), _RATIOS[name]) for name in names or cost_names(front)]
    return " at ".join(f"{share:.2f}× {word}" for share, word in parts if share is not None)


def conclusion(front: ParetoFront) -> str:
    """In one line: ``Best within 0.5 points: 0.41× latency at 0.22× bytes (trial 37)``."""
    if not len(front):
        near = front.nearest()
        closest = f"; the nearest is trial {near.number}" if near else ""
        return "No measured point meets the constraints" + closest
    names = cost_names(front)
    found = answer(front, names[0]) if names else None
    if found is None:
        return f"{len(front)} points on the front; none within 5 points beats the baseline"
    point = found.point
    return f"Best within {_limit(found.within)}: {gains(front, point)} (trial {point.number})"


def grouped(front: ParetoFront) -> list[tuple[str, Point]]:
    """The answers with those that are the same point in one row: (what was asked for, point)."""
    limits: dict[int, dict[str, list[float]]] = {}
    for found in answers(front):
        kinds = limits.setdefault(found.point.number, {})
        kinds.setdefault(_TITLES[found.best], []).append(found.within)
    return [(_phrase(kinds), front[number]) for number, kinds in limits.items()]


def _phrase(kinds: dict[str, list[float]]) -> str:
    """``Fastest and smallest within 0.5 to 2 points``."""
    same: dict[tuple[float, ...], list[str]] = {}
    for kind, limits in kinds.items():
        same.setdefault(tuple(limits), []).append(kind)
    out = []
    for reach, names in same.items():
        words = " and ".join([names[0], *(n[0].lower() + n[1:] for n in names[1:])])
        low = f"{100 * reach[0]:g} to " if len(reach) > 1 else ""
        out.append(f"{words} within {low}{_limit(reach[-1])}")
    return " · ".join(out)


def markdown(front: ParetoFront) -> str:
    """The answers as a Markdown table, relative to the baseline; for a run's description."""
    lines = [
        f"**{conclusion(front)}**",
        "",
        "| | trial | accuracy | points | latency | size | what was changed |",
        "|---|---|---|---|---|---|---|",
    ]
    for asked, p in grouped(front):
        latency = legible("latency_ratio", ratio(front, p, "latency_ms"))
        size = legible("size_ratio", ratio(front, p, "size_bytes"))
        cells = [
            asked,
            str(p.number),
            legible(front.score, p.values.get(front.score)),
            points(front.drop(p)),
            f"{legible('latency_ms', p.values.get('latency_ms'))} ({latency})",
            f"{legible('size_bytes', p.values.get('size_bytes'))} ({size})",
            p.summary.replace("|", "/"),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    base = front.baseline.values if front.baseline else {}
    cells = [legible(n, base.get(n)) for n in (front.score, "latency_ms", "size_bytes")]
    lines.append(f"| Baseline | | {cells[0]} | | {cells[1]} | {cells[2]} | unchanged |")
    return "\n".join(lines)


def nearest_miss(goal: Expression, candidates: Sequence[Point]) -> str:
    """That nothing meets a condition, which point comes nearest, and what it misses."""
    nearest_one = min(candidates, key=lambda p: (goal.violation(p.values), p.number))
    missed = [
        f"{leaf.name} is {legible(leaf.name, nearest_one.values.get(leaf.name))}"
        f" where {leaf} is asked for"
        for leaf in goal.failing(nearest_one.values)
    ]
    return (
        f"none of {len(candidates)} measured points meets '{goal}'; "
        f"the nearest is trial {nearest_one.number}: {', '.join(missed)}"
    )
