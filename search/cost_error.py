"""How far predicted costs are off, learned option by option from what was measured."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from .knapsack import Floats, Ints

_OPTION, _ALL, _NOISE = 0.03, 0.1, 0.02
"""Relative standard deviations before anything is measured: of one option's own error, of an error
that all plans share, and of a measurement."""
LEAST = 4
"""Measured plans without which nothing is corrected."""


@dataclass(frozen=True, eq=False)
class CostError:
    """Corrects predicted costs of genotypes by those of genotypes that were measured.

    The logarithm of measured over predicted is a sum over the options a genotype takes, each with a
    normal prior (ridge regression; Hastie et al., "The Elements of Statistical Learning", section
    3.4.1). So a layer whose float32 form turns out dearer than predicted is dearer in every plan
    that has it. An option 0 changes nothing and has no error of its own.

    weights: (options of all parameters and one shared, axes). starts: (parameters,).
    """

    weights: Floats
    starts: Ints

    @classmethod
    def fit(cls, counts: Ints, genotypes: Ints, predicted: Floats, measured: Floats) -> CostError:
        """counts: (parameters,) options of each. genotypes: (n, parameters). predicted, measured:
        (n, axes), above zero."""
        starts = np.array([0, *accumulate(counts.tolist())][:-1], dtype=np.intp)
        width = int(counts.sum())
        if len(genotypes) < LEAST:
            return cls(np.zeros((width + 1, predicted.shape[1])), starts)
        taken = np.zeros((len(genotypes), width + 1))
        np.put_along_axis(taken, starts + genotypes, 1.0, axis=1)
        taken[:, starts] = 0.0
        taken[:, -1] = 1.0
        off = np.log(np.maximum(measured, 1e-12)) - np.log(np.maximum(predicted, 1e-12))
        prior = np.full(width + 1, (_NOISE / _OPTION) ** 2)
        prior[-1] = (_NOISE / _ALL) ** 2
        found = np.linalg.solve(taken.T @ taken + np.diag(prior), taken.T @ off)
        found[starts] = 0.0
        return cls(found, starts)

    def factors(self, genotypes: Ints) -> Floats:
        """(n, parameters) -> (n, axes): measured over predicted, as expected."""
        return np.asarray(np.exp(self.weights[self.starts + genotypes].sum(1) + self.weights[-1]))
