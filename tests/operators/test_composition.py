"""Random plans on random networks: everything a plan says, and nothing else, is carried out."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_networks import BLOCKS, NORMS, SIDE, TAILS, RandomNetwork
from torch import nn

from paretune.errors import CandidateError, InputError
from paretune.objectives.counts import count_macs, count_params
from paretune.operators.compress import Compressor
from paretune.spaces.choices import Choices
from paretune.spaces.discover import discover
from paretune.spaces.plan import CompressionPlan, LayerChoice
from paretune.targets.onnx_export import export_model, write_model
from paretune.targets.onnxruntime_cpu import OnnxRuntimeCpu

CHOICES = Choices(zeros=((50, "2:4"), (75, "unstructured")))


def built(blocks: list[str], norm: str, tail: str, seed: int) -> tuple[RandomNetwork, torch.Tensor]:
    torch.manual_seed(seed)
    network = RandomNetwork(blocks, norm, tail).train()
    for _ in range(2):
        network(torch.randn(8, 3, SIDE, SIDE) + 0.5)
    return network.eval(), torch.randn(1, 3, SIDE, SIDE)


@given(
    blocks=st.lists(st.sampled_from(BLOCKS), min_size=1, max_size=3),
    norm=st.sampled_from(NORMS),
    tail=st.sampled_from(TAILS),
    seed=st.integers(0, 1000),
    data=st.data(),
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_shapes_parameters_and_macs_are_the_plans(blocks, norm, tail, seed, data) -> None:
    network, example = built(blocks, norm, tail, seed)
    before = copy.deepcopy(network.state_dict())
    space = discover(network, example, CHOICES)
    inputs = torch.randn(6, 3, SIDE, SIDE)
    compressor = Compressor(network, example, space, inputs)
    with torch.no_grad():
        same = compressor.compress(space.identity).network(inputs)
        assert (same - compressor.original(inputs)).abs().max() == 0
        torch.testing.assert_close(same, network(inputs), atol=1e-5, rtol=1e-4)
    drawn = {n: data.draw(st.integers(0, c - 1), label=n) for n, c in space.parameters.items()}
    for genotype in (drawn, {n: c - 1 for n, c in space.parameters.items()}):
        plan = space.plan(genotype)
        made = compressor.compress(plan)
        shapes, params, macs = network.expected(plan)
        found = {
            n: (*m.weight.shape[:2], m.weight[0, 0].numel())
            for n, m in made.network.named_modules()
            if isinstance(m, nn.Conv2d | nn.Linear)
        }
        assert found == shapes
        assert count_params(made.network) == params
        assert count_macs(made.network, example) == macs
        with torch.no_grad():
            assert made.network(inputs).isfinite().all()
        for name, choice in plan.layers.items():
            for below, layer in made.network.get_submodule(name).named_modules():
                if isinstance(layer, nn.Conv2d | nn.Linear):
                    owner = f"{name}.{below}" if below else name
                    bits = made.bits[owner]
                    assert (bits.weight, bits.activation) == (
                        choice.weight_bits,
                        choice.activation_bits,
                    )
                    if choice.sparsity and choice.pattern == "unstructured":
                        count = round(choice.sparsity * layer.weight.numel() / 100)
                        assert int((layer.weight == 0).sum()) >= count
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("norm", NORMS)
def test_every_kind_of_width_is_found(norm: str, tail: str) -> None:
    network, example = built(list(BLOCKS), norm, tail, 0)
    space = discover(network, example)
    cut = {network.sides[g.name].out for g in space.groups}
    wanted = {"w", "0a", "1a", "1m", "2a", "2b", "3a"}
    assert cut >= wanted | ({"heads", "mlp"} if tail != "none" else set())


@pytest.mark.parametrize("tail", TAILS)
def test_the_exported_file_computes_what_the_cut_network_does(tail: str, tmp_path) -> None:
    network, example = built(list(BLOCKS), "batch", tail, 1)
    space = discover(network, example)
    plan = space.plan({n: 1 for n in space.parameters if not n.startswith("bits:")})
    inputs = torch.randn(6, 3, SIDE, SIDE)
    small = Compressor(network, example, space, inputs).compress(plan).network
    write_model(export_model(small, example), tmp_path / "small.onnx")
    found = OnnxRuntimeCpu().load(tmp_path / "small.onnx").predict(inputs.numpy())
    with torch.no_grad():
        np.testing.assert_allclose(found, small(inputs).numpy(), atol=1e-4)


def test_what_cannot_be_carried_out_names_the_layer_before_any_work() -> None:
    network, example = built(["residual"], "batch", "none", 0)
    space = discover(network, example)
    good = space.identity
    compressor = Compressor(network, example, space)
    for groups, layers, message in (
        ({"blocks.0.aa": 4}, {}, "unknown group 'blocks.0.aa'; did you mean 'blocks.0.a'"),
        ({}, {"blocks.0.c": LayerChoice()}, "unknown layer 'blocks.0.c'; did you mean"),
        ({"blocks.0.a": 95}, {}, "group 'blocks.0.a' cannot keep 95 of 12 channels"),
        ({}, {"stem": LayerChoice(method="svd", ranks=(3,))}, "layer 'stem': it cannot take 'svd'"),
    ):
        plan = CompressionPlan({**good.groups, **groups}, {**good.layers, **layers})
        with pytest.raises(CandidateError, match=message):
            compressor.compress(plan)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_broken_weight_is_named_before_anything_starts(value: float) -> None:
    network, example = built(["residual"], "batch", "none", 0)
    with torch.no_grad():
        network.blocks[0]["b"].weight[2, 3, 0, 0] = value
    with pytest.raises(InputError, match=r"task\.model: 1 weights are NaN.*'blocks\.0\.b\.weight'"):
        discover(network, example)


def test_calibration_inputs_that_cannot_be_used_are_refused() -> None:
    network, example = built(["residual"], "batch", "none", 0)
    space = discover(network, example)
    with pytest.raises(InputError, match="calibration: no examples"):
        Compressor(network, example, space, torch.zeros(0, 3, SIDE, SIDE))
    with pytest.raises(InputError, match="calibration: .*NaN"):
        Compressor(network, example, space, torch.full((4, 3, SIDE, SIDE), float("nan")))
    with pytest.raises(InputError, match=r"calibration: examples of shape \[3, 9\]"):
        Compressor(network, example, space, torch.zeros(4, 3, 9))
