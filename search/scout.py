"""Screens many proposals cheaply and takes only the promising ones to a trial."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..objectives.dominance import non_dominated
from ..objectives.evaluation import Evaluation
from ..objectives.expression import Expression
from ..objectives.objective import Objective
from ..spaces.plan import CompressionPlan
from ..trackers.screened import Screened
from .acquisition import Region, chances, pick
from .candidates import Candidates, genotypes
from .cost_error import CostError
from .guidance import Axes, Guidance, screenable
from .guide import Focus, Guide
from .knapsack import Floats, Ints
from .score_curve import ScoreCurve
from .told import Told
from .twins import Twins

FIRST = 4
"""The first turn screens this many times as much as the others: it also teaches the surrogate."""
_SCREEN, _CHOICE = 1, 2  # streams of random numbers
_ERROR = 0.01  # of a screened accuracy beside the measured one, before any trial tells
_LEAST_ERROR = 0.002


def is_lesson(turn: int) -> bool:
    """Whether the guide learns anew before that turn: the eighth, and each half as far again."""
    at = 8
    while at < turn:
        at += at // 2
    return at == turn


@dataclass(frozen=True)
class Errand:
    """One candidate to be screened before trial ``turn`` can be asked."""

    turn: int
    place: int
    params: Mapping[str, int]
    plan: CompressionPlan

    @property
    def job_id(self) -> str:
        """What a pool calls it."""
        return f"screen {self.turn} {self.place}"


class Scout:
    """Chooses each trial among candidates that were screened before it.

    Before trial n is asked, turn n must be complete: ``each`` candidates (four times as many before
    trial 0) that the guide proposed knowing the screened values of all earlier turns. Then the
    screened candidate that promises most hypervolume beside the trials told so far is asked. So the
    asks follow from the seed, the screen's values and the told results: not from the number of
    workers, nor from their speed.

    Screened values are corrected by how measured ones came out: at every choice, and for the guide
    at a few turns (:func:`is_lesson`), where it learns anew all that was screened.

    plan: genotype -> plan. each: candidates screened a trial. width: asks that are open at a time,
    as the :class:`Window` has it; before trial n results 0 ... n - width - 1 are certainly told.
    """

    def __init__(
        self,
        guidance: Guidance,
        objectives: Sequence[Objective],
        constraints: Sequence[Expression],
        plan: Callable[[Mapping[str, int]], CompressionPlan],
        each: int,
        seed: int = 0,
        focus: Focus | None = None,
        width: int = 2,
    ) -> None:
        self.width = width
        self._names = list(guidance.parameters)
        self._guidance, self._constraints = guidance, tuple(constraints)
        self._objectives, self._focus = objectives, focus or Focus()
        self._each, self._seed, self._plan = each, seed, plan
        self._seen = screenable(objectives, guidance.table)
        self._guide = self._fresh_guide()
        self._screened_axes = Axes(guidance, self._seen)
        self._true_axes = Axes(guidance, objectives)
        self._curve = ScoreCurve(self._screened_axes.base_score)
        self._recorded: dict[tuple[int, int], Screened] = {}
        self._turn = -1  # the last turn that was opened
        self._open: dict[int, Errand] = {}  # of the turn: place -> not screened yet
        self._found: dict[int, Screened] = {}  # of the turn: place -> outcome
        self._taken: set[bytes] = {np.zeros(len(self._names), dtype=np.intp).tobytes()}
        self._twins = Twins(self._names, plan)
        self._candidates = Candidates()
        self._told = Told(self._candidates, guidance.counts, self._true_axes.count)
        self._taught: list[tuple[float, float, float]] = []  # scores of the last lesson
        self._costs: CostError | None = None  # of the last lesson
        self._region: Region | None = None

    def begin(self, baseline: Mapping[str, float]) -> None:
        """The baseline as measured: what trials are compared with."""
        base = {**self._guidance.base, **baseline}
        measured = Guidance(
            self._guidance.parameters, self._guidance.damage, self._guidance.table, base
        )
        self._true_axes = Axes(measured, self._objectives)
        self._region = Guide(
            measured, self._objectives, self._constraints, self._seed, self._focus
        ).fresh_region()

    def recall(self, rows: Iterable[Screened]) -> None:
        """Outcomes recorded by an earlier run: they are not screened again."""
        self._recorded = {(row.turn, row.place): row for row in rows}

    def errands(self, turn: int) -> list[Errand]:
        """What has to be screened, for the first time it is looked at, before trial ``turn``."""
        fresh: list[Errand] = []
        while self._turn < turn and not self._open:
            self._close_turn()
            if is_lesson(self._turn + 1):
                self._look_back(self._turn + 1)
            self._turn += 1
            for place, row in enumerate(self._proposals(self._turn)):
                self._taken.add(row.tobytes())
                params = {n: int(k) for n, k in zip(self._names, row, strict=True)}
                known = self._recorded.pop((self._turn, place), None)
                if known is not None and dict(known.params) == params:
                    self._found[place] = known
                    continue
                errand = Errand(self._turn, place, params, self._plan(params))
                twin = self._twins.find(row, errand.plan)
                if twin is not None:
                    self._found[place] = Screened(self._turn, place, params, twin)
                    continue
                self._open[place] = errand
                fresh.append(errand)
        return fresh

    def ready(self, turn: int) -> bool:
        """Whether every candidate of that turn, and those before, is screened."""
        return self._turn >= turn and not self._open

    def add(self, errand: Errand, evaluation: Evaluation, seconds: float) -> Screened:
        """What the screen found of an errand; returns the row to be kept."""
        values = None if evaluation.failed else dict(evaluation.values)
        row = Screened(errand.turn, errand.place, errand.params, values, seconds)
        if self._open.pop(errand.place, None) is not None:
            self._found[errand.place] = row
        return row

    def choose(self, number: int) -> dict[str, int] | None:
        """The genotype for trial ``number``; None when no screened candidate is left."""
        self._close_turn()
        waiting = self._candidates.waiting()
        if not waiting:
            return None
        rng = np.random.default_rng([self._seed, number, _CHOICE])
        curve = self._curve.with_measured(self._told.scores(self._told.latest))
        error = max(_LEAST_ERROR, curve.scatter(_ERROR))
        points, weights = self._view(rng, curve, error)
        expected = self._expected(waiting, curve)
        pending = [k for k in self._told.flying.values() if k in self._candidates.points]
        if pending:
            flying = self._expected(pending, curve)
            sure = chances(flying[:, 0], np.full(len(flying), error), flying[:, 1:], points)
            weights = weights * np.prod(1.0 - sure, axis=0)
        chance = chances(expected[:, 0], np.full(len(waiting), error), expected[:, 1:], points)
        (best,) = pick(chance, weights, 1, -expected[:, 0])
        row = np.frombuffer(waiting[best], dtype=np.intp)
        return {n: int(k) for n, k in zip(self._names, row, strict=True)}

    def asked(self, number: int, params: Mapping[str, int]) -> None:
        """Trial ``number`` was asked with these options."""
        key = self._row(params).tobytes()
        self._told.ask(number, key)
        self._candidates.leave(key)

    def drop(self, params: Mapping[str, int]) -> None:
        """These options make a plan that was asked before: never choose them."""
        self._candidates.leave(self._row(params).tobytes())

    def tell(
        self,
        number: int,
        values: Mapping[str, float] | None,
        errors: Mapping[str, float] | None = None,
    ) -> None:
        """Trial ``number`` was measured; errors: one standard error for values that have one.
        values None: it failed, and promises nothing any more."""
        self._told.flying.pop(number, None)
        loss = ratios = None
        if values is not None:
            loss, ratios = self._true_axes.loss(values), self._true_axes.true_ratios(values)
        if loss is None or ratios is None:
            return
        noise = self._true_axes.noise(errors or {})
        self._told.add(number, np.array([loss, *ratios]), noise)

    def _fresh_guide(self) -> Guide:
        return Guide(self._guidance, self._seen, self._constraints, self._seed, self._focus)

    def _view(
        self, rng: np.random.Generator, curve: ScoreCurve, error: float
    ) -> tuple[Floats, Floats]:
        """What can still be gained, beside the trials told so far."""
        if self._region is None:
            self._region = self._guide.fresh_region()
        believed = self._told.believed(curve, error)
        return self._region.view(rng, believed[non_dominated(believed)] if len(believed) else None)

    def _expected(self, keys: list[bytes], curve: ScoreCurve) -> Floats:
        """(n, axes) of screened candidates, as measuring them would give."""
        candidates = self._candidates
        out = np.array([candidates.points[key] for key in keys])
        out[:, 1:] *= self._told.costs().factors(genotypes(keys, len(self._names)))
        known = [i for i, key in enumerate(keys) if key in candidates.divergence]
        out[known, 0] = curve.loss(np.array([candidates.divergence[keys[i]] for i in known]))
        return out

    def _look_back(self, turn: int) -> None:
        """Teach the guide anew, from what is told for certain before that turn."""
        numbers = [n for n in self._told.points if n < turn - self.width]
        self._taught, self._costs = self._told.scores(numbers), self._told.cost_error(numbers)
        self._guide = self._fresh_guide()
        curve = self._curve.with_measured(self._taught)
        for number, (genotype, values) in enumerate(self._candidates.learned):
            self._teach(number, genotype, values, curve)

    def _teach(
        self, number: int, genotype: Ints, values: Mapping[str, float], curve: ScoreCurve
    ) -> None:
        """Let the guide know a screened candidate, corrected by the last lesson."""
        values = self._averaged(values, curve)
        if self._costs is not None:
            factors = self._costs.factors(genotype[None])[0]
            for name, factor in zip(self._screened_axes.names, factors, strict=True):
                for known in (name, f"{name.rpartition('_')[0]}_ratio"):
                    if known in values:
                        values[known] *= float(factor)
        self._guide.learn(number, genotype, values)

    def _averaged(self, values: Mapping[str, float], curve: ScoreCurve) -> dict[str, float]:
        """A screened candidate's values with the score that its divergence stands for."""
        score, divergence = self._screened_axes.score, values.get("divergence")
        if score not in values or divergence is None or score == "divergence":
            return dict(values)
        loss = float(curve.loss(np.array(divergence)))
        return {**values, score: self._screened_axes.base_score - loss}

    def _proposals(self, turn: int) -> list[Ints]:
        """The candidates of a turn: as recorded, where all of them are, else proposed (anew)."""
        count = self._each * (FIRST if turn == 0 else 1)
        known = [self._recorded.get((turn, place)) for place in range(count)]
        if all(row is not None and set(row.params) == set(self._names) for row in known):
            return [self._row(row.params) for row in known if row is not None]
        rng = np.random.default_rng([self._seed, turn, _SCREEN])
        return self._guide.propose(rng, count, self._taken)

    def _close_turn(self) -> None:
        """Learn the outcomes of a complete turn, in the order of their places."""
        if self._open:
            return
        rows = [self._found[place] for place in sorted(self._found)]
        for row in rows:
            loss = None if row.values is None else self._screened_axes.loss(row.values)
            if loss is not None and row.values is not None and "divergence" in row.values:
                self._curve.add(row.values["divergence"], loss)
        curve = self._curve.with_measured(self._taught)
        for row in rows:
            if row.values is None:
                continue
            genotype = self._row(row.params)
            point = self._guide.point(self._averaged(row.values, curve))
            if point is not None:
                self._twins.add(genotype, row.values)
                self._teach(len(self._candidates.learned), genotype, row.values, curve)
                self._candidates.add(genotype, row.values, point)
        self._found.clear()

    def _row(self, params: Mapping[str, int]) -> Ints:
        return np.array([params.get(name, 0) for name in self._names], dtype=np.intp)
