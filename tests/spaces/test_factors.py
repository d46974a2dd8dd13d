"""Rank options: several methods a layer, by ratio and by energy, and what is refused."""

import functools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_networks import NETWORKS, build
from torch import nn

from paretune.errors import InputError
from paretune.operators.compress import Compressor
from paretune.spaces.choices import Choices
from paretune.spaces.discover import discover
from paretune.spaces.plan import METHODS, CompressionPlan, LayerChoice
from paretune.spaces.space import SearchSpace
from paretune.tasks.job import load_job

EVERY = Choices(rank_methods=tuple(METHODS), rank_ratios=(0.75, 0.5, 0.25))


@functools.cache
def space_of(name: str) -> SearchSpace:
    return discover(*build(name), EVERY)


def params(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize("name", NETWORKS)
def test_options_shrink_the_network_one_after_another(name: str) -> None:
    network, example = build(name)
    space = space_of(name)
    compressor = Compressor(network, example, space)
    for layer in space.layers:
        counts = []
        for option in range(1 + len(layer.rank_options)):
            plan = space.plan({f"rank:{layer.name}": option} if option else {})
            counts.append(params(compressor.compress(plan).network))
            if option:
                assert plan.layers[layer.name].method == layer.rank_options[option - 1].method
        assert counts == sorted(counts, reverse=True)
        assert len(counts) == 1 or counts[1] < counts[0]
    offered = {o.method for x in space.layers for o in x.rank_options}
    if name in ("residual", "padded"):
        assert offered >= {"tucker2", "spatial_svd", "cp", "depthwise"}


@pytest.mark.parametrize("name", NETWORKS)
@given(st.data())
@settings(max_examples=12, deadline=None)
def test_any_plan_of_any_method_is_carried_out_and_counted(name: str, data: st.DataObject) -> None:
    network, example = build(name)
    space = space_of(name)
    genotype = {n: data.draw(st.integers(0, c - 1)) for n, c in space.parameters.items()}
    plan = space.plan(genotype)
    assert space.canonical(plan) == plan
    assert space.check(CompressionPlan.from_json(plan.to_json())) == plan
    small = Compressor(network, example, space).compress(plan).network
    with torch.inference_mode():
        assert small(example).shape == network(example).shape
    for layer in space.layers:
        out, into = layer.surviving(plan.groups, space.full)
        choice = plan.layers[layer.name]
        module = small.get_submodule(layer.name)
        bias = getattr(network.get_submodule(layer.name), "bias", None)
        weights = params(module) - (0 if bias is None else out)
        if choice.method:
            r = choice.ranks[0]
            high, wide = (*layer.kernel_size, 1)[:2]
            taps = high * wide
            expected = {
                "svd": r * (out + into),
                "spatial_svd": r * (into * high + out * wide),
                "tucker2": into * choice.ranks[-1] + choice.ranks[-1] * r * taps + r * out,
                "cp": r * (into + taps + out),
                "depthwise": r * into * (taps + out),
            }[choice.method]
            assert weights == expected


def test_ranks_by_energy_follow_each_layer() -> None:
    network, example = build("residual")
    with torch.no_grad():  # a kernel of rank 2 in both channel modes
        thin = torch.einsum(
            "or,rskl,si->oikl", torch.randn(16, 2), torch.randn(2, 2, 3, 3), torch.randn(2, 8)
        )
        network.a.weight.copy_(thin + 1e-4 * torch.randn(16, 8, 3, 3))
    choices = replace(EVERY, rank_ratios=(), rank_energies=(0.99,), rank_methods=("tucker2",))
    space = discover(network, example, choices)
    (layer,) = [x for x in space.layers if x.name == "a"]
    assert [o.label for o in layer.rank_options] == ["tucker2 99% energy"]
    plan = space.plan({"rank:a": 1})
    assert plan.layers["a"].ranks == (4, 4)  # 2, on the grid of 4
    spectrum = np.linalg.svd(network.a.weight.detach().numpy().reshape(16, -1), compute_uv=False)
    assert (spectrum[:2] ** 2).sum() > 0.99 * (spectrum**2).sum()
    with pytest.raises(InputError, match=r"space\.rank\.energy.*not defined for 'cp'"):
        discover(network, example, replace(choices, rank_methods=("cp",)))


def test_the_default_space_offers_svd_and_tucker() -> None:
    space = discover(*build("residual"))
    offered = {x.name: {o.method for o in x.rank_options} for x in space.layers}
    assert offered["a"] == {"tucker2"} and offered["down"] <= {"svd"}


def test_ranks_above_the_layers_and_grouped_layers_are_refused_by_name() -> None:
    space = space_of("residual")
    good = space.identity

    def asked(name: str, method: str, *ranks: int) -> CompressionPlan:
        return CompressionPlan(
            good.groups, {**good.layers, name: LayerChoice(32, 32, method, ranks)}
        )

    with pytest.raises(InputError, match="layer 'a': tucker2 rank 99x4 exceeds its 16x8; lower it"):
        space.check(asked("a", "tucker2", 99, 4))
    with pytest.raises(InputError, match="layer 'a': depthwise rank 10 exceeds its 9"):
        space.check(asked("a", "depthwise", 10))
    with pytest.raises(InputError, match="layer 'down': it cannot take 'cp'; use svd"):
        space.check(asked("down", "cp", 2))
    grouped = space_of("grouped")
    plan = grouped.identity
    with pytest.raises(InputError, match="layer 'grouped': it cannot take 'tucker2' .a grouped"):
        layers = {**plan.layers, "grouped": LayerChoice(32, 32, "tucker2", (2, 2))}
        grouped.check(CompressionPlan(plan.groups, layers))
    assert space.check(asked("a", "cp", 20)).layers["a"].method == "cp"


def test_presets_span_several_methods() -> None:
    space = space_of("residual")
    plans = [space.plan(g) for g in space.presets()]
    assert len({p.fingerprint for p in plans}) == len(plans)
    strongest = max(len(x.rank_options) for x in space.layers)
    reached = {g.get("rank:a", 0) for g in space.presets()}
    assert strongest > 4 and len(reached) >= 4


def job(**rank: Any) -> dict[str, Any]:
    return {
        "name": "x",
        "task": {"model": "paretune.tasks.vision:plain_cnn", "data": {"kind": "digits"}},
        "space": {"rank": rank},
    }


@pytest.mark.parametrize(
    ("rank", "said"),
    [
        ({"ratios": [95.0]}, r"95\.0 must be at most 1; did you mean 0\.95"),
        ({"energy": [99.0]}, r"99\.0 must be at most 1; did you mean 0\.99"),
        ({"methods": ["tuker2"]}, "'tuker2' is not known here; did you mean 'tucker2'"),
        ({"ratio": [0.5]}, "unknown key 'ratio'; did you mean 'ratios'"),
        ({"ratios": [0.0]}, "must be above 0"),
    ],
)
def test_wrong_rank_sections_are_answered(rank: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        load_job(job(**rank))
