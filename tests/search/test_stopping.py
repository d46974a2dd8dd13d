"""Patience: the search ends at the trial where the hypervolume stopped growing, not elsewhere."""

import numpy as np
import pytest

from paretune.objectives.evaluation import Evaluation
from paretune.objectives.expression import Expression
from paretune.objectives.hypervolume import normalized_hypervolume
from paretune.search.stopping import Patience, Stagnation, constant_objectives
from paretune.spaces.plan import CompressionPlan

BASE = {"accuracy": 0.9, "size_bytes": 100.0, "macs": 10.0}
PLAN = CompressionPlan({}, {})


def point(accuracy, size, macs=10.0):
    return Evaluation(PLAN, "measure", {"accuracy": accuracy, "size_bytes": size, "macs": macs})


def ends_at(evaluations, patience, order=None, constraints=()):
    watch = Stagnation(patience, BASE, constraints)
    for number in order if order is not None else range(len(evaluations)):
        if watch.add(number, evaluations[number]) is not None:
            return len(watch._volumes) - 1
    return None


def reference(evaluations, patience):
    """The definition, written out: volumes of all prefixes."""
    volumes = [
        normalized_hypervolume([e.values for e in evaluations[:n] if not e.failed], BASE)
        for n in range(len(evaluations) + 1)
    ]
    for n in range(patience.trials, len(volumes)):
        if volumes[n] <= volumes[n - patience.trials] * (1 + patience.growth / 100):
            return n
    return None


@pytest.mark.parametrize("seed", range(5))
def test_as_defined_in_any_order(seed):
    rng = np.random.default_rng(seed)
    found = [point(0.9 - 0.3 * a, 120 * b, 12 * c) for a, b, c in rng.random((60, 3))]
    found[7] = Evaluation.failure(PLAN, "no")
    patience = Patience(6, 1.0)
    watch = Stagnation(Patience(100), BASE)
    for number, evaluation in enumerate(found):
        watch.add(number, evaluation)
    whole = normalized_hypervolume([e.values for e in found if not e.failed], BASE)
    assert watch._volumes[-1] == pytest.approx(whole, rel=1e-9)
    assert ends_at(found, patience) == reference(found, patience) is not None
    assert ends_at(found, patience, rng.permutation(60)) == reference(found, patience)


def test_growth_goes_on_nothing_ends():
    found = [point(0.9, 100 - n) for n in range(50)]
    assert ends_at(found, Patience(5, 1.0)) is None
    assert ends_at(found, Patience(5, 200.0)) is not None


def test_what_meets_no_constraint_is_no_growth():
    found = [point(0.5, 100 - n) for n in range(50)]
    goal = Expression.parse("accuracy >= 0.8")
    assert ends_at(found, Patience(5), constraints=(goal,)) == 5


def test_constant_objectives_are_named():
    from paretune.objectives.objective import Objective

    objectives = [Objective(n, {}) for n in ("accuracy", "size_bytes", "macs")]
    found = [point(0.9 - 0.1 * n, 100 - n) for n in range(6)]
    found.append(Evaluation.failure(PLAN, "no"))
    assert constant_objectives(found, objectives) == ["macs"]
    assert constant_objectives(found[:4], objectives) == []


def test_the_driver_stops_and_says_why(bench, fakes, tmp_path):
    from paretune.objectives.objective import Objective
    from paretune.search.driver import Budget, Driver
    from paretune.search.proposer import Proposer
    from paretune.search.samplers import make_sampler
    from paretune.trackers.study import Study

    space = fakes.ToySpace()
    objectives = [Objective(n, {}) for n in ("accuracy", "size_bytes", "latency_ms")]
    reasons, counts = [], []
    for _ in range(2):  # the second run finds the search ended already
        exists = (tmp_path / "study.db").exists()
        study = (
            Study.open(tmp_path, write=True)
            if exists
            else Study.create(tmp_path, {"toy": 1}, name="toy", objectives=objectives)
        )
        sampler = make_sampler("random", space.parameters, seed=0)
        with study:
            driver = Driver(
                study,
                Proposer(space, objectives, [], sampler, 0, space.presets()),
                space.plan({}),
                lambda: bench.InProcess(fakes),
                Budget(500, patience=Patience(15, 2.0)),
                4,
            )
            reasons.append(driver.run())
            counts.append(len(study.rows("measure")))
            found = [row.evaluation for row in study.rows("measure")]
            base = study.baseline.values
    assert "grew by at most 2 % over the last 15 trials" in reasons[0]
    assert reasons[1] == reasons[0] and counts[1] == counts[0] < 100
    watch = Stagnation(Patience(15, 2.0), base)
    first = next(n for n, e in enumerate(found) if watch.add(n, e)) + 1
    assert first <= counts[0] <= first + 4  # what was asked is finished, nothing more
