"""Where the fronts of several targets differ: what is best on one is not always best on another."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .further import SHARED, seen_from, target_suffix
from .objective import Objective, quantity_name

if TYPE_CHECKING:
    from .front import ParetoFront

MOST_NAMED = 12
"""Trials named in a line."""


def front_targets(front: ParetoFront) -> list[str]:
    """The targets of a front whose objectives name more than one, in the job's order; else none."""
    named = [str(o.options["target"]) for o in front.objectives if "target" in o.options]
    suffixed = [o.name for o in front.objectives if quantity_name(o.name) != o.name]
    found = list(dict.fromkeys(named)) if suffixed else []
    return found if len(found) > 1 else []


def front_of(front: ParetoFront, target: str) -> ParetoFront:
    """The front that a job with this target alone would have found among the same points.

    Its values have their bare names; only feasible points take part.
    """
    own = f"_{target_suffix(target)}"
    objectives = [
        Objective(quantity_name(o.name) or o.name, o.options)
        for o in front.objectives
        if o.name in SHARED or o.name.endswith(own)
    ]
    rows = [
        (point.number, seen_from(evaluation, target))
        for point in front.points
        if point.feasible
        for evaluation in front.compared(point.number)
    ]
    base = None if front.baseline is None else seen_from(front.baseline, target)
    return type(front)(rows, objectives, (), base)


def differences(front: ParetoFront) -> list[str]:
    """A line a target: how many points its own front has, and which are on no other's.

    Empty for a study with one target.
    """
    targets = front_targets(front)
    on = {t: {p.number for p in front_of(front, t).front} for t in targets}
    lines = []
    for target, numbers in on.items():
        others = set().union(*(on[t] for t in targets if t != target))
        alone = sorted(numbers - others)
        shown = ", ".join(map(str, alone[:MOST_NAMED])) + (
            " ..." if len(alone) > MOST_NAMED else ""
        )
        line = f"front of {target}: {len(numbers)} points, {len(alone)} of them on no other's front"
        lines.append(line + (f" (trials {shown})" if alone else ""))
    return lines
