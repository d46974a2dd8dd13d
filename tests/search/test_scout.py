"""Screened proposals: what is asked depends on values alone, not on workers, order or kills."""

import contextlib
import json
import signal
from collections import deque

import numpy as np
import pytest

from paretune.objectives.evaluation import Evaluation
from paretune.objectives.hypervolume import normalized_hypervolume
from paretune.objectives.objective import Objective
from paretune.search.cost_table import CostTable
from paretune.search.driver import Budget, Driver
from paretune.search.guidance import Guidance
from paretune.search.interrupt import Interrupt
from paretune.search.pool import Result
from paretune.search.proposer import Proposer
from paretune.search.samplers import make_sampler
from paretune.search.scout import FIRST, Scout
from paretune.search.window import Window
from paretune.trackers.front_files import write_front_files
from paretune.trackers.study import Study


@pytest.fixture(scope="module")
def network(emulated):
    return emulated.Network(blocks=3)


@pytest.fixture(scope="module")
def guidance(emulated, network):
    table = CostTable.probe(network, network.plan, network.parameters, network.layers)
    base = {**network.values({}), "accuracy": emulated.ACCURACY}
    return Guidance(network.parameters, network.damage(), table, base)


class OneAfterAnother:
    """A pool without processes. Screens see the truth with an error of their own; ``pick`` says
    which of the waiting jobs finishes next; ``interrupt_at``: results until Ctrl-C."""

    def __init__(self, network, genotypes, pick, interrupt_at=None, failing=()):
        self.network, self.genotypes, self.pick = network, genotypes, pick
        self.jobs, self.done, self.interrupt_at, self.failing = deque(), [], interrupt_at, failing

    def submit(self, job_id, plan, rung="measure", baseline=None, artifact=None, first=False):
        (self.jobs.appendleft if first else self.jobs.append)((job_id, plan, rung))

    def collect(self, timeout_s=1.0):
        if self.interrupt_at is not None and len(self.done) >= self.interrupt_at:
            signal.raise_signal(signal.SIGINT)
            return []
        if not self.jobs:
            return []
        index = self.pick(len(self.jobs))
        job_id, plan, rung = self.jobs[index]
        del self.jobs[index]
        self.done.append((job_id, rung))
        values = dict(self.network.values(self.genotypes(plan)))
        if rung != "screen":  # what only a measurement tells
            values["latency_ms"] = 0.2 + 2e-7 * values["macs"]
            values["accuracy_drop"] = 0.92 - values["accuracy"]
        else:
            values["accuracy"] -= 0.004
            if plan.fingerprint[0] in self.failing:
                return [Result(job_id, Evaluation.failure(plan, "cannot", "screen"), 0.01, 1)]
        return [Result(job_id, Evaluation(plan, rung, values, seconds={"x": 0.1}), 0.01, 1)]

    def withdraw(self):
        ids = [job[0] for job in self.jobs]
        self.jobs.clear()
        return ids

    def close(self):
        self.jobs.clear()


def search(
    emulated,
    network,
    guidance,
    folder,
    trials,
    *,
    each=3,
    pick=lambda n: 0,
    goals=None,
    make=OneAfterAnother,
    **kwargs,
):
    """One run (or the next) of a screened search; returns (fingerprints by number, pool)."""
    made, goals = {}, goals or emulated.OBJECTIVES

    def plan(genotype):
        out = network.plan(genotype)
        made[out.fingerprint] = dict.fromkeys(network.parameters, 0) | dict(genotype)
        return out

    class Recorder(type(network)):
        def plan(self, genotype):
            return plan(genotype)

    space = Recorder(blocks=3)
    if (folder / "study.db").exists():
        study = Study.open(folder, write=True)
    else:
        study = Study.create(folder, {"toy": 1}, name="toy", objectives=goals)
    for ask in study.asks():
        plan(ask.params)
    scout = Scout(guidance, goals, (), plan, each, seed=1, width=4) if each else None
    sampler = make_sampler(
        "guided", network.parameters, seed=1, guidance=guidance, objectives=goals
    )
    pool = make(network, lambda p: made[p.fingerprint], pick, **kwargs)
    with study, Interrupt() as stop:
        driver = Driver(
            study,
            Proposer(space, goals, [], sampler, 1, (), scout),
            plan({}),
            lambda: pool,
            Budget(trials),
            4,
            (),
            stop,
        )
        with contextlib.suppress(KeyboardInterrupt):
            driver.run()
        rows = study.rows("measure")
        return {r.number: r.evaluation.plan.fingerprint for r in rows}, pool


def test_trials_are_exact_and_screens_are_counted_apart(emulated, network, guidance, tmp_path):
    plans, pool = search(emulated, network, guidance, tmp_path, 12)
    assert sorted(plans) == list(range(12))
    screens = [job for job, rung in pool.done if rung == "screen"]
    with Study.open(tmp_path) as study:
        rows = study.screened()
        assert len(study.rows("measure")) == 12
        (table,) = [p for p in write_front_files(study, tmp_path) if p.name == "screened.json"]
    assert len(rows) == len(screens) == 3 * (FIRST + 11)
    data = json.loads(table.read_text())
    assert len(data["data"]) == len(rows)
    assert {"accuracy", "size_bytes", "before_trial"} <= set(data["columns"])


def test_every_asked_plan_was_screened_before(emulated, network, guidance, tmp_path):
    plans, _ = search(emulated, network, guidance, tmp_path, 10)
    with Study.open(tmp_path) as study:
        known = {network.plan(row.params).fingerprint: row.turn for row in study.screened()}
    assert all(known[fingerprint] <= number for number, fingerprint in plans.items())


def test_order_and_interruptions_change_nothing(emulated, network, guidance, tmp_path):
    whole, _ = search(emulated, network, guidance, tmp_path / "whole", 14, failing="3")
    rng = np.random.default_rng(0)
    shuffled, _ = search(
        emulated, network, guidance, tmp_path / "shuffled", 14, failing="3",
        pick=lambda n: int(rng.integers(n)),
    )  # fmt: skip
    assert shuffled == whole
    again = {}
    for stop in (3, 9, 14, 20, None):
        again, _ = search(
            emulated, network, guidance, tmp_path / "stopped", 14, failing="3", interrupt_at=stop
        )
    assert again == whole


def test_a_lost_batch_of_screens_is_screened_again(emulated, network, guidance, tmp_path):
    """Killed before the last batch was written: the same search, those screens repeated."""
    whole, _ = search(emulated, network, guidance, tmp_path / "whole", 12)
    search(emulated, network, guidance, tmp_path / "killed", 12, interrupt_at=20)
    with Study.open(tmp_path / "killed", write=True) as study:
        rows = study.screened()
        lost = f"DELETE FROM paretune_screened WHERE turn >= {rows[-1].turn - 1}"
        study._tables.write(lambda connection: connection.exec_driver_sql(lost))
    resumed, pool = search(emulated, network, guidance, tmp_path / "killed", 12)
    assert resumed == whole


def test_screening_finds_more_with_as_many_trials(emulated, network, guidance, tmp_path):
    base = {**network.values({}), "accuracy": emulated.ACCURACY}
    volumes = []
    for each in (0, 8):
        search(emulated, network, guidance, tmp_path / str(each), 15, each=each)
        with Study.open(tmp_path / str(each)) as study:
            values = [row.evaluation.values for row in study.rows("measure")]
        volumes.append(normalized_hypervolume(values, base))
    assert volumes[1] > volumes[0]


@pytest.mark.parametrize("each", [0, 4])
def test_what_only_a_measurement_tells_may_be_an_objective(
    emulated, network, guidance, tmp_path, each
):
    """Latency and the drop are in no screen; MACs and accuracy stand for them."""
    goals = [Objective(n, {}) for n in ("accuracy_drop", "size_bytes", "latency_ms")]
    plans, pool = search(
        emulated, network, guidance, tmp_path, 14, each=each, goals=goals
    )  # fmt: skip
    assert sorted(plans) == list(range(14))
    with Study.open(tmp_path) as study:
        values = [row.evaluation.values for row in study.rows("measure")]
    # guided, not blind: some trials are near the baseline, some far smaller
    assert min(v["accuracy_drop"] for v in values) < 0.05
    assert min(v["size_bytes"] for v in values) < 0.5 * guidance.base["size_bytes"]


@pytest.mark.slow
def test_a_layer_that_is_dearer_than_predicted_is_left_alone(emulated, network, guidance, tmp_path):
    """The table believes that one layer's cheapest form is cheap; measured, it costs half again. A
    search that learns from its trials stops paying for it."""
    name = next(n for n in network.parameters if n.startswith("bits:"))

    class Dearer(OneAfterAnother):
        def collect(self, timeout_s=1.0):
            out = []
            for result in super().collect(timeout_s):
                values = dict(result.evaluation.values)
                if result.evaluation.rung != "screen":
                    taken = self.genotypes(result.evaluation.plan)[name]
                    values["macs"] *= 1.5 if taken else 1.0
                changed = Evaluation(result.evaluation.plan, result.evaluation.rung, values)
                out.append(Result(result.job_id, changed, 0.01, 1))
            return out

    shares = []
    for pool in (OneAfterAnother, Dearer):
        folder = tmp_path / pool.__name__
        search(emulated, network, guidance, folder, 45, each=8, make=pool)
        with Study.open(folder) as study:
            shares.append(np.mean([a.params[name] > 0 for a in study.asks() if a.number >= 15]))
    assert shares[1] < 0.6 * shares[0], shares


def test_a_resume_makes_no_plan_of_what_was_screened(emulated, network, guidance, tmp_path):
    """There may be a hundred thousand of them."""
    search(emulated, network, guidance, tmp_path, 14)
    with Study.open(tmp_path) as study:
        rows, made = study.screened(), []

    def plan(genotype):
        made.append(genotype)
        return network.plan(genotype)

    scout = Scout(guidance, emulated.OBJECTIVES, (), plan, 3, seed=1, width=4)
    scout.begin({**network.values({}), "accuracy": emulated.ACCURACY})
    scout.recall(rows)
    for turn in range(14):
        assert not scout.errands(turn)
    assert scout.ready(13) and not made


def test_the_plan_of_another_candidate_is_not_screened_again(emulated, network, guidance):
    """Ranks that save nothing: genotypes that differ in them only make one plan; whether the first
    was screened in this run or recorded in an earlier one."""

    def plan(genotype):
        return network.plan({n: k for n, k in genotype.items() if not n.startswith("rank:")})

    runs = []
    for recorded in ([], None):
        scout = Scout(guidance, emulated.OBJECTIVES, (), plan, 8, seed=1)
        scout.begin({**network.values({}), "accuracy": emulated.ACCURACY})
        scout.recall(runs[0] if recorded is None else recorded)
        rows, seen = [], []
        for turn in range(12):
            errands = scout.errands(turn)  # none is told before all of a turn are chosen
            fresh = [errand.plan.fingerprint for errand in errands]
            assert not set(fresh) & set(seen), "screened twice"
            seen += fresh
            for errand in errands:
                found = Evaluation(errand.plan, "screen", network.values(errand.params))
                row = scout.add(errand, found, 0.1)
                rows += [row] if turn < 6 else []
        if recorded is not None:
            assert len(seen) < 8 * (FIRST + 11), "the case must have twins"
        else:
            before = {plan(row.params).fingerprint for row in runs[0]}
            assert seen and not before & set(seen)
        runs.append(rows)


def test_a_scout_and_its_window_count_the_same_open_asks(emulated, network, guidance):
    scout = Scout(guidance, emulated.OBJECTIVES, (), network.plan, 4, width=3)
    sampler = make_sampler(
        "guided",
        network.parameters,
        seed=1,
        guidance=guidance,
        objectives=emulated.OBJECTIVES,
    )
    proposer = Proposer(network, emulated.OBJECTIVES, [], sampler, 1, (), scout)
    assert Window(proposer, 3, 10).width == 3
    with pytest.raises(ValueError, match="3 open asks, the window has 4"):
        Window(proposer, 4, 10)


def screened_scout(emulated, network, guidance, turns=1):
    """A scout whose first turns are screened."""
    scout = Scout(guidance, emulated.OBJECTIVES, (), network.plan, 4, seed=1)
    scout.begin({**network.values({}), "accuracy": emulated.ACCURACY})
    for turn in range(turns):
        for errand in scout.errands(turn):
            scout.add(errand, Evaluation(errand.plan, "screen", network.values(errand.params)), 0.1)
    return scout


def test_a_failed_trial_is_waited_for_no_longer(emulated, network, guidance):
    """What it would have covered is open again, as if it had never been asked."""
    failed, dropped, flying = (screened_scout(emulated, network, guidance) for _ in range(3))
    first = failed.choose(0)
    failed.asked(0, first)
    failed.tell(0, None)
    dropped.drop(first)
    flying.asked(0, first)
    assert failed.choose(1) == dropped.choose(1) != first
    assert flying.choose(1) != dropped.choose(1), "the case must tell the two apart"


def test_every_candidate_can_be_chosen_and_none_twice(emulated, network, guidance):
    scout = screened_scout(emulated, network, guidance, 3)
    chosen = []
    while (found := scout.choose(len(chosen))) is not None:
        scout.asked(len(chosen), found)
        scout.tell(len(chosen), {**network.values(found), "latency_ms": 1.0})
        chosen.append(tuple(found.values()))
    assert len(chosen) == len(set(chosen)) == 4 * (FIRST + 2)
