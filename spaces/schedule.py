"""Pruning in steps: the plans between the untouched network and the wanted one."""

from __future__ import annotations

from dataclasses import replace
from math import ceil

from ..errors import InputError, nearest
from .plan import CompressionPlan, LayerChoice
from .space import SearchSpace

KINDS = ("cubic", "linear")


def progress(step: int, steps: int, kind: str = "cubic") -> float:
    """Share of the whole cut that is done after ``step`` of ``steps``; 0 before, 1 at the end.

    cubic: 1 - (1 - step/steps)**3, most at the beginning, while the network is easily repaired
    (Zhu & Gupta, "To Prune, or Not to Prune", 2017, equation 1). linear: step/steps.

    >>> [round(progress(i, 4), 3) for i in range(5)]
    [0.0, 0.578, 0.875, 0.984, 1.0]
    """
    done = step / steps
    return 1 - (1 - done) ** 3 if kind == "cubic" else done


def schedule(
    space: SearchSpace, goal: CompressionPlan, steps: int, kind: str = "cubic"
) -> list[CompressionPlan]:
    """``steps`` plans, each cutting more than the one before; the last is ``goal``.

    Channels, heads and freely placed zeros grow along the schedule; factors, bits and 2:4 zeros
    come with the last plan. Raises InputError on a goal that does not fit the space.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise InputError("steps", f"expected a positive integer, got {steps!r}", "")
    if kind not in KINDS:
        raise InputError("schedule", f"unknown {kind!r}", nearest(kind, KINDS))
    goal = space.check(goal)
    plans = []
    for step in range(1, steps):
        done = progress(step, steps, kind)
        groups = {}
        for group in space.groups:
            left = group.channels - done * (group.channels - goal.groups[group.name])
            groups[group.name] = group.blocks * ceil(left / group.blocks - 1e-9)
        layers = {
            name: replace(LayerChoice(), sparsity=int(done * choice.sparsity))
            if choice.pattern == "unstructured"
            else LayerChoice()
            for name, choice in goal.layers.items()
        }
        plans.append(CompressionPlan(groups, layers))
    return [*plans, goal]
