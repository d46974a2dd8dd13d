"""The proposer: same seed and results, same plans, also after an interruption."""

import json
import time

import pytest
from optuna.distributions import IntDistribution

from paretune.objectives.evaluation import Evaluation
from paretune.objectives.expression import Expression
from paretune.objectives.objective import Objective
from paretune.search.proposer import Exhausted, Proposer
from paretune.search.samplers import SAMPLERS, make_sampler
from paretune.search.window import Window
from paretune.spaces.plan import CompressionPlan
from paretune.trackers.ask import Ask

OBJECTIVES = [Objective("accuracy", {}), Objective("size_bytes", {}), Objective("latency_ms", {})]
FAST = ["nsga2", "nsga3", "tpe", "random", "qmc", "grid"]


def make(space, name="nsga2", seed=3, population=8, constraints=(), presets=True):
    sampler = make_sampler(name, space.parameters, seed=seed, trials=60, population=population)
    parsed = [Expression.parse(text) for text in constraints]
    return Proposer(space, OBJECTIVES, parsed, sampler, seed, space.presets() if presets else ())


def stored(ask):
    """The ask after a journey through JSON, as the study keeps it."""
    text = json.dumps([ask.params, ask.system_attrs, ask.study_attrs, ask.burnt])
    params, system_attrs, study_attrs, burnt = json.loads(text)
    plan = CompressionPlan.from_json(json.loads(json.dumps(ask.plan.to_json())))
    return Ask(ask.number, plan, params, system_attrs, study_attrs, tuple(burnt), ask.parent)


def outcome(fakes, ask):
    """Every seventh candidate fails, every eleventh has no latency."""
    evaluation = fakes.measured(ask.plan)
    if ask.number % 7 == 5:
        return Evaluation.failure(ask.plan, "no")
    if ask.number % 11 == 6:
        return Evaluation(ask.plan, "measure", {"accuracy": 0.5, "size_bytes": 1.0})
    return evaluation


def run(fakes, space, trials, *, width=4, order=None, stops=(), **kwargs):
    """Plans of a search in which candidates finish in ``order`` and which is killed at ``stops``
    (counts of finished candidates) and restored from what was recorded."""
    asks, finished, stops = {}, {}, list(stops)
    window = Window(make(space, **kwargs), width, trials)
    while True:
        while (ask := window.next()) is not None:
            asks[ask.number] = stored(ask)
        running = sorted(set(asks) - set(finished))
        if not running:
            return [asks[n].plan.fingerprint for n in sorted(asks)]
        number = running[order(len(finished), len(running)) if order else 0]
        finished[number] = outcome(fakes, asks[number])
        if stops and len(finished) >= stops[0]:
            stops.pop(0)
            window = Window(make(space, **kwargs), width, trials)
            window.restore(asks.values(), finished)
        else:
            window.add(number, finished[number])


@pytest.mark.parametrize(
    ("name", "constraints"), [(n, ()) for n in FAST] + [("nsga2", ("accuracy >= 0.8",))]
)
def test_interrupted_equals_uninterrupted(fakes, name, constraints):
    space = fakes.ToySpace(merge=True)
    whole = run(fakes, space, 24, name=name, constraints=constraints)
    assert len(set(whole)) == 24
    shuffled = run(
        fakes, space, 24, name=name, constraints=constraints,
        order=lambda done, count: (done * 7 + 3) % count, stops=range(1, 24, 3),
    )  # fmt: skip
    assert shuffled == whole


def test_every_interruption_point(fakes):
    space = fakes.ToySpace(layers=4, options=3)
    whole = run(fakes, space, 20, name="nsga2", population=4)
    for stop in range(1, 20):
        assert run(fakes, space, 20, name="nsga2", population=4, stops=[stop]) == whole


@pytest.mark.slow
def test_interrupted_equals_uninterrupted_gp(fakes):
    space = fakes.ToySpace(layers=3)
    whole = run(fakes, space, 18, name="gp")
    assert run(fakes, space, 18, name="gp", stops=[5, 14, 16]) == whole


@pytest.mark.parametrize("name", FAST)
def test_seed_matters(fakes, name):
    space = fakes.ToySpace()
    assert run(fakes, space, 12, name=name, seed=1) != run(fakes, space, 12, name=name, seed=2)


@pytest.mark.parametrize("name", ["nsga2", "nsga3"])
def test_presets_hold_a_generation_and_become_parents(fakes, name):
    """Optuna gives fully enqueued trials no generation unless their sampling is touched."""
    space = fakes.ToySpace(layers=8, options=6)
    proposer = make(space, name, population=5)
    for number in range(5):
        ask = proposer.ask(number)
        key = {"nsga2": "NSGAIISampler", "nsga3": "NSGAIIISampler"}[name] + ":generation"
        assert ask.params == space.presets()[number]
        assert ask.system_attrs[key] == 0
        proposer.tell(number, fakes.measured(ask.plan))
    child = proposer.ask(5)
    (parents,) = [v for k, v in child.study_attrs.items() if ":parent:" in k]
    assert sorted(parents) == [0, 1, 2, 3, 4]
    # a child of uniform parents takes nearly all its genes from presets' levels, crossed over
    assert child.system_attrs[key] == 1


def test_duplicates_are_burnt_and_recorded(fakes):
    space = fakes.ToySpace(layers=2, options=4, merge=True)  # 16 genotypes, 9 plans, 8 not identity
    proposer = make(space, "random", presets=False)
    asks = [proposer.ask(number) for number in range(8)]
    assert len({a.plan.fingerprint for a in asks}) == 8
    assert space.plan({}).fingerprint not in {a.plan.fingerprint for a in asks}
    assert any(a.burnt for a in asks)
    with pytest.raises(Exhausted, match="8"):
        proposer.ask(8)


@pytest.mark.parametrize("name", FAST)
def test_a_small_space_is_exhausted_exactly(fakes, name):
    space = fakes.ToySpace(layers=3, options=3)
    window = Window(make(space, name, population=4), 4, 1000)
    asks = []
    while (ask := window.next()) is not None or window.exhausted is None:
        if ask is not None:
            asks.append(ask)
        else:
            window.add(asks[window._told].number, fakes.measured(asks[window._told].plan))
    assert len(asks) == 26
    assert len({a.plan.fingerprint for a in asks}) == 26


def test_useless_values_are_told_as_failed(fakes):
    space = fakes.ToySpace()
    proposer = make(space, "nsga2", presets=False)
    causes = []
    bad = [
        {"accuracy": 0.5, "size_bytes": 1.0},
        {"accuracy": float("nan"), "size_bytes": 1.0, "latency_ms": 1.0},
        {"accuracy": float("inf"), "size_bytes": 1.0, "latency_ms": 1.0},
        {"accuracy": True, "size_bytes": 1.0, "latency_ms": 1.0},
        {"accuracy": "0.5", "size_bytes": 1.0, "latency_ms": 1.0},
    ]
    for number, values in enumerate(bad):
        ask = proposer.ask(number)
        causes.append(proposer.tell(number, Evaluation(ask.plan, "measure", values)))
    assert causes[0] == "latency_ms was not obtained"
    assert all(causes)
    good = proposer.ask(len(bad))
    assert proposer.tell(len(bad), fakes.measured(good.plan)) is None


def test_constraints_reach_the_sampler(fakes):
    """NSGA-II's parents of the second generation are the feasible ones."""
    space = fakes.ToySpace(layers=8, options=4)
    proposer = make(space, "nsga2", population=6, presets=False, constraints=["size_bytes < 960"])
    sizes = {}  # by Optuna's own number, which counts burnt proposals too
    for number in range(13):
        ask = proposer.ask(number)
        evaluation = fakes.measured(ask.plan)
        if number < 12:
            sizes[proposer._trial_ids[number]] = evaluation.values["size_bytes"]
        proposer.tell(number, evaluation)
    (parents,) = [v for k, v in ask.study_attrs.items() if k.endswith(":parent:2")]
    feasible = {n for n, size in sizes.items() if size < 960}
    assert 0 < len(feasible) < 12
    assert len(feasible & set(parents)) == min(6, len(feasible))


def test_quick_enough(fakes):
    """Ask and tell with 60 parameters and 200 trials: milliseconds."""
    space = fakes.ToySpace(layers=60, options=4)
    proposer = make(space, "nsga2", population=40)
    begin = time.process_time()
    for number in range(200):
        proposer.tell(number, fakes.measured(proposer.ask(number).plan))
    assert (time.process_time() - begin) / 200 < 0.05


@pytest.mark.parametrize("name", FAST)
def test_optuna_holds_the_parameters_that_were_asked(fakes, name):
    """However they were set: each with the distribution that Optuna would have noted."""
    space = fakes.ToySpace(layers=4)
    proposer = make(space, name, population=4)
    asks = []
    for number in range(14):
        asks.append(proposer.ask(number))
        proposer.tell(number, fakes.measured(asks[-1].plan))
    held = [t for t in proposer._study.trials if t.state.name == "COMPLETE"]
    assert [t.params for t in held] == [ask.params for ask in asks]
    want = {name: IntDistribution(0, n - 1) for name, n in space.parameters.items()}
    assert all(t.distributions == want for t in held)


def test_every_sampler_is_tested():
    assert set(FAST) | {"gp", "guided"} == set(SAMPLERS)  # guided: test_guided.py
