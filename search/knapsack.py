"""The best combination of options when damage and cost are sums of small tables: solved exactly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.intp]

LARGEST = 1 << 16
"""Entries of an intermediate table (for one trade-off) up to which elimination is used."""
_ROUNDS = 30


@dataclass(frozen=True, eq=False)
class Factor:
    """One small table of a sum: what the options of a few parameters contribute together.

    scope: indices of the parameters, ascending. table: (options of each ..., quantities).
    """

    scope: tuple[int, ...]
    table: Floats


def total(factors: Sequence[Factor], genotypes: Ints) -> Floats:
    """The sum of all factors for each genotype: (n, parameters) -> (n, quantities)."""
    out = np.zeros((len(genotypes), factors[0].table.shape[-1] if factors else 0))
    for factor in factors:
        out += factor.table[tuple(genotypes[:, i] for i in factor.scope)]
    return out


class Knapsack:
    """A multiple-choice knapsack over factors: one option a parameter, any trade-off of quantities.

    The relaxation with Lagrange multipliers (Everett 1963, "Generalized Lagrange Multiplier
    Method") turns every budget into a trade-off, and one trade-off is minimised exactly by
    eliminating one parameter after another (Dechter 1999, "Bucket elimination"): what the options
    of one block do to each other is enumerated, independent blocks cost nothing. Where a network
    ties so many groups together that a table would outgrow memory, parameters are improved in turn
    instead (a local optimum). All trade-offs are solved at once.
    """

    def __init__(self, counts: Sequence[int], factors: Sequence[Factor]) -> None:
        self.counts = tuple(counts)
        self._factors = merged(factors)
        self._order = _elimination_order(self.counts, tuple(f.scope for f in self._factors))

    @property
    def exact(self) -> bool:
        """Whether solutions are global optima of their trade-off."""
        return self._order is not None

    def solve(self, weights: Floats) -> Ints:
        """The genotype with the least weighted sum, for each trade-off.

        weights: (trade-offs, quantities), not negative -> (trade-offs, parameters).
        """
        tables = [(f.scope, np.moveaxis(f.table @ weights.T, -1, 0).copy()) for f in self._factors]
        if self._order is None:
            return self._improve(tables, len(weights))
        return self._eliminate(tables, len(weights), self._order)

    def _eliminate(
        self, tables: list[tuple[tuple[int, ...], Floats]], count: int, order: Sequence[int]
    ) -> Ints:
        """Minimise parameters out in turn, then read the choices off in reverse."""
        choices: list[tuple[int, tuple[int, ...], Ints]] = []
        for name in order:
            mine = [t for t in tables if name in t[0]]
            tables = [t for t in tables if name not in t[0]]
            scope = tuple(sorted({i for s, _ in mine for i in s} - {name}))
            joint = np.zeros((count, *(self.counts[i] for i in scope), self.counts[name]))
            for part, table in mine:
                joint += _aligned(table, part, (*scope, name))
            best = joint.argmin(-1)
            choices.append((name, scope, best))
            tables.append((scope, np.take_along_axis(joint, best[..., None], -1)[..., 0]))
        found = np.zeros((count, len(self.counts)), dtype=np.intp)
        rows = np.arange(count)
        for name, scope, best in reversed(choices):
            found[:, name] = best[(rows, *(found[:, i] for i in scope))]
        return found

    def _improve(self, tables: list[tuple[tuple[int, ...], Floats]], count: int) -> Ints:
        """Iterated conditional modes from both ends of the space, the better of the two."""
        rows = np.arange(count)
        touching = [[t for t in tables if i in t[0]] for i in range(len(self.counts))]
        best, value = np.zeros((count, len(self.counts)), dtype=np.intp), np.full(count, np.inf)
        for start in (np.zeros(len(self.counts), int), np.asarray(self.counts) - 1):
            found = np.tile(start, (count, 1))
            for _ in range(_ROUNDS):
                before = found.copy()
                for name, mine in enumerate(touching):
                    sums = np.zeros((count, self.counts[name]))
                    for scope, table in mine:
                        place = [rows[:, None], *(found[:, i][:, None] for i in scope)]
                        place[1 + scope.index(name)] = np.arange(self.counts[name])[None, :]
                        sums += table[tuple(place)]
                    found[:, name] = sums.argmin(1)
                if np.array_equal(before, found):
                    break
            reached = np.zeros(count)
            for scope, table in tables:
                reached += table[(rows, *(found[:, i] for i in scope))]
            better = reached < value
            best[better], value[better] = found[better], reached[better]
        return best


def merged(factors: Sequence[Factor]) -> list[Factor]:
    """Factors whose scope lies in another's are added into it."""
    kept: list[Factor] = []
    for factor in sorted(factors, key=lambda f: -len(f.scope)):
        host = next((k for k, f in enumerate(kept) if set(factor.scope) <= set(f.scope)), None)
        if host is None:
            kept.append(Factor(factor.scope, factor.table.astype(np.float64)))
            continue
        inside = kept[host]
        shape = tuple(
            n if i in factor.scope else 1
            for i, n in zip(inside.scope, inside.table.shape, strict=False)
        )
        table = inside.table + factor.table.reshape(*shape, factor.table.shape[-1])
        kept[host] = Factor(inside.scope, table)
    return kept


def _aligned(table: Floats, scope: Sequence[int], wanted: Sequence[int]) -> Floats:
    """``table`` (trade-offs, options of ``scope`` ...) with the axes of ``wanted``; absent: 1."""
    axes = [1 + scope.index(i) for i in wanted if i in scope]
    moved = table.transpose(0, *axes)
    sizes = iter(moved.shape[1:])
    return moved.reshape(len(table), *(next(sizes) if i in scope else 1 for i in wanted))


@lru_cache(maxsize=64)
def _elimination_order(
    counts: tuple[int, ...], scopes: tuple[tuple[int, ...], ...]
) -> tuple[int, ...] | None:
    """Parameters, the one whose joint table is smallest first; None if one outgrows LARGEST."""
    live = [set(s) for s in scopes]
    left, order = set(range(len(counts))), []
    while left:
        joint = {i: set().union({i}, *(s for s in live if i in s)) for i in left}
        sizes = {i: float(np.prod([counts[j] for j in joint[i]])) for i in left}
        name = min(left, key=lambda i: (sizes[i], i))
        if sizes[name] > LARGEST:
            return None
        live = [s for s in live if name not in s] + [joint[name] - {name}]
        left.remove(name)
        order.append(name)
    return tuple(order)
