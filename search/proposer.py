"""Who proposes the next plan: an Optuna sampler over a study in memory, without duplicates.

The study in memory holds one Optuna trial for every ask, and one for every proposal that was burnt
because its plan had been asked before, always in the same order. So after :meth:`Proposer.restore`
of the recorded asks the Optuna trials have the numbers they had, and what a sampler noted about
them (generations, parents) stays true: a resumed search goes on as if it had never stopped.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, product
from typing import Any, Protocol

import numpy as np
import optuna
from optuna.samplers import BaseGASampler, BaseSampler
from optuna.study import StudyDirection
from optuna.trial import TrialState, create_trial

from ..errors import InputError
from ..objectives.evaluation import Evaluation
from ..objectives.expression import Expression
from ..objectives.objective import Objective
from ..spaces.plan import CompressionPlan
from ..trackers.ask import Ask
from .guided import VALUES, GuidedSampler
from .samplers import distributions, reseed
from .scout import Errand, Scout
from .shared_storage import SharedStorage

RETRIES = 20  # proposals of the sampler itself before local changes are tried
LOCAL_TRIES = 400

LISTED = 20_000  # spaces up to this size are searched completely before they count as exhausted
_DIRECTIONS = {True: StudyDirection.MAXIMIZE, False: StudyDirection.MINIMIZE}


class Exhausted(Exception):
    """There is no plan left that has not been asked: the search ends, and says so."""


class Space(Protocol):
    """What a proposer needs of a search space."""

    @property
    def parameters(self) -> dict[str, int]:
        """Parameter name -> number of options; option 0 changes nothing."""
        ...

    @property
    def size(self) -> int:
        """How many genotypes there are."""
        ...

    def plan(self, genotype: Mapping[str, int]) -> CompressionPlan:
        """The canonical plan of a genotype."""
        ...


class Proposer:
    """Asks an Optuna sampler for plans and tells it what came of them.

    space: parameters and how a genotype becomes a canonical plan.
    objectives: the axes, in order; constraints: met when ``violation(values) <= 0``.
    sampler: from :func:`make_sampler`. seed: reseeds it before every ask.
    presets: genotypes asked first; those whose plan repeats an earlier one are left out.
    scout: screens candidates before each ask and chooses among them, instead of the sampler.

    One number is one trial: asks must be made, or restored, as 0, 1, 2 ...
    """

    def __init__(
        self,
        space: Space,
        objectives: Sequence[Objective],
        constraints: Sequence[Expression],
        sampler: BaseSampler,
        seed: int = 0,
        presets: Sequence[Mapping[str, int]] = (),
        scout: Scout | None = None,
    ) -> None:
        self.scout, self.constraints = scout, tuple(constraints)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._space, self._objectives = space, objectives
        self._sampler, self._seed = sampler, seed
        self._distributions = distributions(space.parameters)
        self._storage = SharedStorage()
        self._study = optuna.create_study(
            storage=self._storage,
            sampler=sampler,
            directions=[_DIRECTIONS[objective.maximize] for objective in objectives],
        )
        self._identity = space.plan({}).fingerprint
        self._presets = self._distinct(presets)
        self._seen = {self._identity}
        self._genotypes: list[dict[str, int]] = []  # of every ask, in order
        self._trial_ids: dict[int, int] = {}  # number -> id of an Optuna trial not told yet

    @property
    def next_number(self) -> int:
        """The number of the next ask."""
        return len(self._genotypes)

    def begin(self, baseline: Evaluation) -> None:
        """The unchanged network as measured: for those that compare with it."""
        for one in (self.scout, self._sampler):
            if isinstance(one, Scout | GuidedSampler):
                one.begin(baseline.values)

    def errands(self, number: int) -> list[Errand]:
        """What must be screened before that ask, for the first time it is looked at."""
        return [] if self.scout is None else self.scout.errands(number)

    def ready(self, number: int) -> bool:
        """Whether the ask can be made: all that it waits for is screened."""
        return self.scout is None or self.scout.ready(number)

    def ask(self, number: int) -> Ask:
        """A plan that was not asked before.

        The sampler is reseeded from (seed, number, retry). A duplicate, after canonicalisation, is
        burnt and asked anew; after 20 of them, changes of earlier asks are tried.
        Raises Exhausted when no new plan can be found.
        """
        self._expect(number)
        noted = dict(self._study_attrs())
        burnt: list[Mapping[str, Any]] = []
        for retry in range(RETRIES + 1):
            fixed: Mapping[str, int] | None = None
            if retry == 0 and number < len(self._presets):
                fixed = self._presets[number]
            elif retry == RETRIES or len(self._seen) > self._space.size:
                fixed = self._unseen(number)
            elif self.scout is not None:
                fixed = self.scout.choose(number)
            sequence = np.random.SeedSequence([self._seed, number, retry])
            trial, params = self._suggest(fixed, sequence)
            plan = self._space.plan(params)
            attrs = self._storage.get_trial_system_attrs(trial._trial_id)
            if plan.fingerprint not in self._seen:
                break
            burnt.append({"params": params, "system_attrs": dict(attrs)})
            if self.scout is not None:
                self.scout.drop(params)
            self._study.tell(trial, state=TrialState.FAIL)
        changed = {k: v for k, v in self._study_attrs().items() if noted.get(k, self) != v}
        ask = Ask(number, plan, params, dict(attrs), changed, tuple(burnt))
        self._remember(ask, trial._trial_id)
        return ask

    def restore(self, ask: Ask) -> None:
        """Put a recorded ask, with what was burnt before it, back as if it had just been made."""
        self._expect(ask.number)
        for lost in ask.burnt:
            self._add(lost["params"], lost["system_attrs"])
            if self.scout is not None:
                self.scout.drop(lost["params"])
            self._study.tell(
                self._storage.get_n_trials(self._study._study_id) - 1, state=TrialState.FAIL
            )
        trial_id = self._add(ask.params, ask.system_attrs)
        for key, value in ask.study_attrs.items():
            self._storage.set_study_system_attr(self._study._study_id, key, value)
        self._remember(ask, trial_id)

    def tell(self, number: int, evaluation: Evaluation) -> str | None:
        """Let the sampler learn from ``evaluation``, if it is usable.

        Returns None, or why it is not (it failed, or an objective is missing or not finite): then
        the sampler is told that the trial failed.
        """
        trial = optuna.Trial(self._study, self._trial_ids.pop(number))
        cause = self._unusable(evaluation)
        if self.scout is not None:
            found = evaluation.values if cause is None else None
            self.scout.tell(number, found, evaluation.errors)
        if cause is not None:
            self._study.tell(trial, state=TrialState.FAIL)
            return cause
        for constraint in self.constraints:
            trial.set_constraint(str(constraint), constraint.violation(evaluation.values))
        trial.set_user_attr(VALUES, dict(evaluation.values))
        values = [float(evaluation.values[objective.name]) for objective in self._objectives]
        self._study.tell(trial, values)
        return None

    def _unusable(self, evaluation: Evaluation) -> str | None:
        if evaluation.cause is not None:
            return evaluation.cause
        for objective in self._objectives:
            value: object = evaluation.values.get(objective.name)
            if value is None:
                return f"{objective.name} was not obtained"
            if isinstance(value, bool) or not isinstance(value, int | float):
                return f"{objective.name} is {value!r}, not a number"
            if not math.isfinite(value):
                return f"{objective.name} is {value!r}, not finite"
        return None

    def _suggest(
        self, fixed: Mapping[str, int] | None, sequence: np.random.SeedSequence
    ) -> tuple[optuna.Trial, dict[str, int]]:
        """One new Optuna trial with all parameters; ``fixed`` sets them instead of the sampler."""
        if not isinstance(self._sampler, GuidedSampler):  # it draws from the trial's own number
            reseed(self._sampler, sequence)
        if fixed is not None:
            self._study.enqueue_trial(dict(fixed))
        trial = self._study.ask()
        chosen: dict[str, Any] = {}
        if fixed is None or isinstance(self._sampler, BaseGASampler):
            # Optuna samples lazily: without this a trial whose parameters are all fixed gets no
            # generation and can never become a parent.
            chosen |= trial.relative_params
        chosen |= fixed or {}
        if self._distributions.keys() <= chosen.keys():
            params = {name: int(chosen[name]) for name in self._distributions}
            self._storage.set_trial_params(trial._trial_id, params, dict(self._distributions))
        else:
            params = {
                name: trial.suggest_int(name, distribution.low, distribution.high)
                for name, distribution in self._distributions.items()
            }
        return trial, params

    def _add(self, params: Mapping[str, int], system_attrs: Mapping[str, Any]) -> int:
        trial = create_trial(
            state=TrialState.RUNNING,
            params=dict(params),
            distributions={name: self._distributions[name] for name in params},
            system_attrs=dict(system_attrs),
        )
        return self._storage.create_new_trial(self._study._study_id, template_trial=trial)

    def _study_attrs(self) -> dict[str, Any]:
        return self._storage.get_study_system_attrs(self._study._study_id)

    def _remember(self, ask: Ask, trial_id: int) -> None:
        self._seen.add(ask.plan.fingerprint)
        self._genotypes.append(dict(ask.params))
        if self.scout is not None:
            self.scout.asked(ask.number, ask.params)
        self._trial_ids[ask.number] = trial_id

    def _expect(self, number: int) -> None:
        if number != self.next_number:
            raise InputError("study", f"ask {number} follows {self.next_number - 1}", "")

    def _distinct(self, presets: Sequence[Mapping[str, int]]) -> list[dict[str, int]]:
        seen, out = {self._identity}, []
        for preset in presets:
            genotype = {name: preset.get(name, 0) for name in self._distributions}
            fingerprint = self._space.plan(genotype).fingerprint
            if fingerprint not in seen:
                seen.add(fingerprint)
                out.append(genotype)
        return out

    def _unseen(self, number: int) -> dict[str, int]:
        """A genotype with a new plan: near earlier asks first, then anywhere."""
        rng = np.random.default_rng([self._seed, number, RETRIES])
        for genotype in chain(self._changes(rng), self._everything(rng)):
            if self._space.plan(genotype).fingerprint not in self._seen:
                return genotype
        raise Exhausted(f"every plan of the space has been tried: {len(self._seen) - 1} of them")

    def _changes(self, rng: np.random.Generator) -> Iterator[dict[str, int]]:
        """Earlier asks with one to four parameters redrawn, then random genotypes."""
        names = [name for name, dist in self._distributions.items() if not dist.single()]
        for turn in range(LOCAL_TRIES):
            if not names:
                return
            local = bool(self._genotypes) and turn < LOCAL_TRIES // 2
            genotype = dict.fromkeys(self._distributions, 0)
            if local:
                genotype |= self._genotypes[int(rng.integers(len(self._genotypes)))]
            count = min(len(names), 1 + turn // 50) if local else len(names)
            for index in rng.choice(len(names), size=count, replace=False):
                name = names[int(index)]
                genotype[name] = int(rng.integers(self._distributions[name].high + 1))
            yield genotype

    def _everything(self, rng: np.random.Generator) -> Iterator[dict[str, int]]:
        """Every genotype of a small space, from a random place on."""
        if self._space.size > LISTED:
            return
        counts = [range(dist.high + 1) for dist in self._distributions.values()]
        listed = list(product(*counts))
        start = int(rng.integers(len(listed)))
        for options in chain(listed[start:], listed[:start]):
            yield dict(zip(self._distributions, options, strict=True))
