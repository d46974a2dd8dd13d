"""Importances against closed forms in numpy, autograd by hand, and Torch-Pruning's own."""

from typing import get_args

import numpy as np
import pytest
import torch
import torch_pruning
from small_networks import NETWORKS, build
from torch.nn import functional as F

from paretune.operators.compress import Compressor
from paretune.operators.evidence import input_rms, weight_slopes
from paretune.operators.importance import METHODS, channel_importance, gather
from paretune.spaces.discover import discover
from paretune.tasks.compress_section import CompressSection


def residual_group(name: str = "a"):
    network, example = build("residual")
    (group,) = [g for g in discover(network, example).groups if g.name == name]
    return network, group


def test_the_job_file_offers_every_method() -> None:
    assert set(get_args(CompressSection.model_fields["importance"].annotation)) == set(METHODS)


def test_geometric_median_against_numpy() -> None:
    network, group = residual_group()
    filters = network.a.weight.detach().numpy().reshape(16, -1).astype(np.float64)
    distances = np.array([[np.linalg.norm(f - g) for g in filters] for f in filters]).sum(1)
    found = channel_importance(network, group, "fpgm").numpy()
    np.testing.assert_allclose(found, distances / distances.mean(), rtol=1e-4)


def test_geometric_median_drops_one_of_two_equal_central_filters_before_an_outlier() -> None:
    network, group = residual_group()
    with torch.no_grad():
        network.a.weight.mul_(0.1)
        network.a.weight[3] += 5
    score = channel_importance(network, group, "fpgm")
    assert int(score.argmax()) == 3


def test_batchnorm_scales_match_torch_pruning() -> None:
    network, example = build("depthwise")
    with torch.no_grad():
        network.bn.weight.copy_(torch.randn(16))
    (group,) = [g for g in discover(network, example).groups if g.name == "expand"]
    graph = torch_pruning.DependencyGraph().build_dependency(network, example_inputs=example)
    theirs = graph.get_pruning_group(
        network.expand, torch_pruning.prune_conv_out_channels, list(range(16))
    )
    expected = torch_pruning.importance.BNScaleImportance()(theirs)
    found = channel_importance(network, group, "bn_scale")
    torch.testing.assert_close(found, expected)
    np.testing.assert_allclose(
        found, network.bn.weight.abs().detach() / network.bn.weight.abs().mean().item(), rtol=1e-5
    )


def test_without_batchnorm_the_scale_falls_back_on_weights() -> None:
    network, group = residual_group("a")
    torch.testing.assert_close(
        channel_importance(network, group, "bn_scale"), channel_importance(network, group, "l2")
    )


@pytest.mark.parametrize("name", ["a", "stem"])
def test_taylor_is_the_squared_weight_times_gradient_of_each_example(name: str) -> None:
    """By hand: one backward pass an example, weights that read the channel times their gradient."""
    network, group = residual_group(name)
    inputs = torch.randn(5, 3, 8, 8)
    readers = {"a": ["b"], "stem": ["a", "down", "c"]}[name]
    squares = []
    for x in inputs:
        network.zero_grad()
        outputs = network(x[None])
        F.cross_entropy(outputs, outputs.argmax(1)).backward()
        change = torch.zeros(group.channels)
        for reader in readers:
            weight = network.get_submodule(reader).weight
            change += (weight * weight.grad).sum((0, 2, 3)).detach()
        squares.append(change.square())
    method, slopes = gather(network, "taylor", inputs)
    found = channel_importance(network, group, method, slopes)
    torch.testing.assert_close(found, torch.stack(squares).mean(0), rtol=1e-3, atol=1e-9)


def test_taylor_predicts_what_zeroing_a_channel_slightly_changes() -> None:
    """Scaling a channel by (1 - h) changes the loss by h times the slope, to first order."""
    network, group = residual_group("a")
    x = torch.randn(1, 3, 8, 8)
    slopes = gather(network.double(), "taylor", x.double())[1]["b"]
    label = network(x.double()).argmax(1)
    h = 1e-6
    for channel in (0, 7):
        before = F.cross_entropy(network(x.double()), label)
        with torch.no_grad():
            network.b.weight[:, channel] *= 1 - h
        after = F.cross_entropy(network(x.double()), label)
        with torch.no_grad():
            network.b.weight[:, channel] /= 1 - h
        numeric = (before - after).item() / h
        assert numeric == pytest.approx(float(slopes[0, channel]), rel=1e-3, abs=1e-9)


def test_weight_slopes_match_backward() -> None:
    network, _ = build("residual")
    inputs = torch.randn(40, 3, 8, 8)
    found = weight_slopes(network, inputs)
    outputs = network(inputs)
    F.cross_entropy(outputs, outputs.argmax(1)).backward()
    for name in ("stem", "b", "head"):
        weight = network.get_submodule(name).weight
        torch.testing.assert_close(
            found[name], (weight * weight.grad).detach(), atol=1e-7, rtol=1e-3
        )


def test_mean_activation_is_that_of_the_channels_as_they_are_read() -> None:
    network, group = residual_group("a")
    inputs = torch.randn(7, 3, 8, 8)
    seen = []
    network.b.register_forward_hook(lambda _, args, __: seen.append(args[0].detach().numpy()))
    network(inputs)
    expected = np.abs(seen[0]).mean((0, 2, 3))
    found = channel_importance(network, group, *gather(network, "activation_mean", inputs)).numpy()
    np.testing.assert_allclose(found, expected / expected.mean(), rtol=1e-4)


def test_the_mix_runs_from_weights_to_activations() -> None:
    network, group = residual_group("a")
    inputs = torch.randn(16, 3, 8, 8)
    _, rms = gather(network, "weight_activation", inputs)
    norms = network.b.weight.detach().numpy().transpose(1, 0, 2, 3).reshape(16, -1)
    norms = np.linalg.norm(norms, axis=1)
    activity = input_rms(network, inputs)["b"].numpy()
    for mix, expected in (
        (0.0, norms),
        (1.0, activity),
        (0.3, norms**0.7 * activity**0.3),
    ):
        found = channel_importance(network, group, "weight_activation", rms, mix=mix).numpy()
        np.testing.assert_allclose(found, expected / expected.mean(), rtol=1e-4)
    half = channel_importance(network, group, "weight_activation", rms, mix=0.5)
    plain = channel_importance(network, group, "activation", rms)
    assert torch.equal(half.argsort(), plain.argsort())


def test_random_depends_on_the_seed_and_the_group_alone() -> None:
    network, group = residual_group("a")
    torch.manual_seed(1)
    first = channel_importance(network, group, "random", seed=5)
    torch.manual_seed(2)
    assert torch.equal(first, channel_importance(network, group, "random", seed=5))
    assert not torch.equal(first, channel_importance(network, group, "random", seed=6))


def test_a_grouped_convolution_reads_each_channel_in_its_own_part() -> None:
    network, example = build("grouped")
    (group,) = [g for g in discover(network, example).groups if g.name == "a"]
    weight = network.grouped.weight.detach().numpy()  # (24, 4, 3, 3), 4 groups of 16 channels
    read = np.array(
        [np.abs(weight[6 * (c // 4) : 6 * (c // 4) + 6, c % 4]).sum() for c in range(16)]
    )
    made = np.abs(network.a.weight.detach().numpy()).sum((1, 2, 3))
    expected = read / read.mean() + made / made.mean()
    np.testing.assert_allclose(channel_importance(network, group, "l1"), expected, rtol=1e-5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", NETWORKS)
def test_every_method_cuts_every_network(method: str, name: str) -> None:
    network, example = build(name)
    space = discover(network, example)
    inputs = torch.randn(8, *example.shape[1:])
    options = CompressSection(importance=method)
    compressor = Compressor(network, example, space, inputs, options)
    plan = space.plan({n: 1 for n in space.parameters if n.startswith("keep:")})
    assert compressor.compress(plan).network(inputs).isfinite().all()
