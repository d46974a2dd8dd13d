"""Zeros inside layers, the penalties that prepare them, and pruning in steps."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_networks import build
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune as torch_prune

from paretune.errors import InputError
from paretune.operators.compress import Compressor
from paretune.operators.evidence import weight_slopes
from paretune.operators.iterate import iterate
from paretune.operators.penalty import sparsity_penalty
from paretune.operators.sparsify import layer_shares, sparsify, stay_mask, zeros_held
from paretune.spaces.choices import Choices
from paretune.spaces.discover import discover
from paretune.tasks.compress_section import CompressSection


@given(st.integers(0, 99), st.integers(1, 200), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_the_smallest_weights_go_as_in_torch(sparsity: int, count: int, seed: int) -> None:
    torch.manual_seed(seed)
    layer = nn.Linear(count, 3)
    expected = layer.weight.detach().clone()
    other = nn.Linear(count, 3)
    other.weight.data.copy_(expected)
    zeros = round(sparsity * 3 * count / 100)
    torch_prune.l1_unstructured(other, "weight", zeros)
    sparsify(layer, sparsity)
    assert int((layer.weight == 0).sum()) == zeros
    assert torch.equal(layer.weight, other.weight)


@pytest.mark.parametrize("shape", [(8, 12), (6, 8, 3, 3), (5, 7, 3, 3), (4, 3)])
def test_two_of_four_neighbouring_inputs_go(shape: tuple[int, ...]) -> None:
    weight = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    stay = stay_mask(torch.from_numpy(weight).abs(), 50, "2:4").numpy()
    inputs = shape[1]
    columns = np.moveaxis(weight, 1, -1).reshape(-1, inputs)
    kept = np.moveaxis(stay, 1, -1).reshape(-1, inputs)
    for row, mask in zip(columns, kept, strict=True):
        for start in range(0, inputs - inputs % 4, 4):
            largest = set(np.argsort(-np.abs(row[start : start + 4]))[:2])
            assert set(np.flatnonzero(mask[start : start + 4])) == largest
        assert mask[inputs - inputs % 4 :].all()


def test_a_global_share_is_a_common_threshold() -> None:
    network, _ = build("residual")
    names = ["a", "b", "c"]
    with torch.no_grad():
        network.c.weight.mul_(3)
    shares = layer_shares(network, names, 60)
    weights = {n: np.abs(network.get_submodule(n).weight.detach().numpy()) for n in names}
    threshold = np.quantile(np.concatenate([w.ravel() for w in weights.values()]), 0.6)
    for name, weight in weights.items():
        assert shares[name] == pytest.approx(100 * (weight < threshold).mean(), abs=1)
    assert shares["c"] < shares["a"]
    reference = [(network.get_submodule(n), "weight") for n in names]
    torch_prune.global_unstructured(reference, torch_prune.L1Unstructured, amount=0.6)
    for name in names:
        zeros = float((network.get_submodule(name).weight == 0).float().mean())
        assert shares[name] == pytest.approx(100 * zeros, abs=0.51)
    with pytest.raises(InputError, match="no layer named 'hed'; did you mean 'head'"):
        layer_shares(build("residual")[0], ["hed"], 50)
    with pytest.raises(InputError, match="100 per cent"):
        layer_shares(network, ["a"], 100)


def space_with_zeros():
    network, example = build("residual")
    choices = Choices(zeros=((50, "2:4"), (50, "unstructured"), (90, "unstructured")))
    return network, example, discover(network, example, choices)


def test_zeros_are_options_of_the_space_only_when_asked_for() -> None:
    network, example, space = space_with_zeros()
    assert "zeros:a" in space.parameters and "zeros:stem" in space.parameters
    stem = {x.name: x for x in space.layers}["stem"]
    assert [p for _, p in stem.zeros] == ["unstructured", "unstructured"]  # 3 inputs: no fours
    assert not any(n.startswith("zeros:") for n in discover(network, example).parameters)
    plan = space.plan({"zeros:a": 3, "rank:b": 1, "zeros:b": 3, "keep:a": 1})
    assert plan.layers["a"].sparsity == 90 and plan.layers["b"].method == "tucker2"
    assert plan.layers["b"].sparsity == 90
    assert any("size only" in row["options"] for row in space.rows())


@pytest.mark.parametrize("criterion", ["magnitude", "gradient"])
def test_zeros_come_after_the_cut_and_go_to_every_factor(criterion: str) -> None:
    network, example, space = space_with_zeros()
    inputs = torch.randn(16, 3, 8, 8)
    options = CompressSection(zeros=criterion)
    genotype = {"zeros:a": 3, "rank:b": 1, "zeros:b": 2, "keep:a": 1, "zeros:c": 1}
    plan = space.plan(genotype)
    dense = space.plan({n: o for n, o in genotype.items() if not n.startswith("zeros:")})
    compressor = Compressor(network, example, space, inputs, options)
    made, before = compressor.compress(plan).network, compressor.compress(dense).network
    for name, share in {"a": 90, "b.0": 50, "b.1": 50, "b.2": 50}.items():
        weight = made.get_submodule(name).weight
        assert int((weight == 0).sum()) == round(share * weight.numel() / 100), name
    fours = (made.c.weight == 0).reshape(16, 2, 4, 9).sum(2)
    assert bool((fours == 2).all())
    if criterion == "gradient":
        score = weight_slopes(before, inputs)["a"].abs().flatten()
        stay = score.argsort()[round(0.9 * score.numel()) :]
        assert set(made.a.weight.flatten().nonzero().flatten().tolist()) == set(stay.tolist())


def test_penalties_are_sums_of_absolute_values_with_signs_as_gradients() -> None:
    network, _ = build("residual")
    value = sparsity_penalty("weights", 0.1)(network)
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    expected = 0.1 * sum(np.abs(m.weight.detach().numpy()).sum() for m in layers)
    assert value.item() == pytest.approx(expected, rel=1e-5)
    value.backward()
    assert torch.equal(network.a.weight.grad, 0.1 * network.a.weight.sign())
    scales = sparsity_penalty("bn_scale", 2.0)(network)
    assert scales.item() == pytest.approx(2 * np.abs(network.bn.weight.detach().numpy()).sum())
    with pytest.raises(InputError, match="did you mean 'weights'"):
        sparsity_penalty("weight", 1.0)
    with pytest.raises(InputError, match="strength -1"):
        sparsity_penalty("weights", -1)


def trainer(images: torch.Tensor, labels: torch.Tensor, losses: list[float]):
    def recover(network: nn.Module) -> None:
        network.train()
        optimiser = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
        for _ in range(15):
            optimiser.zero_grad()
            loss = F.cross_entropy(network(images), labels)
            loss.backward()
            optimiser.step()
        losses.append(float(loss.detach()))

    return recover


def test_pruning_in_steps_reaches_the_plan_with_zeros_held() -> None:
    torch.manual_seed(0)
    network, example, space = space_with_zeros()
    images = torch.randn(64, 3, 8, 8)
    labels = torch.randint(0, 5, (64,))
    genotype = {"keep:a": 3, "keep:stem": 1, "rank:b": 1, "zeros:a": 3, "zeros:c": 1, "bits:a": 1}
    plan = space.plan(genotype)
    losses: list[float] = []
    compressor = Compressor(network, example, space, images)
    made = iterate(compressor, plan, 3, trainer(images, labels, losses))
    once = compressor.compress(plan)
    assert len(losses) == 3 and losses[-1] < losses[0]
    shapes = [(n, p.shape) for n, p in made.network.named_parameters()]
    assert shapes == [(n, p.shape) for n, p in once.network.named_parameters()]
    assert {m: len(x) for m, x in made.lost.items()} == {m: len(x) for m, x in once.lost.items()}
    assert made.bits == once.bits
    for name in ("a", "c"):
        found, expected = (x.network.get_submodule(name).weight == 0 for x in (made, once))
        assert int(found.sum()) == int(expected.sum())
    assert not made.network.training
    assert {g: len(k) for g, k in made.kept.items()} == dict(plan.groups)


def test_without_training_the_channels_that_are_left_are_the_originals() -> None:
    """Steps that recover nothing end in rows of the original weights, at the places named."""
    network, example, space = space_with_zeros()
    plan = space.plan({"keep:a": 3})
    made = iterate(Compressor(network, example, space), plan, 2, lambda _: None, "linear")
    rows = made.kept["a"]
    assert torch.equal(made.network.a.weight, network.a.weight[rows])
    assert torch.equal(made.network.b.weight, network.b.weight[:, rows])
    assert made.lost["a"] == sorted(set(range(16)) - set(rows))


def test_zeros_stay_zero_under_momentum_and_decay() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(6, 4)
    sparsify(layer, 50)
    zero = layer.weight == 0
    with zeros_held(layer):
        optimiser = torch.optim.AdamW(layer.parameters(), lr=0.1)
        for _ in range(5):
            optimiser.zero_grad()
            layer(torch.randn(8, 6)).square().sum().backward()
            optimiser.step()
        assert torch.equal(layer.weight == 0, zero)
    assert not layer.weight._backward_hooks
