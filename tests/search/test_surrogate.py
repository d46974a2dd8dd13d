"""The surrogate: known weights are found again, known curves too, and children inherit errors."""

import numpy as np
import pytest

from paretune.search.known import REFIT_EVERY, taught
from paretune.search.score_curve import ScoreCurve
from paretune.search.surrogate import Surrogate, divergence_of


def problem(seed=0, trials=600, parameters=12):
    """Mild genotypes, as a search visits them: three options in ten are not the unchanged one."""
    rng = np.random.default_rng(seed)
    damage = np.cumsum(rng.random((parameters, 4)) * 0.1, axis=1)
    damage[:, 0] = 0.0
    weights = rng.uniform(0.3, 3.0, parameters)
    genotypes = rng.integers(4, size=(trials, parameters))
    genotypes *= rng.random(genotypes.shape) < 0.3
    divergence = damage[np.arange(parameters), genotypes] @ weights
    return damage, weights, genotypes, divergence


def test_known_weights_are_recovered():
    damage, weights, genotypes, divergence = problem()
    loss = 0.9 * (1 - np.exp(-0.5 * divergence))
    model = Surrogate.fit(damage, 0.9, genotypes, divergence, loss)
    assert model.weights == pytest.approx(weights, rel=0.25)
    fresh = problem(seed=0, trials=900)[2][600:]
    want = damage[np.arange(12), fresh] @ weights
    assert np.corrcoef(model.divergence(fresh), want)[0, 1] > 0.99
    mean, error = model.loss(want)
    assert mean == pytest.approx(0.9 * (1 - np.exp(-0.5 * want)), abs=0.03)
    assert np.all(error > 0)


def test_few_results_leave_the_weights_alone():
    damage, _, genotypes, divergence = problem(trials=5)
    model = Surrogate.fit(damage, 0.9, genotypes, divergence, divergence * 0.1)
    assert np.all(model.weights == 1)


def test_the_curve_never_falls_whatever_the_noise():
    damage, _, genotypes, divergence = problem()
    loss = np.random.default_rng(2).normal(0.1, 0.2, len(divergence))
    model = Surrogate.fit(damage, 0.9, genotypes, divergence, loss)
    mean, _ = model.loss(np.linspace(0, 10, 200))
    assert np.all(np.diff(mean) >= 0)


def test_a_child_inherits_the_error_of_its_parent():
    damage, _, genotypes, divergence = problem()
    model = Surrogate.fit(damage, 0.9, genotypes[:0], divergence[:0], divergence[:0])
    predicted = model.divergence(genotypes[:1])
    assert model.inherited(genotypes[:1], predicted) == pytest.approx([1.0])
    assert model.inherited(genotypes[:1], 2 * predicted)[0] > 1.4
    assert model.inherited(genotypes[:1], predicted / 2)[0] < 0.8


def test_what_all_sums_have_in_common_is_no_error_of_a_parent():
    """A third of each sum is true: the curve to the loss knows it. A child whose parent did as
    all others did is predicted where the parent is, not at a third of that again."""
    damage, _, genotypes, _ = problem(trials=11)
    truth = damage[np.arange(12), genotypes].sum(axis=1) / 3
    model = Surrogate.fit(damage, 0.9, genotypes, truth, 0.3 * truth)
    strong = truth > np.median(truth)
    divergence = model.divergence(genotypes[strong]) * model.inherited(
        genotypes[strong], truth[strong]
    )
    mean, _ = model.loss(divergence)
    assert mean == pytest.approx(0.3 * truth[strong], rel=0.2)


def test_divergence_of_a_loss_is_the_inverse_of_the_prior_curve():
    want = np.array([0.0, 0.1, 1.0, 3.0])
    assert divergence_of(0.9 * (1 - np.exp(-0.35 * want)), 0.9) == pytest.approx(want)


def test_fits_cost_no_growing_share_of_a_trial():
    counts = [taught(n) for n in range(20_001)]
    assert counts[:2048] == [n // REFIT_EVERY * REFIT_EVERY for n in range(2048)]
    assert all(a <= b for a, b in zip(counts, counts[1:], strict=False))  # nothing is unlearnt
    assert all(0.98 * n <= k <= n for n, k in enumerate(counts) if n > 500)
    fitted = [b if b != a else 0 for a, b in zip(counts, counts[1:], strict=False)]
    assert sum(fitted[18_000:]) / 2000 <= 256  # results looked at for each that arrives


def test_the_score_curve_of_many_candidates_stays_true_and_small():
    rng = np.random.default_rng(0)
    curve, few = ScoreCurve(0.9), ScoreCurve(0.9)
    x = rng.gamma(1.0, 0.7, 20_000)
    y = 0.9 * (1 - np.exp(-0.4 * x)) + rng.normal(0, 0.03, len(x))
    for place, (divergence, loss) in enumerate(zip(x, y, strict=True)):
        curve.add(float(divergence), float(loss))
        if place < 1000:
            few.add(float(divergence), float(loss))
    grid = np.linspace(0.05, 3.0, 60)
    want = 0.9 * (1 - np.exp(-0.4 * grid))
    assert np.abs(curve.loss(grid) - want).max() < 0.02
    assert np.abs(curve.loss(grid) - want).mean() < np.abs(few.loss(grid) - want).mean()
    assert len(curve._x) < 4096
    assert sum(curve._trust) == pytest.approx(20_000)
