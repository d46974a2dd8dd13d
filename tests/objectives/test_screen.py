"""A screened candidate computes like its exported file, and costs little."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import nn

from paretune.objectives.evaluate import Evaluator
from paretune.objectives.problem import Problem
from paretune.objectives.screen import Screen
from paretune.operators.compress import NORMALISE_EXAMPLES, RECONSTRUCT_EXAMPLES
from paretune.tasks.job import load_job

JOB = {
    "name": "screen",
    "task": {
        "model": "paretune.tasks.vision:plain_cnn",
        "model_args": {"convs": 4, "channels": 1, "size": 8, "width": 16},
        "data": {"kind": "digits"},
    },
    "objectives": ["accuracy", "size_bytes"],
}


def trained(problem: Problem) -> None:
    """A few epochs on the digits, so that outputs mean something."""
    network = problem.task.network
    optimiser = torch.optim.Adam(network.parameters(), 0.01)
    network.train()
    for _ in range(3):
        for inputs, targets in problem.task.train.batches(50):
            optimiser.zero_grad()
            nn.functional.cross_entropy(network(inputs), targets).backward()
            optimiser.step()
    network.eval()


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple]:
    torch.manual_seed(0)
    problem = Problem.from_job(load_job(JOB))
    trained(problem)
    folder = tmp_path_factory.mktemp("study")
    evaluator = Evaluator.for_problem(problem, folder)
    screen = Screen.for_problem(
        problem, folder, evaluator.compressor, calibration=NORMALISE_EXAMPLES
    )
    with pytest.MonkeyPatch.context() as patch:  # as many examples as the file was made with
        patch.setattr("paretune.operators.compress.FEW_EXAMPLES", RECONSTRUCT_EXAMPLES)
        yield problem, evaluator, screen


def real_outputs(evaluator: Evaluator, plan: object, inputs: torch.Tensor) -> np.ndarray:
    found = evaluator.evaluate(plan)
    assert found.cause is None
    path = evaluator.folder / "artifacts" / found.artifact.file_name
    return evaluator.target.load(path).predict(inputs.numpy())


def test_plans_of_bits_compute_like_their_files(parts: tuple) -> None:
    problem, evaluator, screen = parts
    inputs = torch.cat([x for x, _ in problem.task.search.batches(100)])
    names = [n for n in problem.space.parameters if n.startswith("bits")]
    for picked in (names, names[::2], names[1:3]):
        plan = problem.space.plan(dict.fromkeys(picked, 1))
        want = real_outputs(evaluator, plan, inputs)
        got = screen.outputs(plan, inputs).numpy()
        assert (want.argmax(1) == got.argmax(1)).mean() >= 0.99
        assert np.abs(want - got).mean() < 0.02 * np.abs(want).mean() + 1e-3


def test_mixed_plans_agree_with_their_files(parts: tuple) -> None:
    problem, evaluator, screen = parts
    inputs = torch.cat([x for x, _ in problem.task.search.batches(100)])
    rng = np.random.default_rng(0)
    for _ in range(3):
        genotype = {
            n: int(rng.integers(count)) if rng.random() < 0.4 else 0
            for n, count in problem.space.parameters.items()
        }
        plan = problem.space.plan(genotype)
        want = real_outputs(evaluator, plan, inputs)
        got = screen.outputs(plan, inputs).numpy()
        assert (want.argmax(1) == got.argmax(1)).mean() >= 0.95


def test_the_unchanged_network_diverges_by_nothing(parts: tuple) -> None:
    problem, _, screen = parts
    found = screen.screen(problem.space.identity)
    task = problem.task
    whole = task.score.measure(task.network_predict, task.search).values["accuracy"]
    assert found.values["accuracy"] == pytest.approx(whole)
    assert found.values["divergence"] == pytest.approx(0, abs=1e-5)
    assert found.values["size_ratio"] == 1


def test_a_hopeless_plan_is_dropped_early(parts: tuple) -> None:
    problem, _, screen = parts
    worst = problem.space.plan({n: c - 1 for n, c in problem.space.parameters.items()})
    whole = screen.screen(worst)
    early = screen.screen(worst, stop_below=1.0)
    assert whole.values["accuracy"] < 0.6
    assert early.examples < whole.examples
    assert early.values["size_bytes"] == whole.values["size_bytes"]


def test_screening_leaves_no_trace(parts: tuple) -> None:
    problem, _, screen = parts
    before = {n: t.clone() for n, t in problem.task.network.state_dict().items()}
    eight = problem.space.plan({n: 1 for n in problem.space.parameters if n.startswith("bits")})
    first = screen.screen(problem.space.identity).values
    screen.screen(eight)
    assert screen.screen(problem.space.identity).values == first
    after = problem.task.network.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
