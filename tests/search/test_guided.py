"""The guided sampler: better than what it is made of, resumable, quick, and at home in a study."""

import json
import time

import numpy as np
import optuna
import pytest

from paretune.errors import InputError
from paretune.objectives.evaluation import Evaluation
from paretune.objectives.expression import Expression
from paretune.objectives.further import measured_on, target_suffix
from paretune.objectives.hypervolume import normalized_hypervolume
from paretune.objectives.objective import Objective
from paretune.search.cost_table import CostTable
from paretune.search.guidance import Guidance
from paretune.search.guide import Focus
from paretune.search.guided import VALUES, GuidedSampler
from paretune.search.proposer import Proposer
from paretune.search.samplers import make_sampler
from paretune.search.window import Window
from paretune.spaces.plan import CompressionPlan
from paretune.trackers.ask import Ask

optuna.logging.set_verbosity(optuna.logging.WARNING)


@pytest.fixture(scope="module")
def network(emulated):
    return emulated.Network(blocks=5)


@pytest.fixture(scope="module")
def guidance(emulated, network):
    return guidance_of(emulated, network)


def guidance_of(emulated, network):
    table = CostTable.probe(network, network.plan, network.parameters, network.layers)
    base = {**network.values({}), "accuracy": emulated.ACCURACY}
    return Guidance(network.parameters, network.damage(), table, base)


def optimise(emulated, network, sampler, trials, told=True):
    study = optuna.create_study(directions=["maximize", "minimize", "minimize"], sampler=sampler)
    found = []
    for _ in range(trials):
        trial = study.ask()
        genotype = {k: trial.suggest_int(k, 0, n - 1) for k, n in network.parameters.items()}
        values = network.values(genotype)
        if told:
            trial.set_user_attr(VALUES, values)
        study.tell(trial, [values[o.name] for o in emulated.OBJECTIVES])
        found.append((genotype, values))
    return found


def volume(emulated, network, found, loss=0.4):
    base = {**network.values({}), "accuracy": emulated.ACCURACY}
    return normalized_hypervolume([v for _, v in found], base, loss)


@pytest.mark.parametrize("told", [True, False])
def test_beats_plain_and_seeded_nsga2_clearly(emulated, network, guidance, told):
    sampler = GuidedSampler(guidance, emulated.OBJECTIVES, seed=0)
    ours = optimise(emulated, network, sampler, 60, told)
    assert len({tuple(g.values()) for g, _ in ours}) == 60  # nothing twice
    plain = make_sampler("nsga2", network.parameters, seed=0, trials=60)
    seeded = [
        (p, network.values(p))
        for p in map(lambda p: dict.fromkeys(network.parameters, 0) | p, network.presets())
    ]
    theirs = optimise(emulated, network, plain, 60 - len(seeded)) + seeded
    assert volume(emulated, network, ours) > 1.25 * volume(emulated, network, theirs)
    assert volume(emulated, network, ours, 0.03) >= volume(emulated, network, theirs, 0.03)


def asks_of(emulated, network, guidance, trials, stops=(), order=None, constraints=()):
    """Fingerprints of a search that is killed and restored after ``stops`` results."""
    parsed = [Expression.parse(text) for text in constraints]

    def window():
        sampler = make_sampler(
            "guided", network.parameters, seed=3, guidance=guidance,
            objectives=emulated.OBJECTIVES, constraints=parsed,
        )  # fmt: skip
        return Window(Proposer(network, emulated.OBJECTIVES, parsed, sampler, 3), 4, trials)

    asks, finished, live, stops = {}, {}, window(), list(stops)
    while True:
        while (ask := live.next()) is not None:
            asks[ask.number] = ask
        running = sorted(set(asks) - set(finished))
        if not running:
            return [asks[n].plan.fingerprint for n in sorted(asks)]
        number = running[order(len(finished), len(running)) if order else 0]
        values = network.values(asks[number].params)
        failed = number % 7 == 5
        finished[number] = (
            Evaluation.failure(asks[number].plan, "no")
            if failed
            else Evaluation(asks[number].plan, "measure", values)
        )
        if stops and len(finished) >= stops[0]:
            stops.pop(0)
            live = window()
            live.restore([stored(a) for a in asks.values()], finished)
        else:
            live.add(number, finished[number])


def stored(ask):
    kept = json.loads(json.dumps([ask.params, ask.system_attrs, ask.study_attrs, ask.burnt]))
    plan = CompressionPlan.from_json(json.loads(json.dumps(ask.plan.to_json())))
    return Ask(ask.number, plan, *kept[:3], tuple(kept[3]), ask.parent)


@pytest.mark.parametrize(
    "constraints",
    [(), pytest.param(("accuracy >= 0.85", "macs < 1e9"), marks=pytest.mark.slow)],
)
def test_interrupted_equals_uninterrupted(emulated, network, guidance, constraints):
    whole = asks_of(emulated, network, guidance, 26, constraints=constraints)
    assert len(set(whole)) == 26
    again = asks_of(
        emulated, network, guidance, 26, stops=[1, 9, 16, 23], constraints=constraints,
        order=lambda done, count: (7 * done + 3) % count,
    )  # fmt: skip
    assert again == whole


def test_results_may_arrive_in_any_order(emulated, network, guidance):
    """Told out of order to one sampler, in order to a fresh one: the same next proposal."""
    rng = np.random.default_rng(0)
    rows = [{k: int(rng.integers(n)) for k, n in network.parameters.items()} for _ in range(20)]
    found = []
    for order in (range(20), rng.permutation(20)):
        sampler = GuidedSampler(guidance, emulated.OBJECTIVES, seed=1)
        study = optuna.create_study(directions=["maximize"] + ["minimize"] * 2, sampler=sampler)
        trials = []
        for row in rows:
            study.enqueue_trial(row)
            trials.append(study.ask())
            for k, n in network.parameters.items():
                trials[-1].suggest_int(k, 0, n - 1)
        for i in order:
            values = network.values(rows[i])
            study.tell(trials[i], [values[o.name] for o in emulated.OBJECTIVES])
            if i % 5 == 0:
                study.tell(study.ask(), state=optuna.trial.TrialState.FAIL)  # no parameter: nothing
        trial = optuna.trial.create_trial(state=optuna.trial.TrialState.RUNNING)
        number = study._storage.create_new_trial(study._study_id, trial)
        frozen = study._storage.get_trial(number)
        found.append(sampler.sample_relative(study, frozen, {}))
    assert found[0] == found[1]


def test_effort_goes_where_the_constraint_allows(emulated, network, guidance):
    goal = Expression.parse("accuracy >= 0.88")
    share = []
    for constraints in ((), (goal,)):
        sampler = GuidedSampler(guidance, emulated.OBJECTIVES, constraints, seed=0)
        found = optimise(emulated, network, sampler, 60)
        share.append(np.mean([goal.holds(values) for _, values in found[20:]]))
    assert share[1] > max(0.6, share[0])


def test_what_cannot_be_met_still_yields_proposals(emulated, network, guidance):
    goal = Expression.parse("accuracy >= 0.999")
    sampler = GuidedSampler(guidance, emulated.OBJECTIVES, (goal,), seed=0)
    found = optimise(emulated, network, sampler, 20)
    assert len({tuple(g.values()) for g, _ in found}) == 20


def test_a_constant_objective_does_no_harm(emulated, network):
    class Flat(type(network)):
        def costs(self, plan):
            return {**super().costs(plan), "macs": 5.0}

    flat = Flat(blocks=5)
    sampler = GuidedSampler(guidance_of(emulated, flat), emulated.OBJECTIVES, seed=0)
    found = optimise(emulated, flat, sampler, 30)
    assert len({tuple(g.values()) for g, _ in found}) == 30
    assert min(v["accuracy"] for _, v in found) < max(v["accuracy"] for _, v in found)


def test_other_objectives_follow_the_nearest_known_cost(emulated, network, guidance):
    objectives = [Objective(n, {}) for n in ("accuracy_drop", "compression_ratio", "throughput")]
    sampler = GuidedSampler(guidance, objectives, seed=0)
    study = optuna.create_study(directions=[o.direction for o in objectives], sampler=sampler)
    base = network.values({})
    for _ in range(12):
        trial = study.ask()
        genotype = {k: trial.suggest_int(k, 0, n - 1) for k, n in network.parameters.items()}
        values = network.values(genotype)
        ratio = base["size_bytes"] / values["size_bytes"]
        study.tell(trial, [emulated.ACCURACY - values["accuracy"], ratio, 1e9 / values["macs"]])
    assert len({tuple(t.params.values()) for t in study.trials}) == 12


def test_of_several_targets_the_first_guides(emulated, network, guidance):
    """Its objectives end in the target's name; the proposals are those of a job without others."""
    proposed = []
    for targets in ((), ("onnxruntime-cpu", "openvino-cpu")):
        ends = [f"_{target_suffix(target)}" for target in targets] or [""]
        names = [f"{name}{end}" for name in ("accuracy", "size_bytes") for end in ends]
        objectives = [Objective(name, {}) for name in (*names, "macs")]
        sampler = GuidedSampler(guidance, objectives, seed=0)
        study = optuna.create_study(directions=[o.direction for o in objectives], sampler=sampler)
        for _ in range(8):
            trial = study.ask()
            genotype = {k: trial.suggest_int(k, 0, n - 1) for k, n in network.parameters.items()}
            values = network.values(genotype)
            for place, target in enumerate(targets):
                other = {k: v * (1 + 0.3 * place) for k, v in network.values(genotype).items()}
                values |= measured_on(target, other, {})[0]
            trial.set_user_attr(VALUES, values)
            study.tell(trial, [values[o.name] for o in objectives])
        proposed.append([t.params for t in study.trials])
    assert proposed[0] == proposed[1]


def test_a_table_of_another_network_is_refused(emulated, network, guidance):
    damage = dict(guidance.damage)
    name = next(iter(damage))
    damage[name] = damage[name][:-1]
    with pytest.raises(InputError, match="another network or space"):
        Guidance(network.parameters, damage, guidance.table, guidance.base)
    with pytest.raises(InputError, match="needs a sensitivity table"):
        make_sampler("guided", network.parameters)


def test_ablations_are_really_off(emulated, network, guidance):
    assert (
        len(GuidedSampler(guidance, emulated.OBJECTIVES, focus=Focus(seeds=False))._guide.seeds())
        == 0
    )
    assert len(GuidedSampler(guidance, emulated.OBJECTIVES)._guide.seeds()) > 10


def test_quick_enough(emulated):
    """60 parameters, 1,000 trials: milliseconds of the sampler's own (bound: a slow, busy core)."""
    network = emulated.Network(blocks=11)
    guidance = guidance_of(emulated, network)
    sampler = GuidedSampler(guidance, emulated.OBJECTIVES, seed=0)
    study = optuna.create_study(directions=["maximize", "minimize", "minimize"], sampler=sampler)
    space = sampler.infer_relative_search_space(study, None)
    rng = np.random.default_rng(0)
    for _ in range(1000):
        share = 0.3 * rng.random() ** 2
        row = {
            k: int(rng.integers(n)) * int(rng.random() < share)
            for k, n in network.parameters.items()
        }
        values = network.values(row)
        study.add_trial(
            optuna.trial.create_trial(
                params=row,
                distributions=space,
                values=[values[o.name] for o in emulated.OBJECTIVES],
            )
        )
    spent = []
    for _ in range(17):
        begin = time.process_time()
        trial = study.ask()
        chosen = trial.relative_params
        spent.append(time.process_time() - begin)
        values = network.values(chosen)
        for name, count in network.parameters.items():
            trial.suggest_int(name, 0, count - 1)
        study.tell(trial, [values[o.name] for o in emulated.OBJECTIVES])
    assert np.mean(spent[1:]) < 0.025
