"""One condition on measured values: a comparison, or several joined by ``and`` or ``or``."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from .objective import QUANTITIES, quantity_name

Values = Mapping[str, float]

MISSING = 1e6
"""Violation of a condition on a value that a point does not have."""
_TOUCH = 1e-9  # violation of a strict condition that is met with equality

_COMPARE: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}
_OPPOSITE = {"<": ">=", "<=": ">", ">": "<=", ">=": "<", "==": "!=", "!=": "=="}


def unit_of(name: str) -> str:
    """The unit of a value, ``""`` where it has none: ``share``, ``bytes``, ``ms``, ``x`` ..."""
    owner = quantity_name(name)
    return QUANTITIES[owner].unit if owner else ""


def natural_range(name: str) -> tuple[float, float, bool]:
    """(lowest, highest, whether the lowest itself can occur) of a value."""
    owner, unit = quantity_name(name), unit_of(name)
    if owner == "accuracy_drop":
        return -1.0, 1.0, True
    if unit == "share":
        return 0.0, 1.0, True
    if unit in ("bytes", "x", "ms"):
        return 0.0, math.inf, False
    if owner == "loss":
        return -math.inf, math.inf, True
    return 0.0, math.inf, True


@dataclass(frozen=True)
class Comparison:
    """``name operator bound``, the bound in the value's own unit."""

    name: str
    operator: str
    bound: float

    def holds(self, values: Values) -> bool:
        value = values.get(self.name, math.nan)
        return not math.isnan(value) and _COMPARE[self.operator](value, self.bound)

    def violation(self, values: Values) -> float:
        """At most 0 exactly if it holds; in units of ten points of a share, or of the bound."""
        value = values.get(self.name, math.nan)
        if math.isnan(value):
            return MISSING
        scale = 0.1 if unit_of(self.name) == "share" else abs(self.bound) or 1.0
        over = (value - self.bound) / scale
        if self.operator in ("==", "!="):
            amount = abs(over) if self.operator == "==" else -abs(over)
        else:
            amount = over if self.operator.startswith("<") else -over
        amount = min(max(amount, -MISSING), MISSING)
        return min(amount, 0.0) if self.holds(values) else max(amount, _TOUCH)

    def negated(self) -> Comparison:
        return Comparison(self.name, _OPPOSITE[self.operator], self.bound)

    def leaves(self) -> Iterator[Comparison]:
        yield self

    def failing(self, values: Values) -> list[Comparison]:
        return [] if self.holds(values) else [self]

    def __str__(self) -> str:
        bound = self.bound
        text = str(int(bound)) if bound == int(bound) and abs(bound) < 1e15 else repr(bound)
        return f"{self.name} {self.operator} {text}"


@dataclass(frozen=True)
class All:
    """Every part holds (``and``)."""

    parts: tuple[Condition, ...]

    def holds(self, values: Values) -> bool:
        return all(part.holds(values) for part in self.parts)

    def violation(self, values: Values) -> float:
        """The sum of the positive parts; when all hold, the tightest of them."""
        amounts = [part.violation(values) for part in self.parts]
        positive = [amount for amount in amounts if amount > 0]
        return sum(positive) if positive else max(amounts)

    def negated(self) -> Some:
        return Some(tuple(part.negated() for part in self.parts))

    def leaves(self) -> Iterator[Comparison]:
        for part in self.parts:
            yield from part.leaves()

    def failing(self, values: Values) -> list[Comparison]:
        return [leaf for part in self.parts for leaf in part.failing(values)]

    def __str__(self) -> str:
        return " and ".join(f"({p})" if isinstance(p, Some) else str(p) for p in self.parts)


@dataclass(frozen=True)
class Some:
    """At least one part holds (``or``)."""

    parts: tuple[Condition, ...]

    def holds(self, values: Values) -> bool:
        return any(part.holds(values) for part in self.parts)

    def violation(self, values: Values) -> float:
        """The smallest of the parts."""
        return min(part.violation(values) for part in self.parts)

    def negated(self) -> All:
        return All(tuple(part.negated() for part in self.parts))

    def leaves(self) -> Iterator[Comparison]:
        for part in self.parts:
            yield from part.leaves()

    def failing(self, values: Values) -> list[Comparison]:
        if self.holds(values):
            return []
        return min(self.parts, key=lambda part: part.violation(values)).failing(values)

    def __str__(self) -> str:
        return " or ".join(str(part) for part in self.parts)


Condition = Comparison | All | Some


def conjunction(condition: Condition) -> list[Comparison] | None:
    """The comparisons of a plain conjunction; None when there is an ``or`` in it."""
    if isinstance(condition, Comparison):
        return [condition]
    if isinstance(condition, Some):
        return None
    out: list[Comparison] = []
    for part in condition.parts:
        inner = conjunction(part)
        if inner is None:
            return None
        out += inner
    return out


def is_empty(leaves: list[Comparison]) -> bool:
    """Whether no value within the natural range meets all these comparisons of one name."""
    low, high, low_closed = natural_range(leaves[0].name)
    high_closed = True
    for leaf in leaves:
        if leaf.operator in (">", ">=", "==") and leaf.bound >= low:
            low_closed = leaf.operator != ">" and (leaf.bound > low or low_closed)
            low = leaf.bound
        if leaf.operator in ("<", "<=", "==") and leaf.bound <= high:
            high_closed = leaf.operator != "<" and (leaf.bound < high or high_closed)
            high = leaf.bound
    if low > high:
        return True
    excluded = any(leaf.operator == "!=" and leaf.bound == low for leaf in leaves)
    return low == high and (excluded or not (low_closed and high_closed))
