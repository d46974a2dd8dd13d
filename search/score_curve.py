"""What a divergence says of the score: a curve learned from all candidates, not the best ones."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import numpy as np

from .knapsack import Floats
from .surrogate import fitted_curve

_TRUE = 50.0  # a measured score counts as much as so many screened ones: they share their images
_PRIOR = 2.0
_MOST = 4096  # screened candidates that are kept one by one
_DECAY = 0.15  # a network's score falls like exp(-0.15 divergence) before anything else is known


class ScoreCurve:
    """Loss of score by divergence, by isotonic regression over everything screened and measured.

    A hundred examples tell a candidate's divergence well and its score badly: among many
    candidates those that look best were lucky. Averaged over candidates of like divergence, the
    luck goes; what was measured for real corrects the rest.

    score: the unchanged network's.
    """

    def __init__(self, score: float) -> None:
        self._prior = np.concatenate([[0.0], np.geomspace(0.01, 8.0, 16)])
        self._decay = score * (1 - np.exp(-_DECAY * self._prior))
        self._x: list[float] = []
        self._y: list[float] = []
        self._trust: list[float] = []
        self._knots: tuple[Floats, Floats] | None = None
        self._measured: list[tuple[float, float, float]] = []

    def add(self, divergence: float, loss: float) -> None:
        """One candidate's divergence and its loss of score, both as screened."""
        self._put(divergence, loss, 1.0)
        if len(self._x) >= _MOST:
            self._thin()

    def _put(self, divergence: float, loss: float, trust: float) -> None:
        self._x.append(divergence)
        self._y.append(loss)
        self._trust.append(trust)
        self._knots = None

    def _thin(self) -> None:
        """Let two neighbours become their average: the curve stays, and so does its cost."""
        order = np.argsort(self._x, kind="stable")
        x, y, trust = (np.array(part)[order] for part in (self._x, self._y, self._trust))
        pairs = np.arange(0, len(x), 2)
        weight = np.add.reduceat(trust, pairs)
        self._x = list(np.add.reduceat(x * trust, pairs) / weight)
        self._y = list(np.add.reduceat(y * trust, pairs) / weight)
        self._trust = list(weight)

    def with_measured(self, trials: Iterable[tuple[float, float, float]]) -> ScoreCurve:
        """A copy that also knows measured trials: (divergence, loss, standard error or 0)."""
        out = copy.copy(self)
        out._x, out._y, out._trust = list(self._x), list(self._y), list(self._trust)
        out._measured = list(trials)
        for divergence, loss, _ in out._measured:
            out._put(divergence, loss, _TRUE)
        return out

    def loss(self, divergence: Floats) -> Floats:
        """The expected loss of score, never falling."""
        if self._knots is None:
            x, y = np.r_[self._prior, self._x], np.r_[self._decay, self._y]
            trust = np.r_[np.full(len(self._prior), _PRIOR), self._trust]
            self._knots = fitted_curve(x, y, trust)
        return np.asarray(np.interp(divergence, *self._knots))

    def scatter(self, before: float) -> float:
        """Standard error of a predicted loss, from measured candidates: how far they lie from
        the curve, less how far chance alone puts them; ``before`` until there are 8."""
        if len(self._measured) < 8:
            return before
        x, y, noise = np.array(self._measured).T
        return float(np.sqrt(max(0.0, np.mean((y - self.loss(x)) ** 2 - noise**2))))
