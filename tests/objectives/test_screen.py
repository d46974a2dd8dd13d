"""A screened candidate computes like its exported file, and costs little."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import softmax
from scipy.stats import entropy, spearmanr
from torch import nn

from paretune.objectives.divergence import divergence
from paretune.objectives.evaluate import Evaluator
from paretune.objectives.margins import Margins
from paretune.objectives.problem import Problem
from paretune.objectives.screen import EXAMPLES, Screen
from paretune.operators.compress import NORMALISE_EXAMPLES, Compressor
from paretune.operators.layer_bits import weighted_layers
from paretune.operators.normalise import input_moments, reestimating
from paretune.operators.rounded_network import RoundedNetworks
from paretune.spaces.plan import CompressionPlan
from paretune.spaces.space import SearchSpace
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
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple:
    torch.manual_seed(0)
    problem = Problem.from_job(load_job(JOB))
    trained(problem)
    folder = tmp_path_factory.mktemp("study")
    evaluator = Evaluator.for_problem(problem, folder)
    screen = Screen.for_problem(
        problem, folder, evaluator.compressor, calibration=NORMALISE_EXAMPLES
    )
    return problem, evaluator, screen


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


def drawn(space: SearchSpace, count: int, share: float = 0.4) -> list[CompressionPlan]:
    rng = np.random.default_rng(0)
    return [
        space.plan(
            {n: int(rng.integers(c)) for n, c in space.parameters.items() if rng.random() < share}
        )
        for _ in range(count)
    ]


def test_mixed_plans_compute_like_their_files(parts: tuple, tmp_path: Path) -> None:
    """The files of the very float32 networks that are screened."""
    problem, evaluator, screen = parts
    inputs = torch.cat([x for x, _ in problem.task.search.batches(100)])
    few = screen.calibration_inputs[:NORMALISE_EXAMPLES]
    batches = [x.numpy() for x in screen.calibration_inputs.split(32)]
    compressor = evaluator.compressor
    moments = input_moments(compressor.original, few)
    for number, plan in enumerate(drawn(problem.space, 3)):
        work = compressor.shape(plan)
        with reestimating(work.network, moments, work.lost), torch.no_grad():
            work.network(few)
        bits = compressor.bits(plan, weighted_layers(work.network))
        path = tmp_path / f"{number}.onnx"
        problem.target.export(work.network, problem.task.example, bits, batches, path)
        want = problem.target.load(path).predict(inputs.numpy())
        got = screen.outputs(plan, inputs).numpy()
        assert (want.argmax(1) == got.argmax(1)).mean() >= 0.95


def test_plans_are_ranked_as_what_is_carried_out(parts: tuple) -> None:
    """Layers are refitted to the original's inputs alone, in full each to those it will read; not
    refitted at all, candidates say less about it."""
    problem, evaluator, screen = parts
    inputs = torch.cat([x for x, _ in problem.task.search.batches(100)])
    compressor, few = evaluator.compressor, screen.calibration_inputs
    options = compressor.options.model_copy(update={"reconstruct": False, "whiten": False})
    plain = Compressor(compressor.original, problem.task.example, problem.space, few, options)
    found: dict[str, list[float]] = {"full": [], "quick": [], "plain": []}
    for plan in drawn(problem.space, 16):
        layers = {n: replace(c, weight_bits=32, activation_bits=32) for n, c in plan.layers.items()}
        wide = CompressionPlan(plan.groups, layers)
        if wide == problem.space.identity:
            continue
        with torch.no_grad():
            want = compressor.original(inputs)
            outputs = {
                "full": compressor.compress(wide, quantised=False).network(inputs),
                "quick": screen.outputs(wide, inputs),
                "plain": plain.compress(wide, quantised=False).network(inputs),
            }
        for name, given in outputs.items():
            found[name].append(divergence(want, given))
    logs = {name: np.log(values) for name, values in found.items()}
    apart = {name: np.abs(logs[name] - logs["full"]).mean() for name in ("quick", "plain")}
    assert spearmanr(found["full"], found["quick"]).statistic >= 0.8
    assert apart["quick"] < 0.6 * apart["plain"]


def test_the_unchanged_network_diverges_by_nothing(parts: tuple) -> None:
    problem, _, screen = parts
    found = screen.screen(problem.space.identity)
    task = problem.task
    whole = task.score.measure(task.network_predict, task.search).values["accuracy"]
    assert found.values["accuracy"] == pytest.approx(whole)
    assert found.values["divergence"] == pytest.approx(0, abs=1e-5)
    assert found.values["size_ratio"] == 1


def test_divergence_is_that_of_the_slice(parts: tuple) -> None:
    """By hand: Some of the search examples, evenly within each class."""
    problem, _, screen = parts
    inputs = torch.cat([x for x, _ in problem.task.search.batches(100)])
    labels = torch.cat([y for _, y in problem.task.search.batches(100)])
    base = problem.task.network_predict(inputs)
    at = Margins(base, labels).spread(EXAMPLES)
    plan = drawn(problem.space, 2)[1]
    odds = [
        softmax(o.numpy()[at].astype(float), axis=1) for o in (base, screen.outputs(plan, inputs))
    ]
    values = screen.screen(plan).values
    assert values["divergence"] == pytest.approx(entropy(*odds, axis=1).mean(), rel=0.02)


def test_accuracy_is_predicted_from_margins(parts: tuple) -> None:
    problem, _, screen = parts
    inputs = torch.cat([x for x, _ in problem.task.search.batches(100)])
    labels = torch.cat([y for _, y in problem.task.search.batches(100)])
    base = problem.task.network_predict(inputs)
    margins = Margins(base, labels)
    at = margins.spread(EXAMPLES)
    for plan in drawn(problem.space, 4):
        outputs = screen.outputs(plan, inputs)
        told = screen.screen(plan).values["accuracy"]
        expected = margins.share_right - margins.lost(outputs[at], at)
        assert told == pytest.approx(expected, abs=2e-3)
        assert abs(told - float((outputs.argmax(1) == labels).float().mean())) < 0.12


def test_what_was_known_before_a_change_is_not_run_again(parts: tuple) -> None:
    """The same networks as if every module ran, for each single option and mixed plans."""
    problem, evaluator, screen = parts
    space, few = problem.space, screen.networks
    alone = [space.plan({n: c - 1}) for n, c in space.parameters.items()]
    compressor, inputs = evaluator.compressor, screen.calibration_inputs
    reduced = bool(getattr(problem.target, "reduce_range", False))
    plain = RoundedNetworks(compressor, problem.task.example, inputs, NORMALISE_EXAMPLES, reduced)
    plain._replay.skip = lambda *_: {}
    few.forget()
    for plan in (*alone, *drawn(space, 3)):
        with few.rounded(plan) as network, plain.rounded(plan) as want, torch.no_grad():
            assert torch.equal(network(inputs), want(inputs)), str(plan)


def test_screening_leaves_no_trace(parts: tuple) -> None:
    problem, _, screen = parts
    before = {n: t.clone() for n, t in problem.task.network.state_dict().items()}
    eight = problem.space.plan({n: 1 for n in problem.space.parameters if n.startswith("bits")})
    first = screen.screen(problem.space.identity).values
    screen.screen(eight)
    assert screen.screen(problem.space.identity).values == first
    after = problem.task.network.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
