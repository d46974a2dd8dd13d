"""Layers refitted at once: against least squares, the full refit, and what memory must not do."""

import copy

import numpy as np
import pytest
import torch
from small_networks import NETWORKS, build
from torch import Tensor, nn
from torch.nn import functional

from paretune.operators.answers import record_answers
from paretune.operators.compress import Compressor
from paretune.operators.layer_fits import EXAMPLES, LayerFits
from paretune.operators.reconstruct import Rank
from paretune.spaces.choices import Choices
from paretune.spaces.discover import discover
from paretune.spaces.plan import METHODS
from paretune.tasks.compress_section import CompressSection

FIT = CompressSection(normalise="none")


class Chain(nn.Module):
    """Convolutions with biases and a linear layer: nothing else could make up for an error."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 12, 3, padding=1)
        self.b = nn.Conv2d(12, 8, 3, stride=2, padding=1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(functional.relu(self.b(functional.relu(self.a(x)))).mean((2, 3)))


@pytest.fixture(scope="module")
def chain() -> tuple:
    torch.manual_seed(0)
    network = Chain().eval()
    inputs = torch.randn(96, 3, 8, 8) + 0.3
    space = discover(network, inputs[:1], Choices(rank_methods=tuple(METHODS)))
    return network, space, inputs, Compressor(network, inputs[:1], space, inputs, FIT)


def test_a_reader_of_cut_channels_is_the_least_squares_solution(chain: tuple) -> None:
    """All places of every image are seen, so numpy on the whole im2col matrix is the answer."""
    network, space, inputs, compressor = chain
    work = compressor.shape(space.plan({"keep:a": 1}))
    with torch.no_grad():
        hidden = functional.relu(network.a(inputs))
        target = network.b(hidden)
        kept = hidden[:, work.kept["a"]]
        columns = functional.unfold(kept, 3, padding=1, stride=2)
        found = work.network.b(kept)
    x = columns.permute(0, 2, 1).reshape(-1, columns.shape[1]).double().numpy()
    y = target.permute(0, 2, 3, 1).reshape(-1, 8).double().numpy()
    solution, *_ = np.linalg.lstsq(np.c_[x, np.ones(len(x))], y, rcond=None)
    best = np.square(np.c_[x, np.ones(len(x))] @ solution - y).mean()
    assert float((found - target).square().mean()) == pytest.approx(best, rel=2e-3)
    with torch.no_grad():
        cut = functional.conv2d(kept, network.b.weight[:, work.kept["a"]], network.b.bias, 2, 1)
    assert float((cut - target).square().mean()) > 1.2 * best


@pytest.mark.parametrize("method", [m for m in METHODS if m != "svd"])
def test_behind_unchanged_layers_it_is_the_full_refit(chain: tuple, method: str) -> None:
    _, space, inputs, compressor = chain
    layer = next(x for x in space.layers if x.name == "b")
    option = 1 + [o.method for o in layer.rank_options].index(method)
    plan = space.plan({"rank:b": option})
    assert plan.layers["b"].method == method and len(inputs) <= EXAMPLES
    with torch.no_grad():
        quick = compressor.shape(plan).network(inputs)
        full = compressor.compress(plan, quantised=False).network(inputs)
        whole = compressor.original(inputs)
    assert float((quick - full).abs().max()) < 0.02 * float((full - whole).abs().max())


def test_a_linear_layer_behind_unchanged_ones_is_the_full_refit() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 12), nn.Linear(12, 5))
    inputs = torch.randn(EXAMPLES, 10)
    space = discover(network.eval(), inputs[:1], prune=False)
    plan = space.plan({"rank:2": len(space.layers[1].rank_options)})
    compressor = Compressor(network, inputs[:1], space, inputs, FIT)
    with torch.no_grad():
        quick = compressor.shape(plan).network(inputs)
        full = compressor.compress(plan, quantised=False).network(inputs)
    assert plan.layers["2"].method == "svd"
    torch.testing.assert_close(quick, full, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_takes_the_shapes_of_the_full_form(name: str) -> None:
    network, example = build(name)
    before = copy.deepcopy(network.state_dict())
    space = discover(network, example, Choices(rank_methods=tuple(METHODS)))
    torch.manual_seed(1)
    inputs = torch.randn(48, *example.shape[1:])
    compressor = Compressor(network, example, space, inputs)
    for level in (1, 3):
        plan = space.plan({n: min(level, c - 1) for n, c in space.parameters.items()})
        small, full = compressor.shape(plan), compressor.compress(plan, quantised=False)
        shapes = [{n: t.shape for n, t in w.network.state_dict().items()} for w in (small, full)]
        assert shapes[0] == shapes[1] and small.kept == full.kept
        with torch.no_grad():
            assert bool(small.network(inputs).isfinite().all())
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())


def test_layers_are_made_once_and_given_as_copies(chain: tuple, monkeypatch) -> None:
    network, space, inputs, compressor = chain
    plan = space.plan({"keep:a": 1, "keep:b": 1, "rank:b": 1})
    first = compressor.shape(plan).network
    before = copy.deepcopy(first.state_dict())
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.zero_()

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("made again")

    monkeypatch.setattr(LayerFits, "_make", refuse)
    again = compressor.shape(plan).network.state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in before.items())


def test_memory_is_bounded(chain: tuple) -> None:
    network, _, inputs, _ = chain
    fits = LayerFits(network, record_answers(network, inputs), inputs, most_bytes=1)
    rank = Rank("tucker2", (3, 3))
    first = fits.layer("b", network.b, (), (), rank)
    fits.layer("b", network.b, (), (), Rank("tucker2", (2, 2)))
    assert len(fits._made) == 1
    again = fits.layer("b", network.b, (), (), rank)
    assert all(
        torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True)
    )
