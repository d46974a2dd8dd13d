"""Predicted costs corrected by measured ones, beside scikit-learn's ridge regression."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from paretune.search.cost_error import _ALL, _NOISE, _OPTION, LEAST, CostError

COUNTS = np.array([3, 2, 4, 2, 3])


def drawn(count, seed=0):
    rng = np.random.default_rng(seed)
    return np.stack([rng.integers(0, n, count) for n in COUNTS], axis=1)


def options(genotypes):
    """One column for each option but the first of every parameter, in order."""
    columns = [genotypes[:, i] == k for i, n in enumerate(COUNTS) for k in range(1, n)]
    return np.stack(columns, axis=1).astype(float)


def test_it_is_ridge_regression_of_the_logarithms():
    rows, rng = drawn(30), np.random.default_rng(1)
    predicted = rng.uniform(0.5, 1.0, (30, 2))
    measured = predicted * np.exp(rng.normal(0, 0.1, (30, 2)))
    off = np.log(measured / predicted)
    columns = np.hstack([options(rows) * _OPTION, np.full((30, 1), _ALL)])
    ridge = Ridge(alpha=_NOISE**2, fit_intercept=False).fit(columns, off)
    found = CostError.fit(COUNTS, rows, predicted, measured)
    new = drawn(12, seed=2)
    wanted = np.hstack([options(new) * _OPTION, np.full((12, 1), _ALL)]) @ ridge.coef_.T
    assert found.factors(new) == pytest.approx(np.exp(wanted), rel=1e-6)


def test_an_option_that_is_dearer_is_found_out():
    rows, rng = drawn(40), np.random.default_rng(1)
    predicted = rng.uniform(0.5, 1.0, (40, 1))
    dear = 1 + 0.15 * (rows[:, 2] == 3)[:, None]
    noise = np.exp(rng.normal(0, 0.01, (40, 1)))
    found = CostError.fit(COUNTS, rows, predicted, predicted * dear * noise)
    new = drawn(60, seed=2)
    wanted = 1 + 0.15 * (new[:, 2] == 3)
    assert np.abs(found.factors(new)[:, 0] / wanted - 1).max() < 0.03


def test_few_or_no_trials_correct_nothing():
    for count in (0, LEAST - 1):
        rows = drawn(count) if count else np.zeros((0, len(COUNTS)), dtype=np.intp)
        found = CostError.fit(COUNTS, rows, np.full((count, 2), 0.5), np.full((count, 2), 0.9))
        assert np.all(found.factors(drawn(5)) == 1.0)
