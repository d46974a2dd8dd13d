"""Measured trials as the screen's chooser sees them: how far each is to be believed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy as np

from .knapsack import Floats
from .known import Known
from .score_curve import ScoreCurve

LATEST = 512
"""Trials that are looked at one by one; of those before them the ones on the front remain."""


class Told:
    """The trials that were measured, in the order of their numbers; what is asked of them costs no
    more after ten thousand than after a thousand.

    points: number -> (loss, ratios ...). noise: number -> standard error of the loss, 0: unknown.
    latest: the numbers of the last ``LATEST``.
    """

    def __init__(self) -> None:
        self.points: dict[int, Floats] = {}
        self.noise: dict[int, float] = {}
        self.latest: deque[int] = deque()
        self._older = Known()

    def add(self, number: int, point: Floats, noise: float) -> None:
        """One more was measured."""
        self.points[number], self.noise[number] = point, noise
        self.latest.append(number)
        if len(self.latest) > LATEST:
            left = self.latest.popleft()
            self._older.enlist(left)
            self._older.points.append(self.points[left])
            self._older.stand(len(self._older.points) - 1)

    def believed(
        self, divergence: Callable[[int], float], curve: ScoreCurve, error: float
    ) -> Floats:
        """(n, axes): the trials with the score that is believed of them, between what was measured,
        which may be luck, and what the divergence stands for, each weighed by how sure it is. Else
        the luckiest trials would stand on the front and hide better ones.

        divergence: of a trial by its number, NaN where it is unknown. error: of the curve.
        """
        numbers = [*(self._older.numbers[i] for i in self._older.front), *self.latest]
        points = np.array([self.points[n] for n in numbers])
        noise = np.array([self.noise[n] for n in numbers])
        screened = np.array([divergence(n) for n in numbers])
        unsure = (noise > 0) & ~np.isnan(screened)
        if unsure.any():
            usual = curve.loss(screened[unsure])
            share = error**2 / (error**2 + noise[unsure] ** 2)
            points[unsure, 0] = usual + share * (points[unsure, 0] - usual)
        return points
