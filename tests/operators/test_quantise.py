"""Codebooks, powers of two, bias correction and learned rounding against independent references."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from torch import nn

from paretune.errors import CandidateError
from paretune.operators.bias_correction import correct_biases, output_means
from paretune.operators.codebook import apot_levels, kmeans_1d, to_apot, to_codebook
from paretune.operators.fake_quantise import batchnorms_behind
from paretune.operators.learned_rounding import learn_rounding
from paretune.operators.quantise import quantise
from paretune.targets.target import Bits
from paretune.targets.uniform import to_floats, to_integers, weight_grid
from paretune.tasks.compress_section import CompressSection


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.sampled_from([2, 4, 8, 16]), tail=st.booleans())
def test_codebook_is_as_good_as_that_of_scikit_learn(seed: int, count: int, tail: bool) -> None:
    rng = np.random.default_rng(seed)
    values = rng.standard_t(3, 600) if tail else rng.standard_normal(600)
    means, place = kmeans_1d(values, count)
    ours = np.square(values - means[place]).sum()
    theirs = KMeans(count, n_init=5, random_state=0).fit(values[:, None]).inertia_
    assert len(means) == count and ours <= 1.10 * theirs
    again = KMeans(count, init=means[:, None], n_init=1).fit(values[:, None])
    np.testing.assert_allclose(again.inertia_, ours, rtol=1e-6)  # no step of theirs improves it


def test_a_codebook_of_as_many_values_is_exact() -> None:
    weight = np.random.default_rng(0).integers(-2, 2, (4, 3, 3, 3)).astype(np.float32)
    np.testing.assert_array_equal(to_codebook(weight, 2), weight)
    many = np.random.default_rng(1).standard_normal((8, 4, 3, 3)).astype(np.float32)
    assert len(np.unique(to_codebook(many, 3))) == 8


def test_levels_are_those_of_the_paper() -> None:
    """Section 2.2: four bits, two terms {0, 1, 2^-2, 2^-4} (one bit is the sign, an odd one left)
    and its example of 4 unsigned bits has 16 distinct levels with spacing that is a power of 2."""
    five = apot_levels(5)  # 4 bits of magnitude: p0 of {0, 1, 1/4, 1/16}, p1 of {0, 1/2, 1/8, 1/32}
    sums = {a + b for a, b in itertools.product((0, 1, 1 / 4, 1 / 16), (0, 1 / 2, 1 / 8, 1 / 32))}
    np.testing.assert_allclose(five, np.array(sorted(sums)) / 1.5)
    assert len(five) == 16
    np.testing.assert_allclose(apot_levels(2), [0, 1])
    np.testing.assert_allclose(apot_levels(3), np.array([0, 1 / 4, 1 / 2, 1]))
    assert len(apot_levels(4)) == 8 and apot_levels(4)[0] == 0 and apot_levels(4)[-1] == 1


@pytest.mark.parametrize("bits", [2, 3, 4, 6])
def test_every_weight_goes_to_the_nearest_level_of_its_channel(bits: int) -> None:
    weight = np.random.default_rng(0).standard_normal((5, 4, 3, 3)).astype(np.float32)
    weight[2] = 0
    real, grid = to_apot(weight, bits)
    levels = apot_levels(bits)
    signed = np.unique(np.concatenate([levels, -levels]))
    assert not real[2].any()
    for before, after in zip(weight.reshape(5, -1), real.reshape(5, -1), strict=True):
        if not after.any():
            continue
        ratios = np.unique(np.abs(after))
        largest = ratios.max() / max(levels[levels > 0].max(), 1e-9)
        tops = [ratios.max() / level for level in levels[levels > 0]]
        fits = [t for t in tops if all(np.isclose(r / t, levels, atol=1e-4).any() for r in ratios)]
        assert fits, (bits, largest)
        nearest = min(
            np.abs(before - t * signed[np.abs(before[:, None] - t * signed).argmin(1)]).sum()
            for t in fits
        )
        assert np.abs(before - after).sum() <= nearest * 1.01 + 1e-3
    if bits <= 4:
        assert grid is not None
        np.testing.assert_array_equal(to_floats(to_integers(real, grid), grid), real)


def net() -> nn.Module:
    torch.manual_seed(0)
    made = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 6)),
    )
    made[1].running_mean.uniform_(-0.2, 0.2)
    made[1].running_var.uniform_(0.5, 1.5)
    return made.eval()


LAYERS = ("0", "3", "6")


def test_corrected_biases_give_the_float_means_back() -> None:
    network, inputs = net(), torch.randn(50, 3, 8, 8) + 0.5
    means = output_means(network, LAYERS, inputs)
    with torch.no_grad():
        expected = {"0": network[:2](inputs).mean((0, 2, 3)), "6": network(inputs).mean(0)}
        for layer in (network[0], network[3], network[6]):
            layer.weight.mul_(torch.rand_like(layer.weight) * 0.6 + 0.5)
        off = (network(inputs).mean(0) - expected["6"]).abs().max()
        correct_biases(network, means, inputs, batchnorms_behind(network, inputs[:1]))
        assert network[0].bias is None
        np.testing.assert_allclose(network[:2](inputs).mean((0, 2, 3)), expected["0"], atol=1e-5)
        np.testing.assert_allclose(network(inputs).mean(0), expected["6"], atol=1e-5)
    assert off > 0.01
    again = output_means(network, ("3", "6"), inputs)
    np.testing.assert_allclose(again["3"], means["3"], atol=1e-5)


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_learned_rounding_beats_the_nearest_and_stays_beside_it(kind: str) -> None:
    torch.manual_seed(0)
    if kind == "linear":
        layer, inputs = nn.Linear(24, 6), torch.randn(200, 8) @ torch.randn(8, 24)
    else:
        layer, inputs = (
            nn.Conv2d(4, 6, 3),
            torch.randn(40, 1, 6, 6) + 0.3 * torch.randn(40, 4, 6, 6),
        )
    weight = layer.weight.detach().numpy()
    grid = weight_grid(weight, 3)
    with torch.no_grad():
        expected = layer(inputs)
    learned = learn_rounding(layer, grid, 3, inputs, expected, iterations=400, seconds=20)
    nearest = to_integers(weight, grid, -3, 3)
    scale = grid.weight_scale.reshape(-1, *[1] * (weight.ndim - 1))
    assert np.abs(learned).max() <= 3
    assert (np.abs(learned - np.clip(weight / scale, -3, 3)) < 1 + 1e-4).all()

    def error(integers: np.ndarray) -> float:
        rounded = copy.deepcopy(layer)
        with torch.no_grad():
            rounded.weight.copy_(torch.from_numpy(to_floats(integers, grid)))
            out = rounded(inputs)
        return float((out - expected).square().mean())

    assert error(learned) < 0.8 * error(nearest)


@pytest.mark.parametrize("quantizer", ["uniform", "codebook", "apot"])
@pytest.mark.parametrize("pair", [(4, 32), (3, 8), (6, 32)])
def test_weights_take_as_few_values_as_their_bits(quantizer: str, pair: tuple[int, int]) -> None:
    network = net()
    bits = {name: Bits(*pair) for name in LAYERS}
    kinds = dict.fromkeys(LAYERS, quantizer)
    grids = quantise(network, bits, kinds, CompressSection(), torch.randn(20, 3, 8, 8))
    for name in LAYERS:
        weight = network.get_submodule(name).weight.detach().numpy()
        parts = [weight] if quantizer == "codebook" else list(weight)
        assert all(len(np.unique(part)) <= 2 ** pair[0] for part in parts)
        if name in grids:
            stored = to_floats(to_integers(weight, grids[name]), grids[name])
            np.testing.assert_allclose(stored, weight, rtol=1e-6)
        else:
            assert bits[name] == Bits(32, 32)


def test_plain_8_bits_are_left_to_the_exporter_and_nan_is_named() -> None:
    network, before = net(), net()
    bits = {name: Bits(8, 8) for name in LAYERS}
    assert quantise(network, bits, {}, CompressSection(), None) == {}
    assert torch.equal(network[0].weight, before[0].weight)
    assert set(quantise(network, bits, {}, CompressSection(ranges="mse"), None)) == set(LAYERS)
    with torch.no_grad():
        network[3].weight[0] = float("nan")
    with pytest.raises(CandidateError, match="^3: its weights are not finite"):
        quantise(network, {"3": Bits(4, 32)}, {}, CompressSection(), None)
