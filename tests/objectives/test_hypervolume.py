"""Dominance and hypervolume against brute force, Optuna's own and Monte Carlo."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from optuna._hypervolume import compute_hypervolume

from paretune.objectives.dominance import costs, dominates, non_dominated
from paretune.objectives.hypervolume import growth, hypervolume, normalized_hypervolume, ratios
from paretune.objectives.objective import Objective

GRID = st.sampled_from([0.0, 0.1, 0.2, 0.35, 0.5, 0.7, 0.9, 1.1])


def clouds(smallest: int = 1, widest: int = 4) -> st.SearchStrategy[np.ndarray]:
    return st.integers(smallest, widest).flatmap(
        lambda width: st.integers(0, 14).flatmap(
            lambda count: arrays(float, (count, width), elements=st.one_of(GRID, st.floats(0, 1.2)))
        )
    )


def brute(points: np.ndarray) -> list[bool]:
    return [not any(all(q <= p) and any(q < p) for q in points) for p in points]


@given(clouds())
@settings(max_examples=300, deadline=None)
def test_non_dominated_is_brute_force(points: np.ndarray) -> None:
    assert non_dominated(points).tolist() == brute(points)


@given(clouds(2, 4))
@settings(max_examples=200, deadline=None)
def test_hypervolume_is_optunas(points: np.ndarray) -> None:
    reference = np.ones(points.shape[1])
    inside = points[np.all(points < 1, axis=1)]
    expected = compute_hypervolume(inside, reference) if len(inside) else 0.0
    assert hypervolume(points, reference) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_hypervolume_is_monte_carlos(width: int) -> None:
    rng = np.random.default_rng(width)
    points = rng.random((12, width))
    samples = rng.random((200_000, width))
    covered = np.zeros(len(samples), dtype=bool)
    for point in points:
        covered |= np.all(samples >= point, axis=1)
    share = covered.mean()
    error = (share * (1 - share) / len(samples)) ** 0.5
    assert hypervolume(points, np.ones(width)) == pytest.approx(share, abs=4 * error + 1e-6)


@given(clouds(2, 3), st.integers(0, 2**32 - 1))
@settings(max_examples=150, deadline=None)
def test_hypervolume_grows_with_points_and_not_with_dominated_ones(
    points: np.ndarray, seed: int
) -> None:
    reference = np.ones(points.shape[1])
    whole = hypervolume(points, reference)
    extra = np.random.default_rng(seed).random((1, points.shape[1]))
    assert hypervolume(np.vstack([points, extra]), reference) >= whole - 1e-12
    if len(points):
        worse = points[:1] + 0.05
        assert hypervolume(np.vstack([points, worse]), reference) == pytest.approx(whole, abs=1e-12)


BASE = {"accuracy": 0.9, "size_bytes": 1000.0, "latency_ms": 2.0, "macs": 100.0}


def test_normalized_by_hand() -> None:
    point = {"accuracy": 0.8, "size_bytes": 500.0, "latency_ms": 1.0}
    expected = (0.4 - 0.1) * (1.05 - 0.5) ** 2 / (0.4 * 1.05 * 1.05)
    assert normalized_hypervolume([point], BASE) == pytest.approx(expected)
    assert normalized_hypervolume([point], BASE, 0.03) == 0.0
    near = {"accuracy": 0.89, "size_ratio": 0.5, "latency_ratio": 0.5}
    expected = 0.02 * 0.55**2 / (0.03 * 1.05 * 1.05)
    assert normalized_hypervolume([near], BASE, 0.03) == pytest.approx(expected)
    ideal = {"accuracy": 0.95, "size_bytes": 0.0, "latency_ms": 0.0}
    assert normalized_hypervolume([ideal], BASE) == pytest.approx(1.0)
    assert normalized_hypervolume([], BASE) == 0.0
    assert normalized_hypervolume([point], {}) == 0.0


def test_macs_stand_in_only_where_latency_is_not_measured() -> None:
    base = {k: v for k, v in BASE.items() if k != "latency_ms"}
    assert ratios([], BASE)[0] == ["accuracy", "size_bytes", "latency_ms"]
    axes, points = ratios([{"accuracy": 0.9, "size_bytes": 100.0, "macs": 30.0}], base)
    assert axes == ["accuracy", "size_bytes", "macs"]
    assert points.tolist() == [[0.0, 0.1, 0.3]]
    assert normalized_hypervolume([{"accuracy": 0.9, "size_bytes": 100.0}], BASE) == 0.0


def test_values_measured_beside_the_baseline_win() -> None:
    point = {"accuracy": 0.5, "accuracy_drop": 0.01, "latency_ms": 9.0, "latency_ratio": 0.4}
    assert ratios([point | {"size_ratio": 0.2}], BASE)[1].tolist() == [[0.01, 0.2, 0.4]]


@given(
    st.lists(st.tuples(st.floats(0.4, 0.95), st.floats(50, 1200), st.floats(0.1, 2.4)), max_size=12)
)
@settings(max_examples=80, deadline=None)
def test_growth_is_each_prefix_from_scratch(rows: list[tuple[float, float, float]]) -> None:
    names = ("accuracy", "size_bytes", "latency_ms")
    values = [dict(zip(names, row, strict=True)) for row in rows]
    objectives = [Objective(name, {}) for name in names]
    for count, (whole, useful, size) in enumerate(growth(values, BASE, objectives), start=1):
        assert whole == pytest.approx(normalized_hypervolume(values[:count], BASE), abs=1e-12)
        assert useful == pytest.approx(
            normalized_hypervolume(values[:count], BASE, 0.03), abs=1e-12
        )
        distinct = {row for row in rows[:count]}
        assert size == sum(
            brute(costs([dict(zip(names, r, strict=True)) for r in distinct], objectives))
        )


def test_directions() -> None:
    objectives = [Objective("accuracy", {}), Objective("size_bytes", {})]
    good, bad = {"accuracy": 0.9, "size_bytes": 10.0}, {"accuracy": 0.8, "size_bytes": 10.0}
    assert dominates(good, bad, objectives)
    assert not dominates(bad, good, objectives)
    assert not dominates(good, good, objectives)
