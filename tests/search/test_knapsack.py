"""The knapsack against enumeration, and cost tables against the prices they were made from."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paretune.search import knapsack as module
from paretune.search.cost_table import CostTable
from paretune.search.knapsack import Factor, Knapsack, total


@st.composite
def problems(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    counts = draw(st.lists(st.integers(1, 4), min_size=1, max_size=6))
    factors = [Factor((i,), rng.normal(size=(n, 2))) for i, n in enumerate(counts)]
    for _ in range(draw(st.integers(0, 6))):
        size = draw(st.integers(1, min(3, len(counts))))
        scope = tuple(sorted(rng.choice(len(counts), size, replace=False).tolist()))
        factors.append(Factor(scope, rng.normal(size=(*(counts[i] for i in scope), 2))))
    return counts, factors, rng.random((3, 2)) * 3


@settings(max_examples=60, deadline=None)
@given(problems())
def test_every_trade_off_is_solved_exactly(problem):
    counts, factors, weights = problem
    everything = np.array(list(product(*map(range, counts))))
    # the reference sums table entries one by one
    sums = np.array(
        [sum(f.table[tuple(g[i] for i in f.scope)] for f in factors) for g in everything]
    )
    assert np.allclose(total(factors, everything), sums)
    knapsack = Knapsack(counts, factors)
    assert knapsack.exact
    found = knapsack.solve(weights)
    reached = total(factors, found)
    for row, weight in zip(reached, weights, strict=True):
        assert row @ weight == pytest.approx((sums @ weight).min())


def test_too_tied_a_problem_is_improved_not_refused(monkeypatch):
    rng = np.random.default_rng(1)
    factors = [Factor((i, j), rng.normal(size=(3, 3, 1))) for i in range(6) for j in range(i)]
    factors = [Factor(tuple(sorted(f.scope)), f.table) for f in factors]
    everything = np.array(list(product(range(3), repeat=6)))
    values = total(factors, everything)[:, 0]
    module._elimination_order.cache_clear()
    monkeypatch.setattr(module, "LARGEST", 10)
    knapsack = Knapsack([3] * 6, factors)
    assert not knapsack.exact
    (found,) = knapsack.solve(np.ones((1, 1)))
    reached = total(factors, found[None])[0, 0]
    for i in range(6):  # no single change is better
        for k in range(3):
            other = found.copy()
            other[i] = k
            assert total(factors, other[None])[0, 0] >= reached - 1e-12
    assert reached <= np.quantile(values, 0.05)
    module._elimination_order.cache_clear()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_cost_table_is_exact_where_costs_add_up_over_layers(emulated, seed):
    network = emulated.Network(blocks=3)
    table = CostTable.probe(network, network.plan, network.parameters, network.layers)
    rng = np.random.default_rng(seed)
    genotypes = np.array([[rng.integers(n) for n in network.parameters.values()] for _ in range(4)])
    for row, found in zip(genotypes, table.costs(genotypes), strict=True):
        genotype = dict(zip(network.parameters, map(int, row), strict=True))
        true = network.costs(network.plan(genotype))
        assert found == pytest.approx([true[name] for name in table.names])


def test_conversions_between_neighbours_are_priced(emulated):
    """Two rows of layers may share all their bits and still differ in how often they change."""
    network = emulated.Network(blocks=3)

    class Converting:
        def costs(self, plan):
            bits = [plan.layers[layer.name].weight_bits < 32 for layer in network.layers]
            changes = sum(a != b for a, b in zip([False, *bits], bits, strict=False))
            return {**network.costs(plan), "latency_ms": 1.0 + 0.1 * changes}

    table = CostTable.probe(Converting(), network.plan, network.parameters, network.layers)
    names, column = list(network.parameters), table.names.index("latency_ms")
    rng = np.random.default_rng(0)
    for _ in range(20):
        genotype = {n: int(rng.integers(2)) for n in names if n.startswith("bits:")}
        row = np.array([[genotype.get(n, 0) for n in names]])
        true = Converting().costs(network.plan(genotype))["latency_ms"]
        assert table.costs(row)[0, column] == pytest.approx(true)


def test_interpolated_cost_tables_stay_close(emulated, monkeypatch):
    monkeypatch.setattr("paretune.search.cost_table.MOST_PROBES", 50)
    network = emulated.Network(blocks=3)
    table = CostTable.probe(network, network.plan, network.parameters, network.layers)
    rng = np.random.default_rng(0)
    genotypes = np.array(
        [[rng.integers(n) for n in network.parameters.values()] for _ in range(50)]
    )
    true = [
        [network.costs(network.plan(dict(zip(network.parameters, map(int, g), strict=True))))[n]
         for n in table.names]
        for g in genotypes
    ]  # fmt: skip
    assert np.abs(table.costs(genotypes) / true - 1).max() < 0.15
