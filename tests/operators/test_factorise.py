"""Low-rank factors against numpy, tensorly and closed forms."""

import time

import numpy as np
import pytest
import tensorly
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorly.decomposition import parafac, partial_tucker
from torch import Tensor, nn

from paretune.errors import CandidateError
from paretune.operators.factorise import DECOMPOSE, FactorCache, factorise
from paretune.spaces.factors import Shape, factor_weights, full_ranks, ranks_keeping

KERNEL_METHODS = ("tucker2", "spatial_svd", "cp", "depthwise")


def whole(factors: nn.Sequential, into: int) -> np.ndarray:
    """The kernel that a chain of stride-1 convolutions computes: its answer to unit impulses."""
    size = 9
    impulses = torch.zeros(into, into, size, size)
    for c in range(into):
        impulses[c, c, size // 2, size // 2] = 1
    with torch.no_grad():
        bias = factors(torch.zeros(1, into, size, size))
        out = factors(impulses) - bias
    middle = size // 2
    near = out[:, :, middle - 1 : middle + 2, middle - 1 : middle + 2]
    return near.flip(2, 3).transpose(0, 1).double().numpy()


def weight(out: int = 12, into: int = 16, seed: int = 0) -> nn.Conv2d:
    torch.manual_seed(seed)
    return nn.Conv2d(into, out, 3, padding=1, bias=False)


def as_double(layer: nn.Module) -> np.ndarray:
    return layer.weight.detach().double().numpy()


@given(
    method=st.sampled_from([m for m in KERNEL_METHODS if m != "cp"]),
    kernel=st.sampled_from([(3, 3), (1, 3), (5, 3), (2, 2)]),
    stride=st.sampled_from([(1, 1), (2, 2), (1, 2)]),
    padding=st.sampled_from([(0, 0), (1, 1), (2, 1)]),
    dilation=st.sampled_from([(1, 1), (2, 2), (1, 2)]),
    mode=st.sampled_from(["zeros", "reflect", "circular"]),
    bias=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_full_ranks_compute_the_same(method, kernel, stride, padding, dilation, mode, bias) -> None:
    layer = nn.Conv2d(4, 5, kernel, stride, padding, dilation, bias=bias, padding_mode=mode).eval()
    ranks = full_ranks(method, Shape(5, 4, kernel))
    x = torch.randn(2, 4, 13, 12)
    with torch.no_grad():
        found = factorise(layer, method, ranks, "layer")(x)
        torch.testing.assert_close(found, layer(x), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("method", KERNEL_METHODS)
def test_same_padding_and_the_input_layer_stay(method: str) -> None:
    layer = nn.Conv2d(4, 5, 3, padding="same", dilation=2)
    before = layer.weight.clone()
    ranks = full_ranks(method, Shape(5, 4, (3, 3)))
    x = torch.randn(2, 4, 9, 9)
    with torch.no_grad():
        found = factorise(layer, method, ranks, "layer")(x)
        atol = 0.05 if method == "cp" else 2e-5  # CP at its largest rank is found to a tolerance
        torch.testing.assert_close(found, layer(x), atol=atol, rtol=1e-3)
    assert torch.equal(before, layer.weight)


def test_cp_on_a_kernel_that_is_of_low_rank_finds_it() -> None:
    generator = np.random.default_rng(0)
    parts = [generator.standard_normal((n, 4)) for n in (12, 10, 9)]
    exact = np.einsum("or,cr,tr->oct", *parts).reshape(12, 10, 3, 3)
    layer = nn.Conv2d(10, 12, 3, stride=2, padding=1)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(exact))
        x = torch.randn(2, 10, 9, 9)
        found, expected = factorise(layer, "cp", (4,), "layer")(x), layer(x)
    assert float((found - expected).norm() / expected.norm()) < 0.02


def test_cp_is_as_good_as_tensorly_left_to_converge() -> None:
    layer = weight()
    tensor = as_double(layer).reshape(12, 16, 9)
    best = min(
        float(
            np.linalg.norm(
                tensorly.cp_to_tensor(parafac(tensor, 8, 500, i, random_state=s)) - tensor
            )
        )
        for i, s in (("svd", 0), ("random", 1))
    )
    found = whole(factorise(layer, "cp", (8,), "layer"), 16).reshape(12, 16, 9)
    assert np.linalg.norm(found - tensor) <= 1.02 * best


def test_cp_of_a_wide_layer_ends_in_time_and_repeats() -> None:
    layer = nn.Conv2d(96, 96, 3)
    begin = time.process_time()
    first = factorise(layer, "cp", (80,), "layer")
    assert time.process_time() - begin < 10
    again = factorise(layer, "cp", (80,), "layer")
    assert all(
        torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True)
    )


@pytest.mark.parametrize("rank", [1, 5, 17])
def test_spatial_svd_is_the_closed_form(rank: int) -> None:
    layer = weight()
    kernel = as_double(layer)
    s = np.linalg.svd(np.transpose(kernel, (1, 2, 3, 0)).reshape(48, 36), compute_uv=False)
    found = whole(factorise(layer, "spatial_svd", (rank,), "layer"), 16)
    assert np.linalg.norm(found - kernel) == pytest.approx(np.sqrt((s[rank:] ** 2).sum()), rel=1e-4)
    shapes = [tuple(m.kernel_size) for m in factorise(layer, "spatial_svd", (rank,), "layer")]
    assert shapes == [(3, 1), (1, 3)]


@pytest.mark.parametrize("rank", [1, 3])
def test_depthwise_is_the_best_of_each_channel(rank: int) -> None:
    layer = weight()
    kernel = as_double(layer)
    left = 0.0
    for c in range(16):
        s = np.linalg.svd(kernel[:, c].reshape(12, 9), compute_uv=False)
        left += (s[rank:] ** 2).sum()
    factors = factorise(layer, "depthwise", (rank,), "layer")
    assert factors[0].groups == 16 and factors[0].out_channels == 16 * rank
    found = whole(factors, 16)
    assert np.linalg.norm(found - kernel) == pytest.approx(np.sqrt(left), rel=1e-4)


def test_tucker_is_as_good_as_tensorly() -> None:
    layer = weight()
    kernel = as_double(layer)
    (core, factors), _ = partial_tucker(kernel, rank=[6, 8], modes=[0, 1], init="svd")
    reference = tensorly.tenalg.multi_mode_dot(core, factors, modes=[0, 1])
    found = whole(factorise(layer, "tucker2", (6, 8), "layer"), 16)
    assert np.linalg.norm(found - kernel) <= np.linalg.norm(reference - kernel) * 1.001


def data_of(into: int, taps: int, count: int, seed: int) -> Tensor:
    """Correlated patches (count, into * taps), float64."""
    generator = np.random.default_rng(seed)
    mix = generator.standard_normal((into * taps, into * taps)) * np.logspace(0, -2, into * taps)
    return torch.from_numpy(generator.standard_normal((count, into * taps)) @ mix.T)


def output_error(found: np.ndarray, layer: nn.Module, data: Tensor) -> float:
    difference = (found - as_double(layer)).reshape(len(found), -1)
    return float(np.linalg.norm(data.numpy() @ difference.T))


def test_svd_for_the_data_is_reduced_rank_regression() -> None:
    """The smallest output error of any rank-r matrix: the outputs' singular values left out."""
    torch.manual_seed(0)
    layer = nn.Linear(20, 12)
    data = data_of(20, 1, 400, 0)
    outputs = data.numpy() @ as_double(layer).T
    best = np.sqrt((np.linalg.svd(outputs, compute_uv=False)[5:] ** 2).sum())
    first, last = factorise(layer, "svd", (5,), "layer", data.T @ data / 400)
    found = (last.weight @ first.weight).detach().double().numpy()
    assert output_error(found, layer, data) == pytest.approx(best, rel=1e-3)
    plain_first, plain_last = factorise(layer, "svd", (5,), "layer")
    plain = (plain_last.weight @ plain_first.weight).detach().double().numpy()
    assert output_error(plain, layer, data) > 1.5 * best


@pytest.mark.parametrize(
    ("method", "ranks"),
    [("tucker2", (6, 8)), ("spatial_svd", (8,)), ("cp", (12,)), ("depthwise", (2,))],
)
@pytest.mark.parametrize("seed", range(2))
def test_factors_for_the_data_change_the_outputs_less(method, ranks, seed) -> None:
    layer, data = weight(seed=seed), data_of(16, 9, 1000, seed)
    plain = whole(factorise(layer, method, ranks, "layer"), 16)
    fitted = whole(factorise(layer, method, ranks, "layer", data.T @ data / 1000), 16)
    assert output_error(fitted, layer, data) < 0.9 * output_error(plain, layer, data)


@pytest.mark.parametrize("method", KERNEL_METHODS)
def test_the_identity_metric_is_the_plain_norm(method: str) -> None:
    layer = weight()
    ranks = tuple(max(1, r // 3) for r in full_ranks(method, Shape(12, 16, (3, 3))))
    plain = whole(factorise(layer, method, ranks, "layer"), 16)
    even = whole(factorise(layer, method, ranks, "layer", torch.eye(144).double()), 16)
    kernel = as_double(layer)
    limit = 1.02 * np.linalg.norm(plain - kernel)
    assert np.linalg.norm(even - kernel) <= limit


@given(
    method=st.sampled_from(KERNEL_METHODS),
    out=st.integers(2, 9),
    into=st.integers(2, 9),
    kernel=st.sampled_from([(3, 3), (1, 3), (5, 2)]),
    data=st.data(),
)
@settings(max_examples=40, deadline=None)
def test_predicted_weights_are_those_of_the_layers(method, out, into, kernel, data) -> None:
    shape = Shape(out, into, kernel)
    ranks = tuple(data.draw(st.integers(1, m)) for m in full_ranks(method, shape))
    factors = factorise(nn.Conv2d(into, out, kernel, bias=False), method, ranks, "layer")
    assert sum(p.numel() for p in factors.parameters()) == factor_weights(method, ranks, shape)


@pytest.mark.parametrize("energy", [0.99, 0.9, 0.6])
def test_ranks_that_keep_energy_are_the_smallest_that_do(energy: float) -> None:
    kernel = as_double(weight())

    def smallest(matrix: np.ndarray) -> int:
        s = np.linalg.svd(matrix, compute_uv=False) ** 2
        return next(r for r in range(1, len(s) + 1) if s[:r].sum() >= energy * s.sum())

    tensor = torch.from_numpy(kernel)
    expected = (
        smallest(kernel.reshape(12, -1)),
        smallest(kernel.transpose(1, 0, 2, 3).reshape(16, -1)),
    )
    assert ranks_keeping("tucker2", energy, tensor) == expected
    columns = kernel.transpose(0, 3, 1, 2).reshape(36, 48)
    assert ranks_keeping("spatial_svd", energy, tensor) == (smallest(columns),)
    flat = kernel.reshape(12, -1)
    assert ranks_keeping("svd", energy, torch.from_numpy(flat)) == (smallest(flat),)
    (r,) = ranks_keeping("depthwise", energy, tensor)
    kept = whole(factorise(weight(), "depthwise", (r,), "layer"), 16)
    assert np.linalg.norm(kernel - kept) ** 2 <= (1 - energy + 1e-6) * np.linalg.norm(kernel) ** 2
    if r > 1:
        less = whole(factorise(weight(), "depthwise", (r - 1,), "layer"), 16)
        assert np.linalg.norm(kernel - less) ** 2 > (1 - energy) * np.linalg.norm(kernel) ** 2


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(CandidateError, match=r"body\.3: svd rank 99 exceeds the layer's 4"):
        factorise(nn.Linear(8, 4), "svd", (99,), "body.3")
    with pytest.raises(CandidateError, match="stem: tucker2 rank 5x2 exceeds the layer's 4x4"):
        factorise(nn.Conv2d(4, 4, 3), "tucker2", (5, 2), "stem")
    with pytest.raises(CandidateError, match=r"wide: a grouped convolution \(2 groups\)"):
        factorise(nn.Conv2d(4, 4, 3, groups=2), "spatial_svd", (1,), "wide")
    with pytest.raises(
        CandidateError, match="stem: a 3x3 convolution cannot be factorised by 'svd'"
    ):
        factorise(nn.Conv2d(4, 4, 3), "svd", (1,), "stem")
    with pytest.raises(CandidateError, match="pool: ReLU cannot"):
        factorise(nn.ReLU(), "svd", (1,), "pool")
    broken = nn.Conv2d(4, 4, 3)
    with torch.no_grad():
        broken.weight[0, 0] = float("nan")
    for method in KERNEL_METHODS:
        ranks = (2, 2) if method == "tucker2" else (2,)
        with pytest.raises(CandidateError, match="stem: its weights are not finite"):
            factorise(broken, method, ranks, "stem")


def test_layers_of_zeros_and_the_cache() -> None:
    cache = FactorCache()
    for method in DECOMPOSE:
        layer = nn.Conv2d(4, 4, 1 if method == "svd" else 3)
        ranks = (2, 2) if method == "tucker2" else (2,)
        with torch.no_grad():
            layer.weight.zero_()
            x = torch.randn(1, 4, 6, 6)
            found = cache.factorise(layer, method, ranks, "layer")
            torch.testing.assert_close(found(x), layer(x))
            again = cache.factorise(layer, method, ranks, "layer")
        assert again is not found and torch.equal(again[0].weight, found[0].weight)
