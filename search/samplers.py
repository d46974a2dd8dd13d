"""The samplers by name, and how each ask gets random numbers of its own.

Every sampler is an Optuna sampler. Before each ask it is reseeded from (seed, number, retry), so
what it proposes depends on the results it was told and on nothing else: not on when the search was
interrupted, nor on how many random numbers were drawn before.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import gcd, prod
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.samplers._lazy_random_state import LazyRandomState

from ..errors import InputError, nearest

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

    from ..objectives.expression import Expression
    from ..objectives.objective import Objective
    from .guidance import Guidance


@dataclass(frozen=True)
class Setting:
    """What a sampler is made from.

    parameters: name -> number of options (ordinal, 0 changes nothing).
    population: individuals of one generation, for the genetic samplers.
    guidance, objectives, constraints: for the guided one.
    """

    parameters: Mapping[str, int]
    seed: int
    population: int
    guidance: Guidance | None = None
    objectives: Sequence[Objective] = ()
    constraints: Sequence[Expression] = ()


def distributions(parameters: Mapping[str, int]) -> dict[str, IntDistribution]:
    """Each parameter as Optuna sees it: an ordinal integer from 0 (unchanged) up."""
    return {name: IntDistribution(0, count - 1) for name, count in parameters.items()}


class QuasiRandomSampler(optuna.samplers.QMCSampler):
    """Scrambled Sobol points from the first trial on (Optuna's own starts with a random one)."""

    def __init__(self, parameters: Mapping[str, int], seed: int) -> None:
        super().__init__(
            qmc_type="sobol", scramble=True, seed=seed, warn_independent_sampling=False
        )
        self._space: dict[str, BaseDistribution] = {
            name: dist for name, dist in distributions(parameters).items() if not dist.single()
        }

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Every parameter with a choice."""
        return dict(self._space)


class LazyGridSampler(BaseSampler):
    """Every combination once, in a seeded order, without listing them (Optuna's own lists all).

    Combination i is number ``(start + i * stride) mod size`` of the grid, with a stride that has no
    divisor in common with its size. i is kept as the study's system attribute ``paretune:grid``.
    """

    KEY = "paretune:grid"

    def __init__(self, parameters: Mapping[str, int], seed: int) -> None:
        self._parameters = dict(parameters)
        self._size = prod(self._parameters.values())
        words = np.random.SeedSequence(seed).generate_state(16)
        number = int.from_bytes(words.tobytes(), "little")
        self._start = number % self._size
        self._stride = (number >> 64) % self._size or 1
        while gcd(self._stride, self._size) != 1:
            self._stride += 1

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Every parameter."""
        return dict(distributions(self._parameters))

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The next combination."""
        attributes = study._storage.get_study_system_attrs(study._study_id)
        index = int(attributes.get(self.KEY, -1)) + 1
        study._storage.set_study_system_attr(study._study_id, self.KEY, index)
        place = (self._start + index * self._stride) % self._size
        genotype = {}
        for name, count in self._parameters.items():
            place, genotype[name] = divmod(place, count)
        return genotype

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Never needed: every parameter is in the grid."""
        raise KeyError(param_name)


def _nsga2(setting: Setting) -> BaseSampler:
    # A child takes a fifth of its genes from the second parent: half, Optuna's default, mixes two
    # plans of fifty layers into one that is good at nothing.
    crossover = optuna.samplers.nsgaii.UniformCrossover(swapping_prob=0.2)
    return optuna.samplers.NSGAIISampler(
        population_size=setting.population, seed=setting.seed, crossover=crossover
    )


def _nsga3(setting: Setting) -> BaseSampler:
    return optuna.samplers.NSGAIIISampler(population_size=setting.population, seed=setting.seed)


def _tpe(setting: Setting) -> BaseSampler:
    return optuna.samplers.TPESampler(seed=setting.seed)


def _gp(setting: Setting) -> BaseSampler:
    return optuna.samplers.GPSampler(seed=setting.seed, warn_independent_sampling=False)


def _random(setting: Setting) -> BaseSampler:
    return optuna.samplers.RandomSampler(seed=setting.seed)


def _qmc(setting: Setting) -> BaseSampler:
    return QuasiRandomSampler(setting.parameters, setting.seed)


def _grid(setting: Setting) -> BaseSampler:
    return LazyGridSampler(setting.parameters, setting.seed)


def _guided(setting: Setting) -> BaseSampler:
    from .guided import GuidedSampler

    if setting.guidance is None:
        raise InputError("search.sampler", "'guided' needs a sensitivity table", "use 'nsga2'")
    return GuidedSampler(setting.guidance, setting.objectives, setting.constraints, setting.seed)


SAMPLERS: dict[str, Callable[[Setting], BaseSampler]] = {
    "guided": _guided,
    "nsga2": _nsga2,
    "nsga3": _nsga3,
    "tpe": _tpe,
    "gp": _gp,
    "random": _random,
    "qmc": _qmc,
    "grid": _grid,
}


def check_sampler(name: str, where: str = "search.sampler") -> None:
    """Refuse an unknown sampler name with the nearest known one (InputError)."""
    if name not in SAMPLERS:
        raise InputError(where, f"unknown sampler {name!r}", nearest(name, SAMPLERS))


def default_population(trials: int) -> int:
    """A fifth of the budget, between 8 and 50: a short search still sees several generations."""
    return min(50, max(8, trials // 5))


def make_sampler(
    name: str,
    parameters: Mapping[str, int],
    *,
    seed: int = 0,
    trials: int = 200,
    population: int | None = None,
    guidance: Guidance | None = None,
    objectives: Sequence[Objective] = (),
    constraints: Sequence[Expression] = (),
    where: str = "search.sampler",
) -> BaseSampler:
    """The sampler called ``name``, sized for a budget of ``trials``.

    population: individuals of one generation for nsga2 and nsga3. guidance, objectives,
    constraints: what ``guided`` starts from.
    Raises InputError on an unknown name, or for ``guided`` without guidance.
    """
    check_sampler(name, where)
    size = population if population is not None else default_population(trials)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "experimental" notices
        setting = Setting(dict(parameters), seed, size, guidance, objectives, constraints)
        return SAMPLERS[name](setting)


def reseed(sampler: BaseSampler, sequence: np.random.SeedSequence) -> int:
    """Give every random state inside ``sampler`` a fresh seed; returns how many there are.

    Optuna keeps a ``LazyRandomState`` in private attributes, also of strategies and of nested
    samplers; all are found, in an order that depends only on their names. What the GP sampler
    remembers of its last fit is forgotten too: it would differ after a resume.
    """
    for name in ("_gprs_cache_list", "_constraints_gprs_cache_list"):
        if getattr(sampler, name, None) is not None:
            setattr(sampler, name, None)
    states = list(_random_states(sampler, set()))
    words = sequence.generate_state(4 * max(1, len(states))).reshape(-1, 4)
    for state, seed in zip(states, words, strict=False):
        state.rng.seed(seed)
    return len(states)


def _random_states(item: Any, seen: set[int]) -> Iterator[LazyRandomState]:
    if id(item) in seen:
        return
    seen.add(id(item))
    if isinstance(item, LazyRandomState):
        yield item
        return
    parts: list[Any] = []
    if isinstance(item, dict):
        parts = list(item.values())
    elif isinstance(item, list | tuple):
        parts = list(item)
    elif isinstance(item, BaseSampler) or type(item).__module__.startswith("optuna.samplers"):
        parts = (
            [value for _, value in sorted(vars(item).items())] if hasattr(item, "__dict__") else []
        )
    for part in parts:
        yield from _random_states(part, seen)
