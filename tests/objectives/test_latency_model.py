"""Predicted latency: fitted to a machine whose law is known, and to this one."""

import json
from math import prod
from pathlib import Path

import numpy as np
import pytest
import torch
from small_networks import build
from torch import nn

from paretune.objectives import latency_model
from paretune.objectives.latency_model import WIDTHS, LatencyModel, features
from paretune.objectives.latency_probe import (
    FILE,
    calibration_plans,
    fit_latency,
    stored_model,
)
from paretune.objectives.layer_shapes import ShapeTable
from paretune.operators.compress import Compressor
from paretune.spaces.discover import discover
from paretune.targets.catalogue import make_target
from paretune.targets.target import Target, Timing


@pytest.fixture(scope="module")
def problem():
    network, example = build("residual")
    space = discover(network, example)
    return network, example, space, ShapeTable(space, network, example)


def at_widths(table: ShapeTable, plans) -> dict:
    """Features of plans as the fit takes them."""
    return {w: np.array([features(table.shapes(plan), w) for plan in plans]) for w in WIDTHS}


@pytest.mark.parametrize("widths", WIDTHS)
def test_a_linear_law_is_found_again(problem, widths) -> None:
    """Eighteen hidden costs, and which channels are filled up; other plans are predicted."""
    *_, space, table = problem
    rng = np.random.default_rng(0)
    costs = rng.uniform(0.01, 0.1, 18)
    plans = calibration_plans(space)
    rows = at_widths(table, plans)
    truth = rows[widths].sum(axis=1) @ costs + 0.2
    model = LatencyModel.fit(rows, truth)
    assert model.error <= 0.05 and model.correlation >= 0.95 and model.plans == len(plans)
    assert (model.factors >= 0).all()
    for plan, expected in zip(plans, truth, strict=True):
        assert model.latency_ms(plan, table.shapes(plan)) == pytest.approx(expected, rel=0.03)


def test_layers_that_are_slower_than_their_arithmetic_are_learned(monkeypatch) -> None:
    """Ten layers of random sizes, each with a hidden factor of its own in float32 and in int8."""
    rng = np.random.default_rng(1)
    own = rng.uniform(0.5, 2.0, (10, 2))
    rows = np.zeros((24, 10, 18))
    for plan in rows:
        rounded = rng.integers(0, 2, 10)
        plan[np.arange(10), 8 * rounded] = rng.uniform(0.2, 1, 10)
    truth = rows[:, :, 0] @ own[:, 0] + rows[:, :, 8] @ own[:, 1] + 1
    model = LatencyModel.fit({(1, 1): rows}, truth)
    monkeypatch.setattr(latency_model, "_RIDGES", (np.inf,))
    plain = LatencyModel.fit({(1, 1): rows}, truth)
    assert (plain.own == 1).all() and model.own.min() < 0.9 < 1.1 < model.own.max()
    assert model.error < 0.7 * plain.error, (model.error, plain.error)


def test_one_plan_unlike_all_others_does_not_spoil_what_is_said_of_them() -> None:
    """The others have next to nothing of what it is made of: of that their noise tells nothing."""
    errors = []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        rows = rng.uniform(0, 1, (18, 1, 18))
        rows[:, 0, 5] *= 0.001
        rows[7, 0, 5] = 1.0
        truth = (rows.sum(axis=(1, 2)) + 2) * rng.normal(1, 0.1, 18)
        errors.append(LatencyModel.fit({(8, 16): rows}, truth).error)
    assert max(errors) < 0.4, errors


def test_features_add_up_to_the_plans_multiply_accumulates(problem) -> None:
    *_, space, table = problem
    for plan in (space.identity, *calibration_plans(space)):
        shapes = table.shapes(plan)
        layers = sum(len(factors) for factors in shapes.layers.values())
        for widths in WIDTHS:
            found = features(shapes, widths)[:, :16].sum(axis=0).reshape(2, 2, 4)
            assert found[:, :, 3].sum() == layers
            assert found[:, :, 0].sum() >= (1 - 1e-9) * shapes.macs / 1e6  # filled up, never cut
        exact = features(shapes, (1, 1))[:, :16].sum(axis=0).reshape(2, 2, 4)
        assert exact[:, :, 0].sum() == pytest.approx(shapes.macs / 1e6)
        weights = sum(prod(f.shape) for factors in shapes.layers.values() for f in factors)
        assert exact[:, :, 2].sum() == pytest.approx(weights / 1e6)


def test_what_passes_between_float32_and_int8_is_counted(problem) -> None:
    """On a chain of three layers, by hand: int8 in the middle is converted to and back from."""
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 8, 1), nn.Linear(6, 5)).eval()
    example = torch.zeros(1, 3, 6, 6)
    space = discover(network, example)
    table = ShapeTable(space, network, example)
    bits = [n for n in space.parameters if n.startswith("bits:")]
    plan = space.plan({bits[1]: 1})
    assert plan.layers["1"].activation_bits == 8
    found = features(table.shapes(plan), (8, 16))[:, 16:]
    assert found == pytest.approx(np.array([[0, 0], [4 * 36 / 1e6, 1], [8 * 36 / 1e6, 1]]))
    assert not features(table.shapes(space.identity), (8, 16))[:, 16:].any()


def measured(problem, folder: Path, target: Target, *hear, **limits):
    """What ``fit_latency`` gives for the small network; hear: ``say`` and ``check``."""
    network, example, space, table = problem
    inputs = torch.randn(16, *example.shape[1:])
    compressor = Compressor(network, example, space, inputs)
    batch = inputs.numpy()
    return fit_latency(
        folder, target, compressor, table, example, [batch], batch[:1], *hear, **limits
    )


def test_measured_here_kept_and_read_back(problem, tmp_path: Path) -> None:
    _, _, space, table = problem
    target = make_target("onnxruntime-cpu", {"seconds": 0.05})
    said: list[str] = []
    model = measured(problem, tmp_path, target, said.append)
    assert model is not None and model.plans >= 6 and model.seconds > 0 and said
    assert model.latency_ms(space.identity, table.shapes(space.identity)) > 0
    again = stored_model(tmp_path, space, target)
    assert again is not None and again.to_json() == model.to_json()
    assert stored_model(tmp_path, space, make_target("onnxruntime-cpu", {"threads": 2})) is None
    (tmp_path / FILE).write_text(json.dumps({"version": 99}))
    assert stored_model(tmp_path, space, target) is None


def test_too_little_time_is_said_after_three_plans(problem, tmp_path: Path, monkeypatch) -> None:
    target = make_target("onnxruntime-cpu")
    steady = Timing(ratio=1.0, ratio_error=0.001, baseline_ms=1.0, rounds=9)
    monkeypatch.setattr(target, "time", lambda *_: steady)
    checks: list[int] = []
    with pytest.raises(TimeoutError, match="timing 10 plans .* too much of the time limit"):
        measured(problem, tmp_path, target, str, lambda: checks.append(1), seconds=0.01)
    assert len(checks) == 4 and not (tmp_path / FILE).exists()
