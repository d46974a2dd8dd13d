"""The front of a search that is running: who is on it now, without looking at all points again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from .dominance import costs
from .evaluation import Evaluation
from .expression import Expression
from .objective import QUANTITIES, Objective


class RunningFront:
    """The evaluations on the front so far, one arriving after another.

    Who is on it is decided as in :class:`~paretune.objectives.front.ParetoFront` on measured
    values: feasible, every objective obtained, and beaten by none.
    """

    def __init__(
        self, objectives: Sequence[Objective], constraints: Sequence[str | Expression] = ()
    ) -> None:
        self.evaluations: list[Evaluation] = []
        self._objectives = tuple(objectives)
        self._costs = np.empty((0, len(self._objectives)))
        self._constraints = tuple(constraints)
        self._parsed: list[Expression] | None = None

    def add(self, evaluation: Evaluation) -> bool:
        """Let a result take its place; whether it is on the front now."""
        values = evaluation.values
        if evaluation.failed:
            return False
        if any(o.name not in values for o in self._objectives) or not self._holds(values):
            return False
        (point,) = costs([values], self._objectives)
        if np.any(np.all(self._costs <= point, axis=1) & np.any(self._costs < point, axis=1)):
            return False
        stays = ~(np.all(point <= self._costs, axis=1) & np.any(point < self._costs, axis=1))
        self.evaluations = [e for e, on in zip(self.evaluations, stays, strict=True) if on]
        self.evaluations.append(evaluation)
        self._costs = np.vstack([self._costs[stays], point])
        return True

    def _holds(self, values: Mapping[str, float]) -> bool:
        if self._parsed is None:  # names of single targets are known from the values
            known = {*QUANTITIES, *values}
            self._parsed = [
                c if isinstance(c, Expression) else Expression.parse(c, "constraints", known)
                for c in self._constraints
            ]
        return all(constraint.holds(values) for constraint in self._parsed)
