"""Measured trials as the screen's chooser sees them: how far each is to be believed."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import numpy as np

from .candidates import Candidates, genotypes
from .cost_error import CostError
from .knapsack import Floats, Ints
from .known import REFIT_EVERY, Known
from .score_curve import ScoreCurve

LATEST = 512
"""Trials that are looked at one by one; of those before them the ones on the front remain."""


class Told:
    """The trials that were asked and measured, in the order of their numbers; what is asked of them
    costs no more after ten thousand than after a thousand.

    points: number -> (loss, ratios ...) as measured. latest: the numbers of the last ``LATEST``.
    flying: number -> genotype's bytes, of trials that have no result.

    candidates: what was screened. counts: (parameters,) options. axes: the score and the costs.
    """

    def __init__(self, candidates: Candidates, counts: Ints, axes: int) -> None:
        self.points: dict[int, Floats] = {}
        self.latest: deque[int] = deque()
        self.flying: dict[int, bytes] = {}
        self._candidates, self._counts, self._axes = candidates, counts, axes
        self._noise: dict[int, float] = {}  # standard error of the loss, 0: unknown
        self._keys: dict[int, bytes] = {}
        self._older = Known()
        self._costs: tuple[int, CostError] | None = None  # trials told then, and what they say

    def ask(self, number: int, key: bytes) -> None:
        """A trial of that genotype was asked."""
        self._keys[number] = self.flying[number] = key

    def add(self, number: int, point: Floats, noise: float) -> None:
        """One more was measured."""
        self.points[number], self._noise[number] = point, noise
        self.latest.append(number)
        if len(self.latest) > LATEST:
            left = self.latest.popleft()
            self._older.enlist(left)
            self._older.points.append(self.points[left])
            self._older.stand(len(self._older.points) - 1)

    def believed(self, curve: ScoreCurve, error: float) -> Floats:
        """(n, axes): the trials with the score that is believed of them, between what was measured,
        which may be luck, and what the divergence stands for, each weighed by how sure it is. Else
        the luckiest trials would stand on the front and hide better ones. error: of the curve.
        """
        numbers = [*(self._older.numbers[i] for i in self._older.front), *self.latest]
        points = np.array([self.points[n] for n in numbers]).reshape(-1, self._axes)
        noise = np.array([self._noise[n] for n in numbers])
        screened = np.array([self._divergence(n) for n in numbers])
        unsure = (noise > 0) & ~np.isnan(screened)
        if unsure.any():
            usual = curve.loss(screened[unsure])
            share = error**2 / (error**2 + noise[unsure] ** 2)
            points[unsure, 0] = usual + share * (points[unsure, 0] - usual)
        return points

    def scores(self, numbers: Iterable[int]) -> list[tuple[float, float, float]]:
        """(divergence as screened, loss as measured, its standard error) of trials that were
        screened: what teaches a curve."""
        return [
            (divergence, float(self.points[n][0]), self._noise[n])
            for n in numbers
            if not np.isnan(divergence := self._divergence(n))
        ]

    def cost_error(self, numbers: Iterable[int]) -> CostError:
        """What these trials say of screened costs."""
        known = [
            (key, n) for n in numbers if (key := self._keys.get(n, b"")) in self._candidates.points
        ]
        screened = np.array([self._candidates.points[key] for key, _ in known])
        measured = np.array([self.points[n] for _, n in known])
        shape = (len(known), self._axes)
        return CostError.fit(
            self._counts,
            genotypes([key for key, _ in known], len(self._counts)),
            screened.reshape(shape)[:, 1:],
            measured.reshape(shape)[:, 1:],
        )

    def costs(self) -> CostError:
        """What trials say of screened costs, looked at anew at every eighth."""
        count = len(self.points)
        used = count if count < REFIT_EVERY else count // REFIT_EVERY * REFIT_EVERY
        if self._costs is None or self._costs[0] != used:
            self._costs = used, self.cost_error(list(self.points)[max(0, used - LATEST) : used])
        return self._costs[1]

    def _divergence(self, number: int) -> float:
        """As the trial's candidate was screened; NaN if it was not."""
        return self._candidates.divergence.get(self._keys.get(number, b""), np.nan)
