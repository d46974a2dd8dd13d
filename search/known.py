"""True results as the guided search keeps them, at a cost that does not grow with their number."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from heapq import nsmallest

import numpy as np

from .knapsack import Floats, Ints

REFIT_EVERY = 8
"""True results between two sets of seeds; the surrogate is fitted as often, see :func:`taught`."""
_PARENTS = 24


@dataclass
class Known:
    """True results, in the order in which they arrived; the front among them, and their order by
    number, are kept as they come."""

    numbers: list[int] = field(default_factory=list)
    order: list[int] = field(default_factory=list)  # places by number
    genotypes: list[Ints] = field(default_factory=list)
    divergence: list[float] = field(default_factory=list)
    points: list[Floats] = field(default_factory=list)
    front: list[int] = field(default_factory=list)  # places of the feasible ones on the front
    standing: Floats = field(default_factory=lambda: np.zeros((0, 0)))  # their points

    def enlist(self, number: int) -> int:
        """A result arrived; how many there are with smaller numbers."""
        before = bisect_right(self.order, number, key=self.numbers.__getitem__)
        self.order.insert(before, len(self.numbers))
        self.numbers.append(number)
        return before

    def stand(self, place: int) -> None:
        """Let the result at ``place`` take its place on the front, if it has one."""
        point = self.points[place]
        on = self.standing.reshape(-1, len(point))
        if np.any(np.all(on <= point, axis=1) & np.any(on < point, axis=1)):
            return
        stays = ~(np.all(point <= on, axis=1) & np.any(point < on, axis=1))
        self.front = [i for i, kept in zip(self.front, stays, strict=True) if kept]
        self.front.append(place)
        self.standing = np.vstack([on[stays], point])

    def parents(self) -> Ints:
        """The results that are changed further: the feasible front, the mildest losses first; while
        nothing is feasible, the results that lost least."""
        if not self.front:
            places = range(len(self.points))
            mild = nsmallest(_PARENTS, places, key=lambda i: (self.points[i][0], self.numbers[i]))
            return np.array(mild, dtype=np.intp)
        numbers = np.array([self.numbers[i] for i in self.front])
        order = np.lexsort((numbers, self.standing[:, 0]))[: 4 * _PARENTS]
        return np.array(self.front, dtype=np.intp)[order]


def taught(count: int) -> int:
    """How many of ``count`` results the surrogate is fitted on: all but the last few. Every eighth
    refits it; from 2,048 on ever more lie between two fits, so that these take no growing share of
    a trial."""
    step = max(REFIT_EVERY, (1 << count.bit_length()) >> 8)
    return count // step * step
