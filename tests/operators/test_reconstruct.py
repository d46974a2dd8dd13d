"""Layer-wise reconstruction against numpy's least squares, and what it must never do."""

import copy

import numpy as np
import pytest
import torch
from small_networks import NETWORKS, build
from torch import Tensor, nn
from torch.nn import functional

from paretune.operators.answers import PLACES, record_answers
from paretune.operators.compress import Compressor
from paretune.operators.curvature import output_curvature
from paretune.operators.refine import refine
from paretune.operators.sampling import Places, affordable
from paretune.operators.sums import WatchedSums
from paretune.spaces.choices import Choices
from paretune.spaces.discover import discover
from paretune.spaces.plan import METHODS
from paretune.spaces.space import SearchSpace
from paretune.tasks.compress_section import CompressSection

PLAIN = CompressSection(reconstruct=False, whiten=False)
FIT = CompressSection(reconstruct=True, whiten=True, normalise="none")


class Chain(nn.Module):
    """Two convolutions with biases and nothing else that could make up for an error."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 12, 3, padding=1)
        self.b = nn.Conv2d(12, 6, 3, stride=2, padding=1)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(functional.relu(self.b(functional.relu(self.a(x)))).mean((2, 3)))


def chain() -> tuple[Chain, SearchSpace, Tensor]:
    torch.manual_seed(0)
    network = Chain().eval()
    space = discover(network, torch.zeros(1, 3, 8, 8), Choices(rank_methods=tuple(METHODS)))
    return network, space, torch.randn(96, 3, 8, 8) + 0.3


@pytest.mark.parametrize(
    "module",
    [
        nn.Conv2d(4, 6, 3, stride=2, padding=1),
        nn.Conv2d(4, 6, (3, 2), padding=(0, 2), dilation=(2, 1)),
        nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"),
        nn.Linear(7, 5),
    ],
)
def test_patches_times_weights_are_the_outputs(module: nn.Module) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 4, 9, 8) if isinstance(module, nn.Conv2d) else torch.randn(3, 11, 7)
    with torch.no_grad():
        out = module(x)
        places = Places.draw(out, 5, torch.Generator().manual_seed(1))
        weight = module.weight.flatten(1)
        for images, patches in places.patches(module, x):
            expected = places.outputs(out)[images].flatten(0, 1)
            torch.testing.assert_close(
                patches @ weight.T + module.bias, expected, atol=1e-5, rtol=1e-4
            )


def test_a_reader_of_cut_channels_is_the_least_squares_solution() -> None:
    """All 16 places of every image are seen, so numpy on the whole im2col matrix is the answer."""
    network, space, inputs = chain()
    plan = space.plan({"keep:a": 1})
    small = Compressor(network, inputs[:1], space, inputs, FIT).compress(plan).network
    with torch.no_grad():
        target = network.b(functional.relu(network.a(inputs)))
        hidden = functional.relu(small.a(inputs))
        columns = functional.unfold(hidden, 3, padding=1, stride=2)
        found = small.b(hidden)
    x = columns.permute(0, 2, 1).reshape(-1, columns.shape[1]).double().numpy()
    y = target.permute(0, 2, 3, 1).reshape(-1, 6).double().numpy()
    solution, *_ = np.linalg.lstsq(np.c_[x, np.ones(len(x))], y, rcond=None)
    best = np.square(np.c_[x, np.ones(len(x))] @ solution - y).mean()
    error = float((found - target).square().mean())
    assert error == pytest.approx(best, rel=2e-3)
    plain = Compressor(
        network, inputs[:1], space, inputs, PLAIN.model_copy(update={"normalise": "none"})
    )
    before = plain.compress(plan).network
    with torch.no_grad():
        cut = before.b(functional.relu(before.a(inputs)))
    assert error < 0.8 * float((cut - target).square().mean())


def test_low_rank_factors_are_reduced_rank_regression() -> None:
    """Without curvature the best rank-r map has the singular values of the fitted outputs left."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 12), nn.Linear(12, 12))
    with torch.no_grad():  # an orthogonal head minds every direction of the outputs alike
        network[3].weight.copy_(torch.linalg.qr(torch.randn(12, 12))[0])
    network.eval()
    inputs = torch.randn(256, 10)
    space = discover(network, inputs[:1], prune=False)
    plan = space.plan({"rank:2": len(space.layers[1].rank_options)})
    (rank,) = plan.layers["2"].ranks
    small = Compressor(network, inputs[:1], space, inputs, FIT).compress(plan).network
    with torch.no_grad():
        hidden, target = network[:2](inputs), network[:3](inputs)
        error = (small[:3](inputs) - target).square().sum()
    centred = (hidden - hidden.mean(0)).double().numpy() @ network[2].weight.detach().numpy().T
    best = (np.linalg.svd(centred, compute_uv=False)[rank:] ** 2).sum()
    assert float(error) == pytest.approx(best, rel=0.1)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_and_method_is_reconstructed_without_touching_the_input(name: str) -> None:
    network, example = build(name)
    before = copy.deepcopy(network.state_dict())
    space = discover(network, example, Choices(rank_methods=tuple(METHODS)))
    torch.manual_seed(1)
    inputs = torch.randn(48, *example.shape[1:])
    compressor = Compressor(
        network, example, space, inputs, CompressSection(reconstruct=True, whiten=True)
    )
    plain = Compressor(network, example, space, inputs, PLAIN)
    with torch.inference_mode():
        same = compressor.compress(space.identity).network(inputs)
        assert (same - network(inputs)).abs().max() == 0
    for level in (1, 2, 3):
        plan = space.plan({n: min(level, c - 1) for n, c in space.parameters.items()})
        small, other = (c.compress(plan).network for c in (compressor, plain))
        count = [sum(p.numel() for p in n.parameters()) for n in (small, other)]
        assert count[0] == count[1]
        with torch.inference_mode():
            assert bool(small(inputs).isfinite().all())
            again = compressor.compress(plan).network
            assert torch.equal(again(inputs), small(inputs))
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())


def test_answers_come_nearer_on_inputs_not_seen() -> None:
    network, example = build("residual")
    torch.manual_seed(1)
    seen, unseen = torch.randn(2, 128, 3, 8, 8) * 2 + 0.5
    space = discover(network, example)
    plan = space.plan({"keep:a": 1, "rank:b": 1, "rank:c": 2})
    errors = []
    for options in (PLAIN, CompressSection(reconstruct=True, whiten=True)):
        small = Compressor(network, example, space, seen, options).compress(plan).network
        with torch.inference_mode():
            errors.append(float((small(unseen) - network(unseen)).square().mean()))
    assert errors[1] < 0.7 * errors[0]


def test_residual_sums_are_found_behind_batchnorm_and_projection() -> None:
    network, example = build("padded")
    torch.manual_seed(0)
    inputs = torch.randn(4, 3, 8, 8)
    answers = record_answers(network, inputs)
    assert set(answers.sums) == {"conv2"} and answers.normed == {"conv1"}
    other, _ = build("residual")
    assert set(record_answers(other, inputs).sums) == {"b", "c"}

    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            y += x
            return y

    block, seen = InPlace(), []

    def add_one(name: str, norm: str | None, rest: Tensor, total: Tensor) -> Tensor:
        seen.append((name, norm, rest.clone()))
        return total + 1

    with torch.no_grad():
        expected = block(inputs) + 1
        with WatchedSums(block, lambda m: isinstance(m, nn.Conv2d), add_one):
            found = block(inputs)
        again = block(inputs)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(again + 1, expected)
    assert seen[0][:2] == ("a", None)
    torch.testing.assert_close(seen[0][2], inputs)


def test_curvature_is_the_gauss_newton_matrix() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4)).eval()
    found = output_curvature(network, torch.randn(4000, 6))
    exact = network[1].weight.detach()
    torch.testing.assert_close(found["0"], exact.T @ exact, atol=0.05, rtol=0.05)
    torch.testing.assert_close(found["1"], torch.eye(4), atol=0.1, rtol=0.1)


def test_refining_draws_the_answers_nearer_and_leaves_the_flags() -> None:
    network, space, inputs = chain()
    plan = space.plan({"keep:a": 2})
    small = Compressor(network, inputs[:1], space, inputs, PLAIN).compress(plan).network
    flags = [p.requires_grad for p in small.parameters()]

    def error() -> float:
        with torch.inference_mode():
            return float((small(inputs) - network(inputs)).square().mean())

    before = error()
    refine(small, network, inputs, 60)
    assert error() < 0.5 * before
    assert flags == [p.requires_grad for p in small.parameters()]
    assert all(p.grad is None for p in (*small.parameters(), *network.parameters()))


def test_refining_starts_at_the_first_difference() -> None:
    network, _, inputs = chain()
    small = copy.deepcopy(network)
    with torch.no_grad():
        small.b.weight.mul_(0.8)
    refine(small, network, inputs, 10)
    assert torch.equal(small.a.weight, network.a.weight)
    assert torch.equal(small.a.bias, network.a.bias)
    assert not torch.equal(small.b.weight, 0.8 * network.b.weight)
    assert not torch.equal(small.head.weight, network.head.weight)
    again = copy.deepcopy(network)
    refine(again, network, inputs, 10)
    assert all(
        torch.equal(a, b) for a, b in zip(again.parameters(), network.parameters(), strict=True)
    )


def test_places_are_bounded() -> None:
    out = torch.randn(2, 3, 20, 20)
    places = Places.draw(out, PLACES, torch.Generator().manual_seed(0))
    assert places.outputs(out).shape == (2, PLACES, 3)
    pairs = {
        tuple(p) for p in zip(places.rows[0].tolist(), places.columns[0].tolist(), strict=True)
    }
    assert len(pairs) == PLACES


def test_large_outputs_allow_fewer_images() -> None:
    network = nn.Conv2d(1, 8, 1)
    assert affordable(network, torch.zeros(1, 1, 4, 4), 256) == 256
    assert affordable(network, torch.zeros(1, 1, 512, 512), 256) == (256 << 20) // (4 * 8 * 512**2)
    assert affordable(nn.Conv2d(1, 64, 1), torch.zeros(1, 1, 2048, 512), 256) == 8
