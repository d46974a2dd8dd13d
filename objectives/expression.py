"""Conditions on measured values, as written in a job's constraints and after ``--where``."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..errors import InputError, nearest
from .condition import (
    All,
    Comparison,
    Condition,
    Some,
    conjunction,
    is_empty,
    natural_range,
    unit_of,
)
from .grammar import parse_condition
from .objective import QUANTITIES, quantity_name


@dataclass(frozen=True)
class Expression:
    """A condition on measured values, e.g. ``accuracy_drop <= 0.01 and size_ratio < 0.3``.

    Comparisons of a known value with a number (chained too: ``0.2 < size_ratio <= 0.5``), joined
    by ``and``, ``or``, ``not`` and parentheses. Numbers take a unit where it makes sense:
    ``300kB``, ``1.5MB``, ``2ms``, ``1%`` or ``0.5pt`` (percentage points), ``40M`` (of MACs).
    A comparison with a value that a point does not have is false, negated or not.

    >>> goal = Expression.parse("accuracy_drop <= 0.5pt and size_bytes < 300kB")
    >>> goal.holds({"accuracy_drop": 0.004, "size_bytes": 290_000})
    True
    >>> str(goal)
    'accuracy_drop <= 0.005 and size_bytes < 300000'
    """

    condition: Condition

    @classmethod
    def parse(
        cls, text: str, where: str = "--where", known: Iterable[str] = QUANTITIES
    ) -> Expression:
        """Read an expression; nothing of it is ever run as code.

        where: the option or key it came from, for messages. known: the names that may be used.
        Raises InputError, in one line, on a syntax error (``^`` marks the place), an unknown name
        (with the nearest), or a condition that nothing can meet.
        """
        condition = parse_condition(text, where, list(known))
        for leaf in condition.leaves():
            _check_bound(leaf, where)
        expression = cls(condition)
        expression.check(where)
        return expression

    @classmethod
    def all_of(cls, expressions: Iterable[Expression]) -> Expression | None:
        """The condition that all of them hold; None when there are none."""
        parts = tuple(expression.condition for expression in expressions)
        return cls(parts[0] if len(parts) == 1 else All(parts)) if parts else None

    def check(self, where: str) -> None:
        """Raises InputError when its parts contradict each other: nothing can meet it."""
        _check_intervals(self.condition, where)

    def holds(self, values: Mapping[str, float]) -> bool:
        """Whether these values meet the condition."""
        return self.condition.holds(values)

    def violation(self, values: Mapping[str, float]) -> float:
        """How far these values are from meeting it: at most 0 exactly if it holds, else positive.

        One unit is ten points of a share (accuracy ...) or the bound itself (sizes, times, ratios).
        ``and`` adds the positive parts, ``or`` takes the smallest. Always finite: for samplers.
        """
        return self.condition.violation(values)

    @property
    def names(self) -> tuple[str, ...]:
        """The values it looks at, each once, in order."""
        return tuple(dict.fromkeys(leaf.name for leaf in self.condition.leaves()))

    def require(self, available: Iterable[str], where: str = "--where") -> None:
        """Raises InputError if it looks at a value that is not among ``available``."""
        have = set(available)
        for name in self.names:
            if name not in have:
                listed = ", ".join(sorted(have))
                raise InputError(where, f"{name!r} was not measured", f"known: {listed}")

    def failing(self, values: Mapping[str, float]) -> list[Comparison]:
        """The comparisons that these values do not meet (of an ``or``: on its nearest side)."""
        return self.condition.failing(values)

    def bounds(self) -> dict[str, tuple[float, float]]:
        """(lowest, highest) allowed of each name; empty when there is an ``or`` in it."""
        out: dict[str, tuple[float, float]] = {}
        for leaf in conjunction(self.condition) or ():
            low, high = out.get(leaf.name, (-math.inf, math.inf))
            if leaf.operator in (">", ">=", "=="):
                low = max(low, leaf.bound)
            if leaf.operator in ("<", "<=", "=="):
                high = min(high, leaf.bound)
            out[leaf.name] = (low, high)
        return out

    def __str__(self) -> str:
        return str(self.condition)


def unmeasured(name: str, measured: Iterable[str], where: str = "--best") -> InputError:
    """What to raise for a value that was not measured under this name."""
    several = [other for other in measured if quantity_name(other) == name]
    if several:
        problem = f"{name!r} was measured on several targets"
        return InputError(where, problem, "write one of: " + ", ".join(several))
    return InputError(where, f"{name!r} was not measured", nearest(name, measured))


def _check_bound(leaf: Comparison, where: str) -> None:
    """Refuse a bound that the value can never meet, with the likely slip."""
    if unit_of(leaf.name) == "share" and abs(leaf.bound) > 1:
        remedy = f"did you mean {leaf.bound / 100:.6g}?" if abs(leaf.bound) <= 100 else ""
        raise InputError(where, f"'{leaf}': {leaf.name} is a share between 0 and 1", remedy)
    is_drop = quantity_name(leaf.name) == "accuracy_drop"
    if is_drop and leaf.operator in ("<", "<=") and leaf.bound == 1:
        raise InputError(where, f"'{leaf}' allows everything", "for one point write 0.01 or 1pt")
    if is_empty([leaf]):
        low, high, closed = natural_range(leaf.name)
        always = f"lies between {low:g} and {high:g}"
        if math.isinf(high):
            always = "is never negative" if closed else "is always positive"
        raise InputError(where, f"'{leaf}' can never hold", f"{leaf.name} {always}")


def _check_intervals(condition: Condition, where: str) -> None:
    """Refuse a conjunction that leaves nothing of a value's range."""
    if isinstance(condition, Comparison):
        return
    for part in condition.parts:
        _check_intervals(part, where)
    if isinstance(condition, Some):
        return
    by_name: dict[str, list[Comparison]] = {}
    for part in condition.parts:
        for leaf in conjunction(part) or ():
            by_name.setdefault(leaf.name, []).append(leaf)
    for leaves in by_name.values():
        if is_empty(leaves):
            text = " and ".join(str(leaf) for leaf in leaves)
            raise InputError(where, f"'{text}' contradicts itself", "nothing can meet it")
