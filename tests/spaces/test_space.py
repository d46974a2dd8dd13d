"""Search spaces: grids, canonical plans, presets, refusals."""

import functools
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_networks import NETWORKS, build
from torch import nn

from paretune.errors import InputError
from paretune.spaces.choices import Choices
from paretune.spaces.discover import discover
from paretune.spaces.plan import CompressionPlan, LayerChoice
from paretune.spaces.shortcut import rewrite_shortcuts
from paretune.spaces.space import SearchSpace


@functools.cache
def space_of(name: str) -> SearchSpace:
    return discover(*build(name))


def genotypes(space: SearchSpace) -> st.SearchStrategy[dict[str, int]]:
    return st.fixed_dictionaries(
        {name: st.integers(0, count - 1) for name, count in space.parameters.items()}
    )


@given(st.integers(1, 2048), st.sampled_from([1, 2, 4, 8]))
@settings(max_examples=150, deadline=None)
def test_kept_options_lie_on_the_grid(channels: int, blocks: int) -> None:
    channels *= blocks
    options = Choices().kept(channels, blocks)
    assert options[0] == channels
    assert list(options) == sorted(set(options), reverse=True)
    assert all(k % blocks == 0 and 1 <= k <= channels for k in options)
    if channels // blocks >= 8:
        assert len(options) >= 4
    if channels >= 128 and blocks == 1:
        assert all(k % 16 == 0 for k in options[1:])


@pytest.mark.parametrize("name", NETWORKS)
def test_identity_keeps_everything(name: str) -> None:
    space = space_of(name)
    assert dict(space.identity.groups) == space.full
    assert set(space.identity.layers.values()) == {LayerChoice()}


@pytest.mark.parametrize("name", NETWORKS)
@given(st.data())
@settings(max_examples=25, deadline=None)
def test_plans_are_canonical_and_pass_the_check(name: str, data: st.DataObject) -> None:
    space = space_of(name)
    plan = space.plan(data.draw(genotypes(space)))
    assert space.canonical(plan) == plan
    assert space.check(CompressionPlan.from_json(plan.to_json())) == plan
    for layer in space.layers:
        choice = plan.layers[layer.name]
        if choice.method:
            out, into = layer.surviving(plan.groups, space.full)
            assert layer.saves(choice.method, choice.ranks, out, into)


def test_the_classifier_is_left_alone_by_default() -> None:
    space = space_of("residual")
    assert "head" in space.frozen
    assert "head" not in space.identity.layers
    network, example = build("residual")
    assert "head" in discover(network, example, freeze=[]).identity.layers


def test_frozen_layers_are_not_cut_and_a_wrong_name_is_answered() -> None:
    network, example = build("residual")
    space = discover(network, example, freeze=["a", "head"])
    assert "a" not in space.full and "a" not in space.identity.layers
    with pytest.raises(InputError, match="did you mean 'head'"):
        discover(network, example, freeze=["heads"])
    with pytest.raises(InputError, match="did you mean 'head'"):
        discover(network, example, freeze=["head.weigth"])


def test_residual_sums_are_one_group() -> None:
    groups = {g.name: set(g.producers()) for g in space_of("residual").groups}
    assert groups["stem"] >= {"stem", "b"}
    assert groups["down"] >= {"down", "c"}
    assert groups["a"] == {"a"}


def test_concatenation_shifts_entries() -> None:
    (group,) = [g for g in space_of("dense").groups if g.name == "b"]
    (reader,) = [m for m in group.members if m.module == "c"]
    assert reader.entries == tuple(range(8, 16)) and reader.channels == tuple(range(8))


def test_flatten_gives_each_channel_its_pixels() -> None:
    (group,) = [g for g in space_of("dense").groups if g.name == "c"]
    (reader,) = [m for m in group.members if m.module == "head"]
    assert len(reader.entries) == 8 * 16
    assert [e // 16 for e in reader.entries] == list(reader.channels)


def test_grouped_convolution_is_cut_evenly() -> None:
    blocks = {g.name: g.blocks for g in space_of("grouped").groups}
    assert blocks["a"] == 4 and blocks["grouped"] == 4


def test_presets_are_distinct_and_change_something() -> None:
    space = space_of("residual")
    plans = [space.plan(g) for g in space.presets()]
    assert len({p.fingerprint for p in plans}) == len(plans) >= 6
    assert space.identity not in plans


def test_wrong_plans_are_refused_by_name() -> None:
    space = space_of("residual")
    good = space.identity
    with pytest.raises(InputError, match="unknown group 'stam'; did you mean 'stem'"):
        space.check(CompressionPlan({**good.groups, "stam": 4}, good.layers))
    with pytest.raises(InputError, match="missing"):
        space.check(CompressionPlan({}, good.layers))
    with pytest.raises(InputError, match="cannot keep 99"):
        space.check(CompressionPlan({**good.groups, "stem": 99}, good.layers))
    with pytest.raises(
        InputError, match="layer 'a': it cannot take 'svd'; use tucker2 or spatial_svd"
    ):
        space.check(
            CompressionPlan(good.groups, {**good.layers, "a": LayerChoice(32, 32, "svd", (2,))})
        )
    with pytest.raises(InputError, match="unknown"):
        space.plan({"keep:nothing": 1})


def test_what_cannot_run_or_be_traced_is_said() -> None:
    network, _ = build("residual")
    with pytest.raises(InputError, match="forward fails on an input of shape"):
        discover(network, torch.zeros(1, 5, 8, 8))

    class Tuple(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
            return (self.a(x),)

    with pytest.raises(InputError, match="returns tuple"):
        discover(Tuple().eval(), torch.zeros(1, 4))
    with pytest.raises(InputError, match="no convolution or linear layer"):
        discover(nn.ReLU(), torch.zeros(1, 4))


def test_groups_that_would_break_the_forward_are_left_alone() -> None:
    class Fixed(nn.Module):
        """Splits its channels at a fixed place: cutting them breaks the forward pass."""

        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv2d(3, 16, 3, padding=1)
            self.b = nn.Conv2d(16, 16, 3, padding=1)
            self.head = nn.Linear(16, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.a(x).reshape(x.shape[0], 16, 8, 8)
            return self.head(self.b(x).mean((2, 3)))

    space = discover(Fixed().eval(), torch.zeros(1, 3, 8, 8))
    assert "a" not in space.full
    assert "b" in space.full
    assert any("a" in name for name in space.frozen)


class Same(nn.Module):
    """Gives its input back, as a drop path does in eval mode; within ``limit``."""

    def __init__(self, limit: float | None = None) -> None:
        super().__init__()
        self.limit = limit

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if self.limit is None else x.clamp(-self.limit, self.limit)


@pytest.mark.parametrize("inner", [Same(), Same(100.0)], ids=["drop path", "clamp"])
def test_modules_that_give_their_input_back_are_no_shortcuts(inner: nn.Module) -> None:
    network, example = build("residual")
    network.down = nn.Sequential(network.down, inner)
    kept = rewrite_shortcuts(network.eval(), example)
    assert type(kept.down[1]) is Same
    with torch.inference_mode():  # far outside what the probe saw
        torch.testing.assert_close(kept(1e4 * example), network(1e4 * example))


def test_a_network_of_tokens_with_functions_of_its_own() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.same = nn.Embedding(50, 16), Same()
            self.a, self.head = nn.Linear(16, 16), nn.Linear(16, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.same(self.a(self.table(x.long()))).mean(1))

    assert "a" in discover(Tokens().eval(), torch.ones(1, 6)).identity.layers


def test_what_breaks_when_it_is_cut_or_copied_is_told() -> None:
    class Halves(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * (1 // (x.shape[1] // 16))

    network, example = build("residual")
    network.down = nn.Sequential(network.down, Halves())
    space = discover(network.eval(), example)
    assert "breaks the forward pass" in space.frozen["channels of down.0"]
    network, example = build("residual")
    network.lock = threading.Lock()
    with pytest.raises(InputError, match="cannot be copied: TypeError"):
        discover(network, example)
