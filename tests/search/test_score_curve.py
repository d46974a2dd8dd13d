"""From a screened divergence to a score, and how sure that is, on data whose truth is known."""

import numpy as np
import pytest

from paretune.search.score_curve import ScoreCurve


def trials(error, noise, count=600):
    """(divergence, measured loss, noise): a true loss of 0.1 x divergence, off by ``error``."""
    rng = np.random.default_rng(0)
    x = rng.uniform(0.0, 0.4, count)
    y = 0.1 * x + rng.normal(0, error, count) + rng.normal(0, noise, count)
    return list(zip(x.tolist(), y.tolist(), [noise] * count, strict=True))


def test_the_curve_follows_what_was_measured():
    curve = ScoreCurve(0.92).with_measured(trials(0.0, 0.005))
    x = np.linspace(0.05, 0.35, 7)
    assert curve.loss(x) == pytest.approx(0.1 * x, abs=2e-3)


@pytest.mark.parametrize("noise", [0.003, 0.006, 0.012])
def test_the_error_of_a_prediction_is_not_that_of_counting(noise):
    """Whatever the number of images that trials are scored on, the curve is as good as it is."""
    curve = ScoreCurve(0.92).with_measured(trials(0.005, noise))
    assert curve.scatter(1.0) == pytest.approx(0.005, rel=0.2)


def test_a_curve_without_error_is_not_blamed_for_chance():
    curve = ScoreCurve(0.92).with_measured(trials(0.0, 0.006))
    assert curve.scatter(1.0) < 0.0015


def test_an_error_that_is_not_known_counts_in_full():
    unknown = [(x, y, 0.0) for x, y, _ in trials(0.003, 0.004)]
    assert ScoreCurve(0.92).with_measured(unknown).scatter(1.0) == pytest.approx(0.005, rel=0.15)


def test_few_trials_say_nothing_about_the_error():
    assert ScoreCurve(0.92).with_measured(trials(0.0, 0.0)[:7]).scatter(0.01) == 0.01
