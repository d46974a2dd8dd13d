"""Before a guided search: damages and costs of a real, small network; and screening in a worker."""

import numpy as np
import pytest

from paretune.objectives.problem import Problem
from paretune.search.preparation import ScreeningEvaluator, prepare
from paretune.tasks.job import load_job

JOB = {
    "name": "toy digits",
    "task": {
        "model": "paretune.tasks.vision:plain_cnn",
        "model_args": {"convs": 4, "channels": 1, "size": 8, "width": 16},
        "data": {"kind": "digits"},
    },
    "objectives": ["accuracy", "size_bytes", "macs"],
}


@pytest.fixture(scope="module")
def problem():
    return Problem.from_job(load_job(JOB))


@pytest.fixture(scope="module")
def prepared(problem, tmp_path_factory):
    folder, said = tmp_path_factory.mktemp("study"), []
    return prepare(problem, folder, 1e9, said.append), folder, said


def test_every_option_has_damage_and_cost(problem, prepared):
    guidance, _, said = prepared
    assert dict(guidance.parameters) == problem.space.parameters
    damages = guidance.damages()
    assert np.all(damages[:, 0] == 0) and np.all(np.diff(damages, axis=1) >= 0)
    assert damages.max() > 0
    assert any("options measured" in line for line in said)


def test_the_cost_table_agrees_with_the_network_itself(problem, prepared):
    """MACs and parameters of random plans, against counts on the compressed network."""
    from paretune.objectives.counts import count_macs, count_params
    from paretune.objectives.evaluate import Evaluator

    guidance, folder, _ = prepared
    evaluator = Evaluator.for_problem(problem, folder)
    rng = np.random.default_rng(0)
    for _ in range(4):
        row = np.array([rng.integers(n) for n in guidance.parameters.values()])
        genotype = dict(zip(guidance.parameters, map(int, row), strict=True))
        network = evaluator.compressor.compress(problem.space.plan(genotype)).network
        costs = guidance.table.costs(row[None])[0]
        found = dict(zip(guidance.table.names, costs, strict=True))
        assert found["macs"] == pytest.approx(count_macs(network, problem.task.example), rel=0.03)
        assert found["params"] == pytest.approx(count_params(network), rel=0.03)


def test_a_pass_is_not_repeated_and_anothers_is_not_used(problem, prepared):
    guidance, folder, _ = prepared
    (kept,) = folder.glob("sensitivity-*.jsonl")
    before = kept.read_bytes()
    (folder / "sensitivity-0123456789abcdef.jsonl").write_text("[]\n")
    said = []
    again = prepare(problem, folder, 1e9, said.append)
    assert kept.read_bytes() == before
    for name in guidance.parameters:
        assert np.array_equal(again.damage[name], guidance.damage[name])
    assert any("sensitivity-0123456789abcdef.jsonl is of another network" in s for s in said)


def test_ctrl_c_ends_the_pass_at_the_next_option_and_it_goes_on_from_there(problem, tmp_path):
    left = 5

    def check():
        nonlocal left
        left -= 1
        if not left:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(problem, tmp_path, 1e9, lambda _: None, check)
    (kept,) = tmp_path.glob("sensitivity-*.jsonl")
    assert len(kept.read_text().splitlines()) == 1 + 5  # what a candidate costs, and five options
    whole = prepare(problem, tmp_path, 1e9, lambda _: None)
    assert (
        sum(len(row) - 1 for row in whole.damage.values()) == len(kept.read_text().splitlines()) - 1
    )


def test_a_worker_screens_and_measures(problem, prepared):
    _, folder, _ = prepared
    evaluator = ScreeningEvaluator.from_job(problem.job.to_json(), str(folder))
    plan = problem.space.plan(dict.fromkeys(problem.space.parameters, 1))
    screened = evaluator.evaluate(plan, "screen")
    measured = evaluator.evaluate(plan, "measure")
    assert (screened.rung, measured.rung) == ("screen", "measure")
    assert screened.artifact is None and measured.artifact is not None
    assert screened.values["macs"] == measured.values["macs"]
    assert screened.values["size_bytes"] == pytest.approx(measured.values["size_bytes"], rel=0.02)


def test_a_pass_ends_with_its_time(problem, prepared, tmp_path):
    """What is left out of the table has the damage of others of its family."""
    short = prepare(problem, tmp_path, 1e9, lambda _: None, seconds=1e-6)
    (kept,) = tmp_path.glob("sensitivity-*.jsonl")
    assert len(kept.read_text().splitlines()) == 1 + 1
    assert {n: len(row) for n, row in short.damage.items()} == problem.space.parameters
    assert all(row[-1] > 0 for row in short.damage.values())
