"""Proposals of the guided search: seeds, mutations, and the choice among them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..objectives.expression import Expression
from ..objectives.objective import Objective
from .acquisition import Region, chances, pick
from .guidance import Axes, Guidance
from .knapsack import Factor, Floats, Ints, Knapsack
from .known import REFIT_EVERY, Known, taught
from .mutation import Swaps, steps
from .surrogate import Surrogate, divergence_of

_SEEDS = 64
_CHILDREN, _SWAPS, _SWAPPED = 112, 24, 2  # of a proposal; _SWAPPED: parents of swaps


@dataclass(frozen=True)
class Focus:
    """What is left of the guided search; the defaults are all of it.

    useful: weight of the hypervolume near the baseline beside that of the whole box.
    seeds, surrogate, across: knapsack seeds; refitting; swaps across families.
    """

    useful: float = 0.5
    seeds: bool = True
    surrogate: bool = True
    across: bool = True


class Guide:
    """Proposes genotypes from single-option damages, exact costs and the true results so far.

    Everything follows from the results learnt, in whatever order, and the random generator given,
    so a resumed search proposes what an uninterrupted one would.

    guidance: damages and costs. objectives, constraints: as the job has them.
    """

    def __init__(
        self,
        guidance: Guidance,
        objectives: Sequence[Objective],
        constraints: Sequence[Expression] = (),
        seed: int = 0,
        focus: Focus | None = None,
    ) -> None:
        self._guidance, self._focus, self._seed = guidance, focus or Focus(), seed
        self._axes = Axes(guidance, objectives)
        self._counts, self._blocks = guidance.counts, guidance.blocks
        self._damage = guidance.damages()
        self._constraints = tuple(constraints)
        self._swaps = Swaps(self._counts.tolist(), guidance.families, self._focus.across)
        self._region = self.fresh_region()
        self._known = Known()
        self._fitted = self._solved = -1  # so many results were known to the surrogate, the seeds
        self._model: Surrogate
        self._seeds: Ints
        self._front: Ints = np.zeros(0, dtype=np.intp)
        self._seen = 0
        self.learn(
            -1, np.zeros(len(self._counts), dtype=np.intp), {**guidance.base, "divergence": 0.0}
        )

    def fresh_region(self) -> Region:
        """What counts in the objectives' space, before anything is dominated."""
        return Region(
            self._axes.count,
            self._axes.lengths,
            self._axes.ratio,
            self._focus.useful,
            np.random.default_rng([self._seed, 0x5EED]),
            self._allowed if self._located() else None,
        )

    @property
    def feasible(self) -> bool:
        """Whether any values near the baseline can meet the constraints at all."""
        return self._region.feasible

    def learn(self, number: int, genotype: Ints, values: Mapping[str, float]) -> None:
        """The true result of a trial. One that lacks an objective is passed over."""
        loss, ratios = self._axes.loss(values), self._axes.true_ratios(values)
        if loss is None or ratios is None:
            return
        point = np.array([loss, *ratios])
        found = values.get("divergence")
        score = self._axes.base_score
        known = self._known
        if known.enlist(number) < self._fitted:  # late: among those that the surrogate was told
            self._fitted = self._solved = -1
        known.genotypes.append(np.asarray(genotype, dtype=np.intp))
        known.divergence.append(
            float(divergence_of(np.array(loss), score)) if found is None else float(found)
        )
        known.points.append(point)
        shown = {**self._axes.values(point), **values}  # what no one measured constrains nothing
        if all(c.holds(shown) for c in self._constraints if set(c.names) <= set(shown)):
            known.stand(len(known.points) - 1)
        self._region.dominate(point)

    def propose(
        self, rng: np.random.Generator, count: int, taken: set[bytes], pending: Iterable[Ints] = ()
    ) -> list[Ints]:
        """Up to ``count`` genotypes, best first.

        taken: ``genotype.tobytes()`` of those not to be proposed again. pending: genotypes that
        are being tried; their expected results are taken into account.
        """
        self._refit()
        pool, origin = self._pool(rng, count)
        keys = [row.tobytes() for row in pool]
        first: dict[bytes, int] = {}
        for i, key in enumerate(keys):
            if key not in taken:
                first.setdefault(key, i)
        kept = np.array(sorted(first.values()), dtype=np.intp)
        if not len(kept):
            return []
        pool, origin = pool[kept], origin[kept]
        points, weights = self._region.view(rng)
        waiting = np.array(list(pending), dtype=np.intp).reshape(-1, len(self._counts))
        n = len(waiting)
        chance = self._chances(np.r_[waiting, pool], np.r_[np.full(n, -1), origin], points)
        sure, chance = chance[:n], chance[n:]
        weights = weights * np.prod(1.0 - sure, axis=0)
        order = pick(chance, weights, count, rng.random(len(pool)))
        return [pool[i] for i in order]

    def seeds(self) -> Ints:
        """The knapsack's solutions for random trade-offs: (n, parameters), the whole front."""
        self._refit()
        return self._seeds

    def predict(self, genotypes: Ints) -> Floats:
        """Expected (loss, ratios ...) of genotypes, without what their parents would add."""
        self._refit()
        loss, _ = self._model.loss(self._model.divergence(genotypes))
        return np.column_stack([loss, self._axes.ratios(genotypes)])

    def point(self, values: Mapping[str, float]) -> Floats | None:
        """True values as (loss, ratios ...); None when one is missing."""
        loss, ratios = self._axes.loss(values), self._axes.true_ratios(values)
        return None if loss is None or ratios is None else np.array([loss, *ratios])

    def _refit(self) -> None:
        """Follow the results: the front with every one, the seeds and the surrogate with some."""
        known = self._known
        if len(known.numbers) != self._seen:
            self._seen, self._front = len(known.numbers), known.parents()
        solved = self._seen // REFIT_EVERY * REFIT_EVERY
        if solved == self._solved:
            return
        if (fitted := taught(self._seen)) != self._fitted:
            used = known.order[:fitted] if self._focus.surrogate else []
            rows = np.array([known.genotypes[i] for i in used], dtype=np.intp)
            self._model = Surrogate.fit(
                self._damage,
                self._axes.base_score,
                rows.reshape(-1, len(self._counts)),
                np.array([known.divergence[i] for i in used]),
                np.array([known.points[i][0] for i in used]),
            )
        self._fitted, self._solved = fitted, solved
        self._seeds = self._solve(np.random.default_rng([self._seed, solved, 1]))

    def _solve(self, rng: np.random.Generator) -> Ints:
        """Knapsack solutions over random trade-offs between damage and each cost."""
        if not self._focus.seeds or not self._axes.names:
            return np.zeros((0, len(self._counts)), dtype=np.intp)
        weighted = self._model.damage * self._model.weights[:, None]
        axes = len(self._axes.names)
        factors = []
        for i, n in enumerate(self._counts):
            table = np.zeros((n, 1 + axes))
            table[:, 0] = weighted[i, :n]
            factors.append(Factor((i,), table))
        for factor in self._guidance.table.factors:
            share = self._axes.shares(factor.table)
            factors.append(Factor(factor.scope, np.insert(share, 0, 0.0, axis=-1)))
        knapsack = Knapsack(self._counts.tolist(), factors)
        level = 10 ** rng.uniform(-2.5, 1.5, size=(_SEEDS, 1))
        mix = rng.dirichlet(np.ones(axes), size=_SEEDS)
        alone = rng.random(_SEEDS) < 0.15
        mix[alone] = np.eye(axes)[rng.integers(axes, size=int(alone.sum()))]
        weights = np.column_stack([np.ones(_SEEDS), 2 * level * mix])
        return np.unique(knapsack.solve(weights), axis=0)

    def _pool(self, rng: np.random.Generator, count: int) -> tuple[Ints, Ints]:
        """Candidates, and the known result each descends from (-1: none)."""
        parts, origins = [self._seeds], [np.full(len(self._seeds), -1)]
        more = 1 + (count - 1) // 4
        if len(self._front):
            parents = np.array([self._known.genotypes[i] for i in self._front])
            children, whose = steps(rng, parents, more * _CHILDREN, self._counts, self._blocks)
            parts.append(children)
            origins.append(self._front[whose])
            weighted = self._model.damage * self._model.weights[:, None]
            for _ in range(more * _SWAPPED):
                which = int(rng.integers(len(parents)))
                found = self._swaps.of(
                    rng, parents[which], _SWAPS, weighted, self._axes.ratios
                ) if self._axes.names else parents[:0]  # fmt: skip
                parts.append(found)
                origins.append(np.full(len(found), self._front[which]))
        return np.concatenate(parts), np.concatenate(origins)

    def _chances(self, pool: Ints, origin: Ints, points: Floats) -> Floats:
        """How likely each candidate dominates each point; children are corrected by the error of
        their parent's prediction, in loss and in cost."""
        divergence, ratios = self._model.divergence(pool), self._axes.ratios(pool)
        has = np.flatnonzero(origin >= 0)
        if len(has):
            parents, index = np.unique(origin[has], return_inverse=True)
            known = self._known
            rows = np.array([known.genotypes[i] for i in parents])
            true = np.array([known.divergence[i] for i in parents])
            divergence[has] *= self._model.inherited(rows, true)[index]
            if ratios.shape[1]:
                seen = np.array([known.points[i][1:] for i in parents])
                ratios[has] *= (seen / np.maximum(self._axes.ratios(rows), 1e-9))[index]
        loss, error = self._model.loss(divergence)
        return chances(loss, np.where(origin >= 0, error, 1.25 * error), ratios, points)

    def _located(self) -> bool:
        """Whether some constraint speaks of what the axes show."""
        shown = self._axes.values(np.full(self._axes.count, 0.5))
        return any(set(c.names) <= set(shown) for c in self._constraints)

    def _allowed(self, points: Floats) -> list[bool]:
        shown = self._axes.values(np.full(self._axes.count, 0.5))
        mine = [c for c in self._constraints if set(c.names) <= set(shown)]
        return [all(c.holds(v) for c in mine) for v in map(self._axes.values, points)]
