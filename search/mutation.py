"""Changes of tried genotypes: steps, crossover by block, and swaps that keep the budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from .knapsack import Floats, Ints

_CROSSED, _BLOCK = 0.3, 0.3  # share of children with two parents; of blocks from the second
_SMALL = 0.8  # share of changes that go one option up or down
_MOST_CHANGES = 4
_PRICED = 256  # parents whose moves' prices are kept


def steps(
    rng: np.random.Generator, parents: Ints, count: int, counts: Ints, blocks: Ints
) -> tuple[Ints, Ints]:
    """``count`` children of random ``parents`` (n, parameters), and whose children they are.

    One to four parameters are changed, mostly by one option; a third of the children take some
    blocks from a second parent first. counts: options a parameter; blocks: block a parameter.
    """
    origin = rng.integers(len(parents), size=count)
    children = parents[origin].copy()
    second = parents[rng.integers(len(parents), size=count)]
    crossed = rng.random((count, int(blocks.max()) + 1)) < _BLOCK
    crossed &= (rng.random(count) < _CROSSED)[:, None]
    children = np.where(crossed[:, blocks], second, children)
    free = np.flatnonzero(counts > 1)
    changes = rng.integers(1, _MOST_CHANGES + 1, size=count)
    rows = np.arange(count)
    for turn in range(_MOST_CHANGES):
        active = turn < changes
        where = free[rng.integers(len(free), size=count)]
        small = rng.random(count) < _SMALL
        step = children[rows, where] + np.where(rng.random(count) < 0.5, 1, -1)
        step = np.where(step < 0, 1, step)
        step = np.where(step >= counts[where], counts[where] - 2, step)
        anywhere = (rng.random(count) * counts[where]).astype(np.intp)
        value = np.where(small, step, anywhere)
        children[rows[active], where[active]] = value[active]
    return children, origin


class Swaps:
    """Pairs of changes: one parameter is compressed less, another more, for about the same budget.

    families: of each parameter (``keep``, ``bits``, ``rank`` ...); across: also pairs of two
    families, otherwise only within one.
    """

    def __init__(self, counts: Sequence[int], families: Sequence[str], across: bool = True) -> None:
        listed = [(i, k) for i, n in enumerate(counts) for k in range(n)]
        self._where = np.array([i for i, _ in listed], dtype=np.intp)
        self._option = np.array([k for _, k in listed], dtype=np.intp)
        names = {name: i for i, name in enumerate(dict.fromkeys(families))}
        family = np.array([names[f] for f in families])[self._where]
        self._priced: dict[bytes, Floats] = {}
        self._pairs = self._where[:, None] != self._where[None, :]
        if not across:
            self._pairs &= family[:, None] == family[None, :]

    def of(
        self,
        rng: np.random.Generator,
        parent: Ints,
        count: int,
        damages: Floats,
        ratios: Callable[[Ints], Floats],
    ) -> Ints:
        """Up to ``count`` swaps of one genotype (parameters,).

        damages: (parameters, options), weighted. ratios: (n, parameters) -> (n, axes). A loosened
        parameter is drawn by how much damage it heals for its cost, the tightened one by how
        little damage pays for it; what is weighed as cost is drawn anew for each call.
        """
        moves = np.flatnonzero(parent[self._where] != self._option)
        where, option = self._where[moves], self._option[moves]
        priced = self._priced.get(parent.tobytes())
        if priced is None:
            tried = np.repeat(parent[None, :], 1 + len(moves), axis=0)
            tried[np.arange(1, 1 + len(moves)), where] = option
            if len(self._priced) >= _PRICED:
                del self._priced[next(iter(self._priced))]
            priced = self._priced[parent.tobytes()] = ratios(tried)
        mix = rng.dirichlet(np.ones(priced.shape[1]))
        cost = (priced[1:] - priced[0]) @ mix
        harm = damages[where, option] - damages[where, parent[where]]
        loosen = np.flatnonzero((cost > 1e-6) & (harm < 0))
        tighten = np.flatnonzero((cost < -1e-6) & (harm >= 0))
        if not len(loosen) or not len(tighten):
            return np.zeros((0, len(parent)), dtype=np.intp)
        heal = np.log(-harm[loosen] / cost[loosen] + 1e-9)
        draw = heal[None, :] + rng.gumbel(size=(count, len(loosen)))
        first = loosen[draw.argmax(1)]
        left = cost[first][:, None] + cost[tighten][None, :]  # of the budget, after both
        fits = (left <= 0.15 * cost[first][:, None]) & self._pairs[
            np.ix_(moves[first], moves[tighten])
        ]
        price = -np.log(harm[tighten] + 1e-6)[None, :] + rng.gumbel(size=left.shape)
        price = np.where(fits, price, -np.inf)
        found = np.flatnonzero(fits.any(1))
        second = tighten[price[found].argmax(1)]
        children = np.repeat(parent[None, :], len(found), axis=0)
        rows = np.arange(len(found))
        children[rows, where[first[found]]] = option[first[found]]
        children[rows, where[second]] = option[second]
        return children
