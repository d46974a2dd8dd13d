"""When a search has found what it will find: the hypervolume no longer grows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..objectives.evaluation import Evaluation
from ..objectives.expression import Expression
from ..objectives.hypervolume import corner, gain, ratios
from ..objectives.objective import Objective


@dataclass(frozen=True)
class Patience:
    """Stop when the hypervolume grew by at most ``growth`` per cent over ``trials`` trials."""

    trials: int
    growth: float = 0.1


class Stagnation:
    """Watches the hypervolume (whole box) of feasible trials, by their numbers.

    Trials count in the order of their numbers, whatever the order in which they finish, so that
    the same results end a search at the same trial. Failed and infeasible ones count and add
    nothing.
    """

    def __init__(
        self,
        patience: Patience,
        baseline: Mapping[str, float],
        constraints: Sequence[Expression] = (),
    ) -> None:
        self._patience, self._baseline = patience, baseline
        self._constraints = tuple(constraints)
        self._waiting: dict[int, Evaluation] = {}
        axes, self._points = ratios([], baseline)  # points: those on the front
        self._corner = corner(axes)
        self._volumes = [0.0]  # after 0, 1, 2 ... trials
        self.reason: str | None = None

    def add(self, number: int, evaluation: Evaluation) -> str | None:
        """A trial finished; returns why the search should end, once it should."""
        self._waiting[number] = evaluation
        while self.reason is None and len(self._volumes) - 1 in self._waiting:
            self._count(self._waiting.pop(len(self._volumes) - 1))
        return self.reason

    def _count(self, evaluation: Evaluation) -> None:
        volume, values = self._volumes[-1], evaluation.values
        if not evaluation.failed and all(c.holds(values) for c in self._constraints):
            (point,) = ratios([values], self._baseline)[1]
            beaten = np.any(np.all(self._points <= point, axis=1))
            if len(point) and np.all(np.isfinite(point)) and not beaten:
                volume += gain(self._points, point, self._corner) / float(np.prod(self._corner))
                stays = np.any(self._points < point, axis=1)
                self._points = np.vstack([self._points[stays], point])
        self._volumes.append(volume)
        span, done = self._patience.trials, len(self._volumes) - 1
        if done < span:
            return
        before = self._volumes[done - span]
        if volume <= before * (1 + self._patience.growth / 100):
            self.reason = (
                f"the hypervolume grew by at most {self._patience.growth:g} % "
                f"over the last {span} trials"
            )


def constant_objectives(
    evaluations: Sequence[Evaluation], objectives: Sequence[Objective], least: int = 5
) -> list[str]:
    """Names of the objectives that came out the same for all usable trials, if these are at least
    ``least``: such an objective decides nothing."""
    values = [e.values for e in evaluations if not e.failed]
    if len(values) < least:
        return []
    return [o.name for o in objectives if len({v.get(o.name) for v in values}) == 1]
