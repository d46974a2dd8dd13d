"""Screened candidates of a search, and which of them may still become trials."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice

import numpy as np

from .knapsack import Floats, Ints

LATEST = 512
"""Candidates among which one is chosen."""


class Candidates:
    """What screens found, by genotype (its bytes).

    points: (loss, ratios ...) as screened. divergence: nats, where it was screened. learned:
    (genotype, values) in the order in which they came.
    """

    def __init__(self) -> None:
        self.points: dict[bytes, Floats] = {}
        self.divergence: dict[bytes, float] = {}
        self.learned: list[tuple[Ints, Mapping[str, float]]] = []
        self._waiting: dict[bytes, None] = {}  # the latest last
        self._gone: set[bytes] = set()

    def add(self, genotype: Ints, values: Mapping[str, float], point: Floats) -> None:
        """One was screened."""
        key = genotype.tobytes()
        self.learned.append((genotype, values))
        self.points[key] = point
        if "divergence" in values:
            self.divergence[key] = values["divergence"]
        if key not in self._gone:
            self._waiting[key] = None

    def leave(self, key: bytes) -> None:
        """This genotype was asked, or never will be."""
        self._gone.add(key)
        self._waiting.pop(key, None)

    def waiting(self) -> list[bytes]:
        """The latest of those that may become a trial."""
        return [*islice(reversed(self._waiting), LATEST)][::-1]


def genotypes(keys: list[bytes], parameters: int) -> Ints:
    """(n, parameters) of the keys."""
    return np.frombuffer(b"".join(keys), dtype=np.intp).reshape(-1, parameters)
