"""Pruning, factorisation and BatchNorm against independent references."""

import copy

import numpy as np
import pytest
import torch
from small_networks import NETWORKS, build
from torch import nn

from paretune.errors import InputError
from paretune.operators.apply import apply
from paretune.operators.compress import Compressor
from paretune.operators.evidence import input_rms
from paretune.operators.factorise import factorise
from paretune.operators.importance import channel_importance
from paretune.operators.normalise import input_moments
from paretune.spaces.discover import discover
from paretune.spaces.shortcut import rewrite_shortcuts
from paretune.spaces.surgery import cut
from paretune.tasks.compress_section import CompressSection

EXACT = [name for name in NETWORKS if name != "perceptron"]  # LayerNorm sees the channels that go


def masked(network: nn.Module, groups, kept) -> nn.Module:
    """The dense network with the cut channels silenced: the reference for pruning."""
    network = copy.deepcopy(network)
    for group in groups:
        stay = set(kept.get(group.name, range(group.channels)))
        for member in group.members:
            if member.side != "out":
                continue
            module = network.get_submodule(member.module)
            gone = [
                e for e, c in zip(member.entries, member.channels, strict=True) if c not in stay
            ]
            with torch.no_grad():
                module.weight[gone] = 0
                if module.bias is not None:
                    module.bias[gone] = 0
    return network


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("seed", range(3))
def test_pruned_equals_masked_dense(name: str, seed: int) -> None:
    network, example = build(name, seed)
    network = rewrite_shortcuts(network, example)
    space = discover(network, example)
    generator = np.random.default_rng(seed)
    kept = {}
    for group in space.groups:
        part = group.channels // group.blocks
        places = generator.choice(part, max(1, part // 2), replace=False)
        kept[group.name] = sorted(int(b * part + p) for b in range(group.blocks) for p in places)
    small = copy.deepcopy(network)
    cut(small, space.groups, kept)
    inputs = torch.randn(4, *example.shape[1:])
    with torch.inference_mode():
        expected = masked(network, space.groups, kept)(inputs)
        found = small(inputs)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize("name", NETWORKS)
def test_the_identity_plan_changes_nothing_and_the_input_is_never_touched(name: str) -> None:
    network, example = build(name)
    before = copy.deepcopy(network.state_dict())
    space = discover(network, example)
    inputs = torch.randn(32, *example.shape[1:])
    compressor = Compressor(network, example, space, inputs)
    with torch.inference_mode():
        same = compressor.compress(space.identity).network(inputs)
        expected = network(inputs)
        strongest = space.plan({n: c - 1 for n, c in space.parameters.items()})
        assert compressor.compress(strongest).network(inputs).shape == expected.shape
    assert (same - expected).abs().max() == 0
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())


def test_svd_is_the_best_approximation_of_its_rank() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(20, 12)
    u, s, v = np.linalg.svd(layer.weight.detach().numpy().astype(np.float64))
    best = (u[:, :5] * s[:5]) @ v[:5]
    first, second = factorise(layer, "svd", (5,), "layer")
    merged = (second.weight @ first.weight).detach().numpy()
    np.testing.assert_allclose(merged, best, atol=1e-6)
    assert torch.equal(second.bias, layer.bias)


def test_magnitudes_match_torch_pruning() -> None:
    """On a group of one layer and its reader, L2 importance orders channels as its two norms do."""
    network, example = build("residual")
    space = discover(network, example)
    (group,) = [g for g in space.groups if g.name == "a"]
    for method, order in (("l1", 1), ("l2", 2)):
        out = network.a.weight.detach().flatten(1).norm(order, 1)
        into = network.b.weight.detach().transpose(0, 1).flatten(1).norm(order, 1)
        expected = out / out.mean() + into / into.mean()
        torch.testing.assert_close(channel_importance(network, group, method), expected)


def test_activation_importance_drops_a_channel_that_is_never_used() -> None:
    network, example = build("residual")
    with torch.no_grad():
        network.b.weight[:, 3] *= 1e-4
    space = discover(network, example)
    (group,) = [g for g in space.groups if g.name == "a"]
    rms = input_rms(network, torch.randn(64, 3, 8, 8))
    score = channel_importance(network, group, "activation", rms)
    assert int(score.argmin()) == 3


def test_plain_batchnorm_takes_the_measured_moments() -> None:
    network, example = build("padded")
    space = discover(network, example)
    inputs = torch.randn(64, 3, 8, 8) * 3 + 1
    compressor = Compressor(
        network, example, space, inputs, options=CompressSection(normalise="plain")
    )
    plan = space.plan({"keep:stem": 1} if "keep:stem" in space.parameters else {"keep:conv1": 1})
    small = compressor.compress(plan).network
    moments = input_moments(small, inputs)
    for name, (mean, var) in moments.items():
        module = small.get_submodule(name)
        torch.testing.assert_close(module.running_mean, mean, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(module.running_var, var, atol=1e-5, rtol=1e-4)


def test_differential_batchnorm_moves_by_the_difference() -> None:
    network, example = build("padded")
    space = discover(network, example)
    inputs = torch.randn(64, 3, 8, 8)
    compressor = Compressor(network, example, space, inputs)
    plan = space.plan({"rank:conv1": 1})
    assert plan.layers["conv1"].method == "tucker2"
    small = compressor.compress(plan).network
    old = input_moments(network, inputs)["bn1"]
    new = input_moments(small, inputs)["bn1"]
    expected_mean = network.bn1.running_mean + new[0] - old[0]
    expected_var = network.bn1.running_var * new[1] / old[1]
    torch.testing.assert_close(small.bn1.running_mean, expected_mean, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(small.bn1.running_var, expected_var, atol=1e-5, rtol=1e-4)


def test_padded_shortcuts_are_rewritten_exactly() -> None:
    network, example = build("padded")
    rewritten = rewrite_shortcuts(network, example)
    inputs = torch.randn(8, 3, 8, 8)
    with torch.inference_mode():
        assert (rewritten(inputs) - network(inputs)).abs().max() == 0
    assert type(rewritten.shortcut).__name__ == "ShortcutConv"
    assert "shortcut" in {p for g in discover(network, example).groups for p in g.producers()}


def test_bits_reach_every_factor_and_shortcut() -> None:
    network, example = build("padded")
    space = discover(network, example)
    genotype = {n: 1 for n in space.parameters if n.startswith(("bits:", "rank:conv1"))}
    made = Compressor(network, example, space).compress(space.plan(genotype))
    assert made.bits["conv1.0"].weight == made.bits["conv1.2"].activation == 8
    assert made.bits["head"].weight == 32
    assert made.bits["shortcut"].weight == made.bits["conv2"].weight


def test_apply_rebuilds_the_network_of_a_plan() -> None:
    network, example = build("residual")
    inputs = torch.randn(32, 3, 8, 8)
    space = discover(network, example)
    plan = space.plan({"keep:a": 2, "rank:b": 1, "bits:a": 1})
    expected = Compressor(network, example, space, inputs).compress(plan).network
    rebuilt = apply(network, plan.to_json(), example, inputs)
    with torch.inference_mode():
        assert torch.equal(rebuilt(inputs), expected(inputs))
    with pytest.raises(InputError, match="'nowhere'"):
        apply(network, {"version": 1, "groups": {"nowhere": 3}, "layers": {}}, example)


def test_only_what_a_plan_needs_is_looked_at() -> None:
    network, example = build("residual")
    torch.manual_seed(0)
    calibration = torch.randn(40, *example.shape[1:])
    compressor = Compressor(network, example, discover(network, example), calibration)
    runs: list[int] = []

    def note(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        if module is compressor.original:  # copies take the hook along
            runs.append(len(args[0]))

    compressor.original.register_forward_pre_hook(note)
    space = compressor.space
    bits = {name: 1 for name in space.parameters if name.startswith("bits:")}
    compressor.compress(space.plan(bits))
    assert bits and runs == []
    cut_one = next(name for name in space.parameters if name.startswith("keep:"))
    compressor.compress(space.plan({cut_one: 1}))
    seen = len(runs)
    assert seen > 0
    compressor.compress(space.plan({cut_one: 2}))
    assert len(runs) == seen  # remembered
