"""One plan tried for real: the recorded numbers are those of the exported file."""

import hashlib
from collections.abc import Collection
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from paretune.objectives.counts import count_macs, count_params
from paretune.objectives.evaluate import Evaluator
from paretune.objectives.evaluation import Evaluation
from paretune.objectives.latency import SPEED_STATES, LatencyMeter
from paretune.objectives.problem import Problem
from paretune.spaces.plan import CompressionPlan
from paretune.targets.catalogue import make_target
from paretune.targets.speed_states import SpeedStates
from paretune.targets.target import Timing
from paretune.tasks.job import load_job

JOB = {
    "name": "evaluate",
    "task": {
        "model": "paretune.tasks.vision:plain_cnn",
        "model_args": {"convs": 4, "channels": 1, "size": 8, "width": 16},
        "data": {"kind": "digits"},
    },
    "objectives": ["accuracy", "size_bytes", "latency_ms"],
}


@pytest.fixture(scope="module")
def evaluator(tmp_path_factory: pytest.TempPathFactory) -> Evaluator:
    torch.manual_seed(0)
    problem = Problem.from_job(load_job(JOB))
    return Evaluator.for_problem(problem, tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def baseline(evaluator: Evaluator) -> Evaluation:
    return evaluator.evaluate(evaluator.space.identity)


def test_values_are_those_of_the_file(evaluator: Evaluator, baseline: Evaluation) -> None:
    space = evaluator.space
    plan = space.plan({n: 1 for n in space.parameters if n.startswith(("bits:", "keep:"))})
    found = evaluator.evaluate(plan, "measure", baseline)
    assert found.cause is None
    path = evaluator.folder / "artifacts" / found.artifact.file_name
    data = path.read_bytes()
    assert hashlib.sha256(data).hexdigest() == found.artifact.sha256
    assert found.values["size_bytes"] == len(data) == found.artifact.size_bytes
    assert found.values["size_ratio"] == len(data) / baseline.values["size_bytes"]
    session = onnxruntime.InferenceSession(data)
    before = onnxruntime.InferenceSession(
        evaluator.folder / "artifacts" / baseline.artifact.file_name
    )
    gains = []
    right = total = 0
    for inputs, targets in evaluator.task.search.batches(100):
        hits, had = (
            s.run(None, {"input": inputs.numpy()})[0].argmax(1) == targets.numpy()
            for s in (session, before)
        )
        right += int(hits.sum())
        gains += (hits.astype(float) - had).tolist()
        total += len(targets)
    assert found.values["accuracy"] == pytest.approx(right / total)
    error = np.sqrt(right / total * (1 - right / total) / total)
    assert found.errors["accuracy"] == pytest.approx(error, rel=0.02)
    paired = max(np.std(gains) / np.sqrt(total), 1 / total)  # both counted on the same examples
    assert found.errors["accuracy_drop"] == pytest.approx(paired)
    assert found.values["latency_ms"] == pytest.approx(
        found.values["latency_ratio"] * baseline.values["latency_ms"]
    )
    assert found.notes["environment"]["onnxruntime"] == onnxruntime.__version__
    assert Evaluation.from_json(found.to_json()) == found


def test_the_baseline_is_the_unit(baseline: Evaluation) -> None:
    assert baseline.values["latency_ratio"] == baseline.values["size_ratio"] == 1
    assert baseline.values["accuracy_drop"] == 0
    assert "accuracy_drop" not in baseline.errors  # nothing differs from itself


def test_confirm_scores_the_other_split_and_the_same_file(
    evaluator: Evaluator, baseline: Evaluation
) -> None:
    confirmed = evaluator.evaluate(evaluator.space.identity, "confirm", None, baseline.artifact)
    assert confirmed.artifact == baseline.artifact
    assert confirmed.notes["examples"] == len(evaluator.task.evaluate)
    assert baseline.notes["examples"] == len(evaluator.task.search)


def test_a_plan_that_does_not_fit_is_a_recorded_failure(
    evaluator: Evaluator, baseline: Evaluation
) -> None:
    wrong = CompressionPlan({**evaluator.space.identity.groups, "nowhere": 3}, {})
    found = evaluator.evaluate(wrong, "measure", baseline)
    assert found.failed and "nowhere" in found.cause and "\n" not in found.cause
    assert not list((evaluator.folder / "artifacts").glob(".export-*"))


def test_speed_states_are_there_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a file of them would fail every later trial, after a resume too."""
    target = make_target("onnxruntime-cpu")
    target.states = SpeedStates.from_levels([1.0] * 30)
    meter = LatencyMeter(target, tmp_path, np.zeros((1, 3), np.float32))

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            meter._keep_states()
    assert not (tmp_path / SPEED_STATES).exists()
    meter._keep_states()
    assert meter._known_states() == target.states


class Slowed:
    """A target whose baseline takes what it is told, one timing after the other.

    shared: numbers of the timings in which something else computed on the same core."""

    name, device = "slowed", None

    def __init__(self, *levels_ms: float, shared: Collection[int] = ()) -> None:
        self.levels_ms, self.states = list(levels_ms), None
        self.shared, self.timings = shared, 0

    def time(self, path: Path, baseline: Path, inputs: np.ndarray) -> Timing:
        level = self.levels_ms.pop(0)
        if self.states is None:
            self.states = SpeedStates((level,), (1.0,), reference=0)
        self.states = self.states.reached(level, 1.0)
        self.timings += 1
        loop = 1.8 if self.timings - 1 in self.shared else 1.0
        ratio = level / 2 * (1.4 if loop > 1 else 1)
        return Timing(ratio, 0.001, baseline_ms=level, rounds=9, loop_ms=loop, loop_ratio=loop)


@pytest.mark.parametrize(
    ("levels_ms", "ratios", "same"),
    [
        ([1.0, 1.02, 0.99], [0.51, 0.495], [True, True]),
        ([1.0, 1.12, 1.03], [0.515], [True]),  # timed again
        ([1.0, 1.12, 1.12, 1.12, 1.0], [0.56, 0.5], [False, True]),
        # the baseline itself was slowed down: what is slow like it does not count as undisturbed
        ([1.12, 1.12, 1.0, 1.01, 1.12, 1.0], [0.56, 0.505, 0.5], [True, True, True]),
    ],
)
def test_a_candidate_is_timed_where_the_baseline_is_left_alone(
    tmp_path: Path, levels_ms: list[float], ratios: list[float], same: list[bool]
) -> None:
    target = Slowed(*levels_ms)
    meter = LatencyMeter(target, tmp_path, np.zeros((1, 3), np.float32))
    first = meter.measure(tmp_path, tmp_path, "measure", None)
    baseline = Evaluation(CompressionPlan({}, {}), "measure", {"latency_ms": levels_ms[0]})
    assert first.values == {"latency_ms": levels_ms[0], "latency_ratio": 1.0}
    found = [meter.measure(tmp_path, tmp_path, "measure", baseline) for _ in ratios]
    assert [t.values["latency_ratio"] for t in found] == pytest.approx(ratios)
    assert [t.conditions["same_state"] for t in found] == same
    assert [t.errors["latency_ratio"] < 0.05 for t in found] == same
    assert not target.levels_ms
    assert meter._known_states().levels_ms[0] == pytest.approx(min(levels_ms), rel=0.02)


@pytest.mark.parametrize(
    ("rung", "shared", "timings", "alone"),
    [
        ("measure", [1], [2, 1, 1], [True, True, True]),
        # three attempts that did not help are enough, until one is undisturbed again
        ("measure", [1, 2, 3, 4, 5], [3, 1, 1, 1], [False, False, False, True]),
        ("measure", [1, 2, 3, 5, 6], [3, 1, 3], [False, True, True]),
        ("confirm", [1, 2, 3, 4, 5, 6], [3, 3, 1], [False, False, True]),
    ],
)
def test_a_candidate_is_timed_again_where_something_else_computed_on_its_core(
    tmp_path: Path, rung: str, shared: list[int], timings: list[int], alone: list[bool]
) -> None:
    target = Slowed(*[1.0] * 20, shared=shared)
    meter = LatencyMeter(target, tmp_path, np.zeros((1, 3), np.float32))
    meter.measure(tmp_path, tmp_path, "measure", None)
    baseline = Evaluation(CompressionPlan({}, {}), "measure", {"latency_ms": 1.0})
    for count, own in zip(timings, alone, strict=True):
        before = target.timings
        found = meter.measure(tmp_path, tmp_path, rung, baseline)
        assert target.timings - before == count
        assert found.conditions["same_state"] == own
        assert found.values["latency_ratio"] == (0.5 if own else 0.7)
        assert (found.errors["latency_ratio"] < 0.05) == own
        assert found.conditions["loop_ratio"] == (1.0 if own else 1.8)


def test_counts_match_closed_forms() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=4),
        nn.Flatten(),
        nn.Linear(8 * 16, 5),
    )
    expected = 8 * 64 * 27 + 8 * 16 * 18 + 128 * 5
    assert count_macs(network, torch.zeros(1, 3, 8, 8)) == expected
    assert count_params(network) == (8 * 27 + 8) + (8 * 18 + 8) + (128 * 5 + 5)


def test_nothing_is_timed_that_nobody_asks_for(tmp_path: Path) -> None:
    problem = Problem.from_job(load_job({**JOB, "objectives": ["accuracy", "size_bytes"]}))
    assert not problem.timed
    found = Evaluator.for_problem(problem, tmp_path).evaluate(problem.space.identity)
    assert "latency_ms" not in found.values and found.cause is None
