"""Channels that go one by one while their readers are refitted: against plain least squares."""

from itertools import combinations

import numpy as np
import pytest
import torch
from torch import nn

from paretune.operators import surgeon
from paretune.operators.importance import channel_importance, gather
from paretune.operators.surgeon import patch_moments, removal_order
from paretune.spaces.choices import Choices
from paretune.spaces.discover import discover


@pytest.fixture(autouse=True)
def exactly(monkeypatch):
    monkeypatch.setattr(surgeon, "RIDGE", 1e-6)
    monkeypatch.setattr(surgeon, "PLACES", 10_000)  # every place


def two_layers(seed=0, hidden=6, kernel=3):
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Conv2d(3, hidden, kernel, padding=kernel // 2),
        nn.ReLU(),
        nn.Conv2d(hidden, 5, kernel, padding=kernel // 2),
    )
    inputs = torch.randn(20, 3, 6, 6)
    (group,) = discover(network.eval(), inputs[:1], Choices()).groups
    return network, inputs, group


def refitted_error(network, inputs, gone):
    """What numpy's least squares cannot make up for without the channels ``gone``."""
    with torch.no_grad():
        x = nn.functional.unfold(network[1](network[0](inputs)), 3, padding=1)
    x = x.transpose(1, 2).flatten(0, 1).double().numpy()
    x = x - x.mean(0)
    y = x @ network[2].weight.detach().flatten(1).double().numpy().T
    left = np.delete(x.reshape(len(x), -1, 9), list(gone), 1).reshape(len(x), -1)
    fit, *_ = np.linalg.lstsq(left, y, rcond=None)
    return np.square(y - left @ fit).sum()


@pytest.mark.parametrize("seed", [0, 1])
def test_the_first_to_go_is_the_one_whose_loss_is_made_up_for_best(seed):
    network, inputs, group = two_layers(seed)
    when = removal_order(network, group, patch_moments(network, inputs))
    alone = [refitted_error(network, inputs, [c]) for c in range(6)]
    assert int(when.argmin()) == int(np.argmin(alone))
    gone = [int(when.argmin())]
    after = {c: refitted_error(network, inputs, [*gone, c]) for c in range(6) if c not in gone}
    assert int((when == 1).nonzero()) == min(after, key=after.get)


def test_what_remains_is_nearly_the_best_there_is():
    network, inputs, group = two_layers(2)
    when = removal_order(network, group, patch_moments(network, inputs))
    mine = refitted_error(network, inputs, when.argsort()[:3].tolist())
    every = sorted(refitted_error(network, inputs, c) for c in combinations(range(6), 3))
    assert mine <= every[2]  # of 20


def test_a_channel_that_another_can_stand_in_for_goes_first():
    network, inputs, group = two_layers(3)
    with torch.no_grad():  # channel 4 = twice channel 1, and the loudest of all
        network[0].weight[4], network[0].bias[4] = 8 * network[0].weight[1], 8 * network[0].bias[1]
    method, evidence = gather(network, "obs", inputs)
    order = channel_importance(network, group, method, evidence).argsort().tolist()
    assert order[0] in (1, 4)
    rms = channel_importance(network, group, *gather(network, "activation", inputs))
    assert int(rms.argmax()) == 4


def test_several_channels_a_step_in_a_wide_group(monkeypatch):
    network, inputs, group = two_layers(4, hidden=12)
    moments = patch_moments(network, inputs)
    monkeypatch.setattr(surgeon, "STEPS", 5)
    when = removal_order(network, group, moments)
    assert sorted(when.tolist()) == list(range(12))
    alone = [refitted_error(network, inputs, [c]) for c in range(12)]
    assert set(np.argsort(alone)[:3]) == {int((when == k).nonzero()) for k in range(3)}


def test_without_a_reader_magnitudes_decide():
    network, inputs, group = two_layers()
    expected = channel_importance(network, group, "l2")
    assert torch.equal(channel_importance(network, group, "obs", {}), expected)


def test_very_wide_readers_are_ranked_channel_by_channel(monkeypatch):
    network, inputs, group = two_layers(5)
    monkeypatch.setattr("paretune.operators.sampling.WIDEST", 30)  # less than 6 * 9
    moments = patch_moments(network, inputs)
    assert removal_order(network, group, moments) is None
    expected = channel_importance(network, group, *gather(network, "activation", inputs))
    torch.testing.assert_close(channel_importance(network, group, "obs", moments), expected)


def test_a_linear_reader_behind_a_flatten():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 4, 3)).eval()
    inputs = torch.randn(200, 1, 4, 4)
    (group,) = discover(network, inputs[:1], Choices()).groups
    when = removal_order(network, group, patch_moments(network, inputs))
    with torch.no_grad():
        x = network[:3](inputs).double().numpy()
    x = x - x.mean(0)
    y = x @ network[3].weight.detach().double().numpy().T
    errors = []
    for c in range(4):
        left = np.delete(x.reshape(len(x), 4, 4), c, 1).reshape(len(x), -1)
        errors.append(np.square(y - left @ np.linalg.lstsq(left, y, rcond=None)[0]).sum())
    assert int(when.argmin()) == int(np.argmin(errors))


class Dense(nn.Module):
    """Every layer reads what all layers before it gave, side by side, as in DenseNet."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 4, 3, padding=1)
        self.b = nn.Conv2d(4, 5, 1)
        self.c = nn.Conv2d(9, 4, 1)
        self.d = nn.Conv2d(13, 6, 3, padding=1)

    def inside(self, x):
        x = torch.relu(self.a(x))
        x = torch.cat([torch.relu(self.b(x)), x], 1)
        return x, torch.cat([x, torch.relu(self.c(x))], 1)

    def forward(self, x):
        return self.d(self.inside(x)[1])


def test_readers_of_a_concatenation_are_refitted_on_all_that_they_read():
    torch.manual_seed(0)
    network, inputs = Dense().eval(), torch.randn(30, 3, 6, 6)
    group = next(g for g in discover(network, inputs[:1], Choices()).groups if g.name == "b")
    when = removal_order(network, group, patch_moments(network, inputs))

    with torch.no_grad():
        reads_c, reads_d = network.inside(inputs)
    patches = [
        (reads_c, network.c.weight, 1),
        (nn.functional.unfold(reads_d, 3, padding=1), network.d.weight, 9),
    ]

    def error(gone):
        total = 0.0
        for x, weight, taps in patches:
            x = x.flatten(2).transpose(1, 2).flatten(0, 1).double().numpy()
            x = x - x.mean(0)
            y = x @ weight.detach().flatten(1).double().numpy().T
            left = np.delete(x.reshape(len(x), -1, taps), gone, 1).reshape(len(x), -1)
            fit = left @ np.linalg.lstsq(left, y, rcond=None)[0]
            total += np.square(y - fit).sum() / np.square(y).sum()
        return total

    gone: list[int] = []
    for step in range(4):
        left = [c for c in range(5) if c not in gone]
        cheapest = min(left, key=lambda c: error([*gone, c]))
        assert int((when == step).nonzero()) == cheapest
        gone.append(cheapest)


def test_a_layer_that_many_groups_feed_is_inverted_once(monkeypatch):
    torch.manual_seed(0)
    network, inputs = Dense().eval(), torch.randn(10, 3, 6, 6)
    groups = discover(network, inputs[:1], Choices()).groups
    moments, sizes = patch_moments(network, inputs), []
    cholesky = torch.linalg.cholesky
    monkeypatch.setattr(
        torch.linalg, "cholesky", lambda matrix: sizes.append(len(matrix)) or cholesky(matrix)
    )
    for group in groups:
        assert removal_order(network, group, moments) is not None
    assert sorted(sizes) == [4, 9, 13 * 9]
    monkeypatch.setattr(surgeon, "MOST_BYTES", 1)  # only the latest is remembered
    again = [removal_order(network, group, patch_moments(network, inputs)) for group in groups]
    for group, order in zip(groups, again, strict=True):
        assert torch.equal(order, removal_order(network, group, moments))
