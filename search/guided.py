"""The guided sampler: an Optuna sampler that starts where single-layer damages point."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from optuna import Study
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from ..objectives.expression import Expression
from ..objectives.objective import Objective
from .guidance import Guidance
from .guide import Focus, Guide
from .knapsack import Ints

VALUES = "paretune:values"
"""User attribute of a trial: all its values by name, where more is known than the objectives."""


class GuidedSampler(BaseSampler):
    """Seeds from a knapsack over single-option damages, then changes of the true front.

    Each proposal is chosen by expected hypervolume improvement from a surrogate that is refitted
    on true results; trials that are running count with their predicted results. All of it is
    rebuilt from ``study.get_trials()``; random numbers come from (seed, trial number) alone. So
    the same told results give the same proposals, whenever the search was interrupted.

    objectives: in the order of the study's values. constraints: where effort is worth while.

    >>> sampler = GuidedSampler(guidance, objectives)         # doctest: +SKIP
    >>> optuna.create_study(sampler=sampler, directions=["maximize", "minimize"])  # doctest: +SKIP
    """

    def __init__(
        self,
        guidance: Guidance,
        objectives: Sequence[Objective],
        constraints: Sequence[Expression] = (),
        seed: int = 0,
        focus: Focus | None = None,
    ) -> None:
        self._objectives, self._seed = tuple(objectives), seed
        self._names = list(guidance.parameters)
        self._space: dict[str, BaseDistribution] = {
            name: IntDistribution(0, count - 1) for name, count in guidance.parameters.items()
        }
        self._guidance, self._constraints, self._focus = guidance, tuple(constraints), focus
        self._guide = self._fresh()
        self._learnt: set[int] = set()  # ids of the trials the guide has seen
        self._tried: set[bytes] = set()  # genotypes of all trials, and the unchanged network's
        self._rows: dict[int, Ints] = {}  # id of a trial that is running -> its genotype
        self._done = 0  # so many trials at the beginning are finished and learnt
        self._study: tuple[int, int] | None = None

    def begin(self, baseline: Mapping[str, float]) -> None:
        """The unchanged network's values as measured, which objectives are compared with."""
        self._guidance = replace(self._guidance, base={**self._guidance.base, **baseline})
        self._guide, self._study = self._fresh(), None

    def _fresh(self) -> Guide:
        return Guide(self._guidance, self._objectives, self._constraints, self._seed, self._focus)

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Every parameter."""
        return dict(self._space)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The next genotype."""
        rng = np.random.default_rng([self._seed, trial.number])
        trials = study.get_trials(deepcopy=False)
        self._follow((id(study._storage), study._study_id), trials)
        pending = [
            self._running(other)
            for other in trials[self._done :]
            if other.state == TrialState.RUNNING
            and other.number != trial.number
            and len(other.params) == len(self._names)
        ]
        found = self._guide.propose(rng, 1, self._tried, pending)
        genotype = found[0] if found else (rng.random(len(self._names)) * self._sizes).astype(int)
        return {name: int(k) for name, k in zip(self._names, genotype, strict=True)}

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Never needed: every parameter is in the guidance."""
        raise KeyError(param_name)

    @property
    def _sizes(self) -> Ints:
        highs = [d.high + 1 for d in self._space.values() if isinstance(d, IntDistribution)]
        return np.array(highs, dtype=np.intp)

    def _row(self, trial: FrozenTrial) -> Ints:
        return np.array([trial.params.get(name, 0) for name in self._names], dtype=np.intp)

    def _running(self, trial: FrozenTrial) -> Ints:
        """The genotype of a trial that has all its parameters, worked out once."""
        if trial._trial_id not in self._rows:
            row = self._rows[trial._trial_id] = self._row(trial)
            self._tried.add(row.tobytes())
        return self._rows[trial._trial_id]

    def _follow(self, study: tuple[int, int], trials: Sequence[FrozenTrial]) -> None:
        """Let the guide know the finished trials; all anew if it is another study's turn."""
        if study != self._study:
            self._study, self._guide, self._learnt = study, self._fresh(), set()
            self._rows, self._done = {}, 0
            self._tried = {np.zeros(len(self._names), dtype=np.intp).tobytes()}
        names = [o.name for o in self._objectives]
        for trial in trials[self._done :]:
            if trial._trial_id in self._learnt or not trial.state.is_finished():
                continue
            row = self._row(trial)
            self._learnt.add(trial._trial_id)
            self._rows.pop(trial._trial_id, None)
            self._tried.add(row.tobytes())
            if trial.state == TrialState.COMPLETE and trial.values is not None:
                values = dict(zip(names, trial.values, strict=True))
                values |= trial.user_attrs.get(VALUES, {})
                self._guide.learn(trial.number, row, values)
        while self._done < len(trials) and trials[self._done]._trial_id in self._learnt:
            self._done += 1
