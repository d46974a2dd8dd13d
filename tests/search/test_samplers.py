"""Samplers by name, and the reseeding of every random state inside them."""

import numpy as np
import optuna
import pytest

from paretune.errors import InputError
from paretune.search.samplers import SAMPLERS, LazyGridSampler, make_sampler, reseed

PARAMETERS = {"a": 3, "b": 4, "c": 1}


def test_unknown_sampler_names_the_nearest():
    with pytest.raises(
        InputError, match=r"job.yaml: unknown sampler 'nsgaa2'; did you mean 'nsga2'"
    ):
        make_sampler("nsgaa2", PARAMETERS, where="job.yaml")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", sorted(set(SAMPLERS) - {"guided"}))
def test_no_warning_reaches_the_user(name):
    sampler = make_sampler(name, PARAMETERS, seed=1)
    assert isinstance(sampler, optuna.samplers.BaseSampler)


def random_states(item, found, seen, depth=0):
    """Independent reference: every RandomState reachable through attributes, by brute force."""
    if id(item) in seen or depth > 8:
        return
    seen.add(id(item))
    if isinstance(item, np.random.RandomState):
        found.append(item)
    for part in [*getattr(item, "__dict__", {}).values()]:
        if not isinstance(part, type | str | int | float):
            random_states(part, found, seen, depth + 1)


@pytest.mark.parametrize("name", sorted(set(SAMPLERS) - {"grid", "guided"}))
def test_reseed_reaches_every_random_state(name):
    draws = []
    for skip in (0, 5):
        sampler = make_sampler(name, PARAMETERS, seed=skip)
        found = []
        random_states(sampler, found, set())
        for state in found:
            state.random_sample(skip)
        assert reseed(sampler, np.random.SeedSequence([1, 2])) == len(found) >= 1
        draws.append([state.random_sample(3).tolist() for state in found])
    assert draws[0] == draws[1]
    flat = [tuple(d) for d in draws[0]]
    assert len(set(flat)) == len(flat)  # no two states share a stream


def test_population_follows_the_budget():
    sizes = [make_sampler("nsga2", PARAMETERS, trials=n).population_size for n in (10, 100, 1000)]
    assert sizes == [8, 20, 50]
    assert make_sampler("nsga3", PARAMETERS, trials=10, population=12).population_size == 12


def test_grid_visits_every_combination_once_in_seeded_order():
    orders = []
    for seed in (0, 1):
        study = optuna.create_study(sampler=LazyGridSampler(PARAMETERS, seed))
        visited = []
        for _ in range(12):
            trial = study.ask()
            visited.append(tuple(trial.suggest_int(n, 0, c - 1) for n, c in PARAMETERS.items()))
            study.tell(trial, 0.0)
        assert len(set(visited)) == 12
        orders.append(visited)
    assert orders[0] != orders[1]


def test_a_huge_grid_costs_nothing():
    make_sampler("grid", {f"p{i}": 4 for i in range(100)}, seed=3)


def test_qmc_fills_evenly_from_the_first_trial():
    """64 points of a scrambled Sobol sequence hit each of 8 x 8 cells of two parameters once."""
    parameters = {"a": 8, "b": 8}
    study = optuna.create_study(sampler=make_sampler("qmc", parameters, seed=5))
    cells = set()
    for _ in range(64):
        trial = study.ask()
        cells.add((trial.suggest_int("a", 0, 7), trial.suggest_int("b", 0, 7)))
        study.tell(trial, 0.0)
    assert len(cells) == 64
