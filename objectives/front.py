"""The Pareto front of a study: the measured points that nothing measured beats in everything."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError, NothingMeetsError
from .answers import nearest_miss
from .contenders import worth_confirming
from .dominance import costs, non_dominated
from .evaluation import Evaluation
from .expression import Expression, unmeasured
from .hypervolume import USEFUL_LOSS, WHOLE_LOSS, growth, normalized_hypervolume
from .objective import QUANTITIES, Objective, quantity_name
from .point import Point
from .table import as_json, data_frame, write_whole
from .ties import tie_groups
from .wording import summary

if TYPE_CHECKING:
    import pandas as pd

KNEE = "knee"
"""What :meth:`ParetoFront.choose` takes for the balanced choice."""


class ParetoFront:
    """The front of a study's measured points; iterates over the points that are on it.

    rows: (trial number, evaluation) as the study recorded them; failed ones are left out, of
        several of one rung the last counts. A ``confirm`` row replaces the number's earlier one in
        everything that is reported.
    objectives: the axes. constraints: conditions that a point on the front meets, as text or
        parsed. baseline: the identity plan's evaluation, which everything is shown against (if it
        was confirmed too, those numbers are shown; default: the first trial).
    parents: number of a recovered point -> number of the trial it started from.

    Dominance compares like with like: search-split values first, then, among the confirmed points
    that are left, confirmed values (the two splits give accuracies that cannot be compared).
    """

    def __init__(
        self,
        rows: Iterable[tuple[int, Evaluation]],
        objectives: Sequence[Objective],
        constraints: Sequence[str | Expression] = (),
        baseline: Evaluation | None = None,
        parents: Mapping[int, int] | None = None,
    ) -> None:
        self.objectives = tuple(objectives)
        rows = list(rows)
        known = {*QUANTITIES, *(name for _, evaluation in rows for name in evaluation.values)}
        self.constraints = tuple(
            c if isinstance(c, Expression) else Expression.parse(c, "constraints", known)
            for c in constraints
        )
        self._condition = Expression.all_of(self.constraints)
        self._searched: dict[int, Evaluation] = {}
        confirmed: dict[int, Evaluation] = {}
        for number, evaluation in rows:
            if not evaluation.failed and evaluation.values:
                rung = confirmed if evaluation.rung == "confirm" else self._searched
                rung[number] = evaluation
        shown = {n: confirmed.get(n) or self._searched[n] for n in {**self._searched, **confirmed}}
        for number, evaluation in confirmed.items():
            self._searched.setdefault(number, evaluation)
        first = baseline or next((self._searched[n] for n in sorted(shown)), None)
        self._search_base: Mapping[str, float] = first.values if first else {}
        again = [e for e in confirmed.values() if first and e.plan == first.plan]
        self.baseline = again[-1] if again else first
        self._base: Mapping[str, float] = self.baseline.values if self.baseline else {}
        original = self.baseline.plan if self.baseline else None
        names = [objective.name for objective in self.objectives]
        self.points: tuple[Point, ...] = tuple(
            Point(
                number=number,
                evaluation=shown[number],
                parent=(parents or {}).get(number),
                feasible=self._condition is None or self._condition.holds(shown[number].values),
                trusted=all(n in shown[number].values for n in names),
                summary=summary(shown[number].plan, original),
            )
            for number in sorted(shown)
        )
        self._mark_front()
        self._mark_ties()

    def _mark_front(self) -> None:
        """Of those that were confirmed, the ones that no other confirmed one beats; of the others,
        those that nothing beats on the search split."""
        eligible = [p for p in self.points if p.feasible and p.trusted]
        searched = costs([self._comparable(p) for p in eligible], self.objectives)
        kept = zip(eligible, non_dominated(searched), strict=True)
        on_front = {p.number for p, on in kept if on and p.rung != "confirm"}
        again = [p for p in eligible if p.rung == "confirm"]
        mask = non_dominated(costs([p.values for p in again], self.objectives))
        on_front |= {p.number for p, on in zip(again, mask, strict=True) if on}
        self.points = tuple(
            replace(p, front=True) if p.number in on_front else p for p in self.points
        )

    def unconfirmed(self) -> tuple[list[Point], list[Point]]:
        """Points to measure again: of the front, and those that an error may have kept off it."""
        found = {p.number: self._searched[p.number] for p in self.points if p.trusted}
        if (met := self._condition) is not None:
            found = {n: e for n, e in found.items() if met.holds(e.values)}
        near = set(worth_confirming(found, self.objectives))
        waiting = [p for p in self.points if p.rung != "confirm"]
        on = [p for p in waiting if p.front]
        return on, [p for p in waiting if p.number in near and not p.front]

    def _comparable(self, point: Point) -> Mapping[str, float]:
        """Search-split values; the confirmed ones stand in where an objective is missing there."""
        return {**point.values, **self._searched[point.number].values}

    def _mark_ties(self) -> None:
        waiting = [p for p in self.points if p.feasible and p.trusted]
        rank = costs([p.values for p in waiting], self.objectives).tolist()
        order = sorted(
            range(len(waiting)), key=lambda i: (not waiting[i].front, *rank[i], waiting[i].number)
        )
        groups = tie_groups([waiting[i] for i in order], [o.name for o in self.objectives])
        if groups:
            self.points = tuple(replace(p, tie=groups.get(p.number)) for p in self.points)

    def _costs(self, point: Point) -> list[float]:
        return [float(c) for c in costs([point.values], self.objectives)[0]]

    @property
    def front(self) -> tuple[Point, ...]:
        """The points on the front, best first objective first."""
        on = [p for p in self.points if p.front]
        return tuple(sorted(on, key=lambda p: (*self._costs(p), p.number)))

    def __iter__(self) -> Iterator[Point]:
        return iter(self.front)

    def __len__(self) -> int:
        return sum(p.front for p in self.points)

    def __getitem__(self, number: int) -> Point:
        """The point of a trial. Raises InputError when the trial has no measured point."""
        for point in self.points:
            if point.number == number:
                return point
        raise InputError(f"trial {number!r}", "has no measured point", "see paretune front --all")

    def compared(self, number: int) -> tuple[Evaluation, ...]:
        """What dominance compares of a trial: its evaluation in the search, then the confirmed."""
        searched, shown = self._searched[number], self[number].evaluation
        return (searched,) if shown is searched else (searched, shown)

    @property
    def score(self) -> str:
        """The value that says how good a network is: ``accuracy``, or ``fidelity``."""
        bare = "accuracy" not in self._base and "fidelity" in self._base
        return "fidelity" if bare else "accuracy"

    @property
    def baseline_number(self) -> int | None:
        """The trial that measured the baseline's plan, None when it is not among the points."""
        plan = self.baseline.plan.fingerprint if self.baseline else ""
        return next((p.number for p in self.points if p.plan.fingerprint == plan), None)

    def drop(self, point: Point) -> float:
        """What a point lost of the baseline's score (negative: it gained); NaN if unknown."""
        if self.score == "accuracy" and "accuracy_drop" in point.values:
            return point.values["accuracy_drop"]
        return self._base.get(self.score, math.nan) - point.values.get(self.score, math.nan)

    def choose(self, where: str | Expression | None = None, best: str | None = None) -> Point:
        """The best measured point that meets a condition and the constraints.

        where: e.g. ``"accuracy_drop <= 0.01 and size_ratio < 0.3"``; best: the value to be best
        in, e.g. ``"latency_ms"`` (``"knee"`` or without it: the knee of the points that meet the
        condition, the balanced choice).
        Equal points: one on the front first, then the objectives in order, then the lower number.
        Where some of the points were confirmed the choice is among those: beside them, values that
        were found during the search are optimistic.

        Raises InputError on a bad condition or a value that no point has, NothingMeetsError naming
        the nearest point and what it misses.
        """
        best = None if best == KNEE else best
        candidates = [p for p in self.points if p.trusted]
        measured = [name for name in self.names if any(name in p.values for p in candidates)]
        if isinstance(where, str):
            where = Expression.parse(where, "--where", measured or QUANTITIES)
        if not candidates:
            raise NothingMeetsError("the study has no measured point; see the causes of failure")
        if best is not None and best not in measured:
            raise unmeasured(best, measured)
        goal = Expression.all_of([*([where] if where else []), *self.constraints])
        found = [p for p in candidates if goal is None or goal.holds(p.values)]
        if goal is not None and not found:
            raise NothingMeetsError(nearest_miss(goal, candidates))
        if best is not None:
            found = [p for p in found if best in p.values]
            if not found:
                raise NothingMeetsError(f"no point that meets '{goal}' was measured in {best!r}")
        found = [p for p in found if p.rung == "confirm"] or found
        if best is None:
            return self._knee(found)
        owner = quantity_name(best)
        sign = -1.0 if owner and QUANTITIES[owner].maximize else 1.0
        return min(
            found,
            key=lambda p: (sign * p.values[best], not p.front, *self._costs(p), p.number),
        )

    def nearest(self) -> Point | None:
        """The measured point that misses the constraints by least; None without any point."""
        goal, measured = self._condition, [p for p in self.points if p.trusted]
        if goal is None or not measured:
            return measured[0] if measured else None
        return min(measured, key=lambda p: (goal.violation(p.values), p.number))

    @property
    def names(self) -> list[str]:
        """The values that conditions may use; with several targets only those with a suffix."""
        measured = {name for p in self.points for name in p.values}
        several = {quantity_name(name) for name in measured if name not in QUANTITIES}
        return sorted(measured - several)

    def knee(self) -> Point:
        """The balanced choice: the front's point that alone covers most of the hypervolume of the
        useful region (of the whole one when none lies there). Raises NothingMeetsError when the
        front is empty."""
        if not len(self):
            raise NothingMeetsError("the front is empty; no measured point meets the constraints")
        return self._knee(self.front)

    def _knee(self, candidates: Sequence[Point]) -> Point:
        def key(point: Point) -> tuple[float, float, bool, int]:
            useful = normalized_hypervolume([point.values], self._base, USEFUL_LOSS)
            whole = normalized_hypervolume([point.values], self._base)
            return useful, whole, point.front, -point.number

        return max(candidates, key=key)

    def hypervolume(self) -> float:
        """Of all feasible measured points: the share of the box down to baseline − 0.40 accuracy,
        1.05× size and 1.05× latency that they dominate (see :func:`normalized_hypervolume`)."""
        return self._volume(WHOLE_LOSS)

    def hypervolume_useful(self) -> float:
        """The same for the useful region: down to baseline − 0.03 accuracy."""
        return self._volume(USEFUL_LOSS)

    def _volume(self, loss: float) -> float:
        values = [p.values for p in self.points if p.feasible and p.trusted]
        return normalized_hypervolume(values, self._base, loss)

    def history(self) -> pd.DataFrame:
        """How the search went: a row per trial with ``number``, ``hypervolume``,
        ``hypervolume_useful`` and ``front_size`` up to it (values of the search split)."""
        import pandas as pd

        trials = [(p.number, self._comparable(p)) for p in self.points if p.feasible and p.trusted]
        grown = growth([values for _, values in trials], self._search_base, self.objectives)
        steps = {number: step for (number, _), step in zip(trials, grown, strict=True)}
        columns = ["number", "hypervolume", "hypervolume_useful", "front_size"]
        table = pd.DataFrame(
            [(p.number, *steps.get(p.number, (None, None, None))) for p in self.points],
            columns=columns,
        )
        return table.ffill().fillna(0).astype({"number": int, "front_size": int})

    def table(self, everything: bool = False) -> pd.DataFrame:
        """The front as a data frame, best first objective first; ``everything``: all measured
        points. The columns are those of :func:`paretune.objectives.table.data_frame`."""
        return data_frame(self, everything)

    def to_csv(self, path: str | Path, everything: bool = False) -> None:
        """Write :meth:`table` as CSV, whole or not at all. Raises EnvironmentFault."""
        write_whole(Path(path), self.table(everything).to_csv(index=False))

    def to_json(self, everything: bool = False) -> dict[str, Any]:
        """The front as plain JSON: what it was computed for, and each point with its plan."""
        return as_json(self, everything)

    def figure(self) -> Any:
        """A plotly figure to hover and zoom in, see :func:`~.figure.front_figure`."""
        from .figure import front_figure

        return front_figure(self, self.history())

    def _repr_html_(self) -> str:
        """The answer, a picture and a table, where a notebook ends a cell with the front."""
        from .notebook import notebook_view

        return notebook_view(self)

    def __repr__(self) -> str:
        names = ", ".join(objective.name for objective in self.objectives)
        return f"<ParetoFront of {len(self)} among {len(self.points)} measured points: {names}>"
