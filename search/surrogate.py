"""What a genotype will lose, before it is tried: damages that add up, corrected by true results."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import isotonic_regression, lsq_linear

from .knapsack import Floats, Ints

LEAST_TRIALS = 12
"""True results from which on the weights of the damages are refitted."""
_DECAY = 0.35  # a network's score falls like exp(-0.35 divergence) before anything else is known
_RIDGE, _LOW, _HIGH = 0.3, 0.05, 6.0
_FLOOR = 0.05  # nats added to a divergence before relative errors are taken
_MOST = 4.0  # nats above which a network is broken and teaches nothing about the weights
_PRIOR = 0.15  # weight of a point of the prior curve beside that of a true result
_PARENT_FLOOR, _PARENT_POWER = 0.02, 0.7


ERRORS_AT = np.array([0.02, 0.1, 0.3, 0.6])
"""Losses around which the error of a prediction is estimated, each from results of its own."""
_ERRORS_BEFORE = np.array([0.015, 0.03, 0.06, 0.08])  # until results tell
_BEFORE = 4.0  # results that this prior is worth


def divergence_of(loss: Floats, score: float) -> Floats:
    """The divergence that usually goes with a loss of score, where only the score is known."""
    left = np.clip(1.0 - np.asarray(loss) / max(score, 1e-6), 0.02, 1.0)
    return np.asarray(-np.log(left) / _DECAY)


@dataclass(frozen=True, eq=False)
class Surrogate:
    """Predicts the loss of score of genotypes from single-option damages.

    The divergence of a genotype is the weighted sum of its options' damages; the weights are a
    bounded ridge regression towards 1 on true results, and the loss of score follows from the
    divergence by isotonic regression (Barlow et al. 1972). The child of a tried genotype inherits
    its parent's error: how far the parent is off what such sums usually turn out to be, since what
    all of them have in common is in the curve already.

    damage: (parameters, options), padded. weights: (parameters,). knots: the curve from the sum to
    loss; usual: the one from the sum to the true divergence. errors: standard errors of a predicted
    loss at the losses of ERRORS_AT.
    """

    damage: Floats
    weights: Floats
    knots: tuple[Floats, Floats]
    usual: tuple[Floats, Floats]
    errors: Floats

    @classmethod
    def fit(
        cls, damage: Floats, score: float, genotypes: Ints, divergence: Floats, loss: Floats
    ) -> Surrogate:
        """From true results: (n, parameters) genotypes, their (n,) divergence and loss of score.

        score: the unchanged network's. With fewer than 12 results the weights stay 1.
        """
        weights = np.ones(len(damage))
        usable = divergence < _MOST
        if usable.sum() >= LEAST_TRIALS:
            weights = _weights(_features(damage, genotypes[usable]), divergence[usable])
        predicted = _features(damage, genotypes) @ weights
        top = max(8.0, float(predicted.max(initial=0.0)))
        prior = np.concatenate([[0.0], np.geomspace(0.01, top, 24)])
        x = np.concatenate([predicted, prior])
        y = np.concatenate([loss, score * (1 - np.exp(-_DECAY * prior))])
        trust = np.concatenate([np.ones(len(loss)), np.full(len(prior), _PRIOR)])
        knots = fitted_curve(x, y, trust)
        truth = np.concatenate([divergence, prior])
        usual = fitted_curve(x, truth, trust)
        return cls(damage, weights, knots, usual, _errors(loss, np.interp(predicted, *knots)))

    def divergence(self, genotypes: Ints) -> Floats:
        """(n, parameters) -> (n,) nats."""
        return np.asarray(_features(self.damage, genotypes) @ self.weights)

    def inherited(self, genotypes: Ints, divergence: Floats) -> Floats:
        """How far tried genotypes are off: the factor by which their children are corrected."""
        usual = np.interp(self.divergence(genotypes), *self.usual)
        off = (divergence + _PARENT_FLOOR) / (usual + _PARENT_FLOOR)
        return np.asarray(np.clip(off, 0.3, 3.0) ** _PARENT_POWER)

    def loss(self, divergence: Floats) -> tuple[Floats, Floats]:
        """Expected loss of score and its standard error."""
        mean = np.interp(divergence, *self.knots)
        return mean, np.interp(mean, ERRORS_AT, self.errors)


def _errors(loss: Floats, guess: Floats) -> Floats:
    """Root mean squares of the residuals in the band around each of ERRORS_AT. One error for all
    would promise that broken networks might as well be fine."""
    band = np.searchsorted((ERRORS_AT[1:] + ERRORS_AT[:-1]) / 2, guess)
    squares = np.bincount(band, (loss - guess) ** 2, len(ERRORS_AT))
    count = np.bincount(band, minlength=len(ERRORS_AT))
    return np.sqrt((squares + _BEFORE * _ERRORS_BEFORE**2) / (count + _BEFORE))


def _features(damage: Floats, genotypes: Ints) -> Floats:
    return np.asarray(damage[np.arange(len(damage)), genotypes])


def _weights(features: Floats, divergence: Floats) -> Floats:
    """Bounded ridge least squares of relative errors, on the triangle of the normal equations."""
    relative = 1.0 / (divergence + _FLOOR)
    rows = features * relative[:, None]
    square = rows.T @ rows + _RIDGE * np.eye(features.shape[1])
    aim = rows.T @ (divergence * relative) + _RIDGE
    triangle = np.linalg.cholesky(square).T
    goal = np.linalg.solve(triangle.T, aim)
    free = np.linalg.solve(triangle, goal)
    if np.all((free >= _LOW) & (free <= _HIGH)):
        return np.asarray(free)
    return np.asarray(lsq_linear(triangle, goal, bounds=(_LOW, _HIGH), method="bvls").x)


def fitted_curve(x: Floats, y: Floats, trust: Floats) -> tuple[Floats, Floats]:
    """Knots of the rising curve: the centre of each level that isotonic regression finds."""
    order = np.lexsort((y, x))
    fitted = isotonic_regression(y[order], weights=trust[order])
    starts = np.asarray(fitted.blocks)[:-1]
    weight = np.add.reduceat(trust[order], starts)
    centre = np.add.reduceat(x[order] * trust[order], starts) / weight
    return centre, np.asarray(fitted.x)[starts]
