"""What every option costs, as small tables: thousands of genotypes are priced in a millisecond."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from types import EllipsisType
from typing import Protocol

import numpy as np

from ..spaces.plan import CompressionPlan
from .knapsack import Factor, Floats, Ints, merged, total

ADDITIVE = ("size_bytes", "params", "macs", "latency_ms")
"""What adds up over layers; ratios follow from these."""
MOST_PROBES = 400
"""Plans priced for one layer; where its options make more, channel counts are interpolated."""


class Costs(Protocol):
    """What prices a plan without touching the network."""

    def costs(self, plan: CompressionPlan) -> Mapping[str, float]:
        """Bytes, MACs, parameters, latency ... by name."""
        ...


class Tied(Protocol):
    """What is needed of a layer: the groups whose channels it makes and reads."""

    @property
    def name(self) -> str: ...
    @property
    def parts_out(self) -> Mapping[str, int]: ...
    @property
    def parts_in(self) -> Mapping[str, int]: ...


@dataclass(frozen=True, eq=False)
class CostTable:
    """Costs of genotypes as a sum of factors around the unchanged network.

    names: the quantities, e.g. ``size_bytes``, ``macs``; base: those of the unchanged network.
    Exact where the true cost is a sum over layers of what their own groups, bits and rank make of
    them, and over neighbours of what their bits do to each other (a conversion between two of
    them), at full width.
    """

    names: tuple[str, ...]
    base: Floats
    factors: tuple[Factor, ...]

    def costs(self, genotypes: Ints) -> Floats:
        """(n, parameters) -> (n, quantities), never below a thousandth of the base."""
        return np.maximum(self.base + total(self.factors, genotypes), 1e-3 * np.abs(self.base))

    @classmethod
    def probe(
        cls,
        model: Costs,
        plan: Callable[[Mapping[str, int]], CompressionPlan],
        parameters: Mapping[str, int],
        layers: Sequence[Tied],
    ) -> CostTable:
        """Price the options of one layer after another, the rest unchanged.

        plan: genotype -> plan. parameters: ``keep:<group>``, ``bits:<layer>``, ``rank:<layer>`` and
        any other ``<family>:<layer>`` -> number of options.
        """
        index = {name: i for i, name in enumerate(parameters)}
        counts = list(parameters.values())
        base = model.costs(plan({}))
        names = tuple(name for name in ADDITIVE if base.get(name, 0.0) > 0)
        zero: Floats = np.array([base[name] for name in names])

        def price(options: Mapping[int, int]) -> Floats:
            changed = {name: options[i] for name, i in index.items() if options.get(i)}
            found = model.costs(plan(changed))
            prices: Floats = np.array([found[name] for name in names]) - zero
            return prices

        ties: list[tuple[int, ...]] = []  # groups that meet in a layer
        own: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
        for layer in layers:
            groups = {f"keep:{g}" for g in (*layer.parts_out, *layer.parts_in)}
            held = tuple(sorted(index[g] for g in groups if g in index))
            mine = tuple(
                i for name, i in index.items()
                if name.partition(":")[2] == layer.name and not name.startswith("keep:")
            )  # fmt: skip
            ties += [pair for n in (1, 2) for pair in combinations(held, n)]
            own.append((held, mine))
        ties += [(i,) for name, i in index.items() if name.startswith("keep:")]
        listed = {i for _, mine in own for i in mine} | {i for tie in ties for i in tie}
        own += [((), (i,)) for i in index.values() if i not in listed]
        kept: dict[tuple[int, ...], Floats] = {}
        for tie in sorted(set(ties), key=lambda t: (len(t), t)):
            table = _priced(price, tie, counts, {})
            for inner in (s for n in range(1, len(tie)) for s in combinations(tie, n)):
                shape = [counts[i] if i in inner else 1 for i in tie]
                table = table - kept[inner].reshape(*shape, len(names))
            kept[tie] = table
        factors = [Factor(tie, table) for tie, table in kept.items()]
        factors += [_own(price, held, mine, counts) for held, mine in own if mine]
        bits = [index[b] for layer in layers if (b := f"bits:{layer.name}") in index]
        factors += [_between(price, tuple(sorted(two)), counts) for two in pairwise(bits)]
        return cls(names, zero, tuple(f for f in merged(factors) if np.any(f.table)))


def _between(
    price: Callable[[Mapping[int, int]], Floats], two: tuple[int, ...], counts: Sequence[int]
) -> Factor:
    """What the bits of two layers in a row cost beyond the sum of what each costs alone."""
    table = _priced(price, two, counts, {})
    return Factor(two, table - table[:, :1] - table[:1])


def _own(
    price: Callable[[Mapping[int, int]], Floats],
    held: tuple[int, ...],
    mine: tuple[int, ...],
    counts: Sequence[int],
) -> Factor:
    """What a layer's own options change, at every number of channels of its groups."""
    options = int(np.prod([counts[i] for i in mine]))
    whole = int(np.prod([counts[i] for i in held])) * options
    picks = {i: list(range(counts[i])) for i in held}
    if whole > MOST_PROBES:  # the ends only; between them the cost is close to multilinear
        picks = {i: sorted({0, counts[i] - 1}) for i in held}
    table = _priced(price, held + mine, counts, picks)
    unchanged: tuple[slice | EllipsisType, ...] = (..., *(slice(0, 1) for _ in mine), slice(None))
    table = table - table[unchanged]
    for axis, i in enumerate(held):
        if len(picks[i]) < counts[i]:
            share = np.linspace(0.0, 1.0, counts[i]).reshape(-1, *[1] * (table.ndim - axis - 1))
            first, last = table.take([0], axis), table.take([-1], axis)
            table = first + (last - first) * share
    order = np.argsort(held + mine, kind="stable")
    moved = table.transpose(*order, table.ndim - 1)
    return Factor(tuple(sorted(held + mine)), np.ascontiguousarray(moved))


def _priced(
    price: Callable[[Mapping[int, int]], Floats],
    scope: tuple[int, ...],
    counts: Sequence[int],
    picks: Mapping[int, Sequence[int]],
) -> Floats:
    """Cost differences of all combinations of some parameters' options (those in ``picks``)."""
    grids = [picks.get(i) or list(range(counts[i])) for i in scope]
    shape = tuple(len(g) for g in grids)
    rows = [
        price({i: g[k] for i, g, k in zip(scope, grids, place, strict=True)})
        for place in np.ndindex(*shape)
    ]
    return np.array(rows).reshape(*shape, -1)
