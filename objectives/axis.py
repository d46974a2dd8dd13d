"""The horizontal axes of the picture: which costs are shown, in which unit, up to which bound."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .expression import Expression
from .wording import label

if TYPE_CHECKING:
    from .front import ParetoFront
    from .point import Point

_PREFIXES = ((2e9, 1e9, "G"), (2e6, 1e6, "M"), (2e3, 1e3, "k"), (0.0, 1.0, ""))
_STEPS = (1, 1.5, 2, 3, 5, 7)
_LOSS = {"accuracy": "accuracy_drop"}
_RATIO = {"latency_ms": "latency_ratio", "size_bytes": "size_ratio"}


@dataclass(frozen=True)
class Axis:
    """A cost: the value's name, what it is divided by for display, and its title with the unit.

    low, high: the first view. Where it spans more than a factor of three the axis is logarithmic.
    """

    name: str
    divisor: float
    title: str
    low: float = 0.0
    high: float = 1.0

    def at(self, value: float) -> float:
        """Where a value stands on the axis."""
        return value / self.divisor

    @property
    def logarithmic(self) -> bool:
        return self.low > 0 and self.high > 3 * self.low

    def position(self, place: float) -> float:
        """What plotly wants for ranges and annotations (its logarithm on a logarithmic axis)."""
        return math.log10(place) if self.logarithmic else place

    def settings(self) -> dict[str, Any]:
        """Title, range and ticks, as plotly takes them."""
        out: dict[str, Any] = {"title_text": self.title}
        if not self.logarithmic:
            room = 0.06 * max(self.high - self.low, 0.05 * self.high)
            return out | {"range": [max(self.low - room, 0.0), self.high + room]}
        room = 0.05 * math.log10(self.high / self.low)
        ends = [math.log10(self.low) - room, math.log10(self.high) + room]
        decades = range(math.floor(math.log10(self.low)) - 2, math.ceil(math.log10(self.high)) + 2)
        ticks = [step * 10.0**decade for decade in decades for step in _STEPS]
        return out | {"type": "log", "range": ends, "tickvals": ticks, "tickformat": "~g"}


def axes_of(front: ParetoFront, shown: Sequence[Point]) -> list[Axis]:
    """At most two costs, of latency, size and MACs, that most points have.

    shown: the points that the first view has to hold.
    """
    half = len(front.points) / 2
    names = [
        name
        for name in ("latency_ms", "size_bytes", "macs")
        if sum(name in p.values for p in front.points) > half
    ]
    return [_axis(front, name, shown) for name in names[:2]]


def _axis(front: ParetoFront, name: str, shown: Sequence[Point]) -> Axis:
    costs = [p.values[name] for p in shown if name in p.values] or [1.0]
    base = front.baseline.values.get(name) if front.baseline else None
    on = [p.values[name] for p in shown if p.front and name in p.values]
    high = max(costs) if base is None else max(min(max(costs), 1.08 * base), base, *on)
    divisor, prefix = next((d, p) for start, d, p in _PREFIXES if high >= start)
    words = {"G": ", billions", "M": ", millions", "k": ", thousands", "": ""}[prefix]
    title = {
        "latency_ms": f"{label(name)}, ms for one batch",
        "size_bytes": f"{label(name)}, {prefix}B",
    }.get(name, f"{label(name)} of one example{words}")
    if name == "latency_ms":
        divisor = 1.0
    return Axis(name, divisor, title, min(costs) / divisor, high / divisor)


def excluded(front: ParetoFront, axis: Axis | None) -> tuple[float | None, float | None]:
    """(lowest score, highest cost on the axis) that the constraints allow; None where unbounded."""
    goal = Expression.all_of(front.constraints)
    bounds = goal.bounds() if goal else {}
    base = front.baseline.values if front.baseline else {}
    floors = [bounds[front.score][0]] if front.score in bounds else []
    loss = _LOSS.get(front.score, "")
    if loss in bounds and front.score in base:
        floors.append(base[front.score] - bounds[loss][1])
    floor = max((f for f in floors if math.isfinite(f)), default=None)
    if axis is None:
        return floor, None
    ceilings = [bounds[axis.name][1]] if axis.name in bounds else []
    ratio = _RATIO.get(axis.name, "")
    if ratio in bounds and axis.name in base:
        ceilings.append(base[axis.name] * bounds[ratio][1])
    ceiling = min((c for c in ceilings if math.isfinite(c)), default=None)
    return floor, None if ceiling is None else axis.at(ceiling)
