"""Pruning schedules against their formulas, and what is left of a space after a cut."""

import copy
import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_networks import NETWORKS, build
from small_transformers import build_transformer

from paretune.errors import InputError
from paretune.spaces.attention import rewrite
from paretune.spaces.discover import discover
from paretune.spaces.narrow import narrowed
from paretune.spaces.plan import CompressionPlan, LayerChoice
from paretune.spaces.schedule import progress, schedule
from paretune.spaces.space import SearchSpace
from paretune.spaces.surgery import cut, spread


@functools.cache
def grouped() -> SearchSpace:
    return discover(*build("grouped"))


def test_the_cubic_schedule_is_that_of_the_paper() -> None:
    """s_t = s_f + (s_i - s_f) (1 - t / (n dt))^3, with s_i = 0."""
    for step in range(11):
        final = 0.8
        expected = final + (0 - final) * (1 - step / 10) ** 3
        assert final * progress(step, 10) == pytest.approx(expected)
        assert progress(step, 10, "linear") == pytest.approx(step / 10)


@given(st.integers(1, 12), st.sampled_from(["cubic", "linear"]), st.data())
@settings(max_examples=40, deadline=None)
def test_plans_shrink_step_by_step_towards_the_goal(steps: int, kind: str, data) -> None:
    space = grouped()
    genotype = {n: data.draw(st.integers(0, c - 1)) for n, c in space.parameters.items()}
    goal = space.plan(genotype)
    zeros = data.draw(st.integers(0, 99))
    layers = dict(goal.layers)
    layers["a"] = LayerChoice(sparsity=zeros)
    goal = CompressionPlan(goal.groups, layers)
    plans = schedule(space, goal, steps, kind)
    assert len(plans) == steps and plans[-1] == space.check(goal)
    before = space.identity
    for plan in plans:
        assert space.check(plan) == plan
        assert all(plan.groups[n] <= before.groups[n] for n in plan.groups)
        assert plan.layers["a"].sparsity >= before.layers["a"].sparsity
        before = plan


def test_wrong_schedules_are_refused() -> None:
    with pytest.raises(InputError, match="positive integer, got 0"):
        schedule(grouped(), grouped().identity, 0)
    with pytest.raises(InputError, match="did you mean 'cubic'"):
        schedule(grouped(), grouped().identity, 2, "cubik")


@pytest.mark.parametrize("name", [*NETWORKS, "fused"])
def test_a_space_narrowed_by_a_cut_is_the_space_of_the_cut_network(name: str) -> None:
    """The groups found anew on the cut network are those that renumbering gives."""
    network, example = (build_transformer if name == "fused" else build)(name)
    space = discover(network, example)
    kept = {}
    for i, group in enumerate(space.groups):
        part = group.channels // group.blocks
        places = list(range(part))[i % 2 :: 2][: max(2, part // 2)] + [part - 1]
        kept[group.name] = spread(
            sorted(set(places)), len(set(places)) * group.blocks, group.blocks, group.channels
        )
    small = copy.deepcopy(rewrite(network, example))
    cut(small, space.groups, kept)
    found = {g.name: g for g in discover(small, example).groups}
    for group in narrowed(space, kept).groups:
        if group.name in found:  # a group of few channels offers no option and is not listed
            anew = found[group.name]
            assert group.channels == anew.channels
            pairs = {(m.module, m.side): dict(zip(m.entries, m.channels, strict=True))
                     for m in group.members}  # fmt: skip
            assert pairs == {
                (m.module, m.side): dict(zip(m.entries, m.channels, strict=True))
                for m in anew.members
            }
    layers = {x.name: x for x in discover(small, example, freeze=[]).layers}
    for layer in narrowed(space, kept).layers:
        assert (layer.out_channels, layer.in_channels) == (
            layers[layer.name].out_channels,
            layers[layer.name].in_channels,
        )
    assert small(torch.randn(2, *example.shape[1:])).shape[0] == 2
