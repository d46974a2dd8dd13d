"""Candidates that make the very plan of one that was screened already: not screened again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ..spaces.plan import CompressionPlan
from .knapsack import Ints

Values = Mapping[str, float]


class Twins:
    """What screens found, by plan.

    Two genotypes make one plan where a rank saves nothing: they are the same in everything but
    ranks. So plans are compared among those alone, and those of an earlier run, of which only the
    genotype is recorded, are made when such a candidate comes up: a resume makes none.

    names: of the parameters, in a genotype's order. plan: genotype -> plan.
    """

    def __init__(
        self, names: Sequence[str], plan: Callable[[Mapping[str, int]], CompressionPlan]
    ) -> None:
        self._names, self._plan = list(names), plan
        self._ranks = np.array([name.startswith("rank:") for name in names], dtype=bool)
        self._fingerprints: dict[bytes, str] = {}  # of plans made, until they are screened
        self._found: dict[str, Values] = {}  # by fingerprint
        self._alike: dict[bytes, list[tuple[Ints, Values]]] = {}  # of which no plan was made yet

    def find(self, genotype: Ints, plan: CompressionPlan) -> Values | None:
        """What the first candidate of this plan was screened to, if there was one."""
        for other, values in self._alike.pop(self._key(genotype), ()):
            params = {n: int(k) for n, k in zip(self._names, other, strict=True)}
            self._found.setdefault(self._plan(params).fingerprint, values)
        fingerprint = plan.fingerprint
        self._fingerprints[genotype.tobytes()] = fingerprint
        return self._found.get(fingerprint)

    def add(self, genotype: Ints, values: Values) -> None:
        """A candidate was screened, in this run or in an earlier one."""
        fingerprint = self._fingerprints.pop(genotype.tobytes(), None)
        if fingerprint is not None:
            self._found.setdefault(fingerprint, values)
        else:
            self._alike.setdefault(self._key(genotype), []).append((genotype, values))

    def _key(self, genotype: Ints) -> bytes:
        return np.where(self._ranks, 0, genotype).astype(np.intp).tobytes()
