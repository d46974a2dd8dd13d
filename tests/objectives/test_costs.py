"""Costs predicted without a network are those of the network and of the file."""

import math
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_networks import NETWORKS, build

from paretune.objectives.costs import CostModel
from paretune.objectives.counts import count_macs, count_params
from paretune.operators.compress import Compressor
from paretune.spaces.discover import discover
from paretune.targets.onnxruntime_cpu import OnnxRuntimeCpu
from paretune.tasks.vision import cifar_resnet, plain_cnn

MADE: dict[str, tuple] = {}


def made(name: str) -> tuple:
    """(network, example, space, compressor, cost model) of a small network, built once."""
    if name not in MADE:
        torch.manual_seed(0)
        if name == "cifar":
            network, example = cifar_resnet(20).eval(), torch.randn(1, 3, 32, 32)
        elif name == "plain":
            network, example = plain_cnn(4, size=8).eval(), torch.randn(1, 3, 8, 8)
        else:
            network, example = build(name)
        space = discover(network, example)
        compressor = Compressor(network, example, space)
        model = CostModel(space, network, example, OnnxRuntimeCpu())
        MADE[name] = network, example, space, compressor, model
    return MADE[name]


def genotypes(name: str, families: tuple[str, ...] = ("keep", "rank", "bits")) -> st.SearchStrategy:
    parameters = made(name)[2].parameters
    return st.fixed_dictionaries(
        {p: st.integers(0, n - 1) for p, n in parameters.items() if p.split(":")[0] in families}
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_params_and_macs_are_those_of_the_compressed_network(name: str) -> None:
    _, example, space, compressor, model = made(name)

    @settings(max_examples=12, deadline=None)
    @given(genotypes(name))
    def check(genotype: dict[str, int]) -> None:
        plan = space.plan(genotype)
        small = compressor.compress(plan).network
        costs = model.costs(plan)
        assert costs["params"] == count_params(small)
        assert costs["macs"] == count_macs(small, example)

    check()


@pytest.mark.parametrize("format", ["qoperator", "qdq"])
@pytest.mark.parametrize("name", [*NETWORKS, "plain"])
def test_bytes_are_those_of_the_file(name: str, format: str, tmp_path: Path) -> None:
    network, example, space, compressor, _ = made(name)
    target = OnnxRuntimeCpu(format=format)
    model = CostModel(space, network, example, target)
    rng = np.random.default_rng(1)
    inputs = [rng.standard_normal((8, *example.shape[1:])).astype(np.float32)]
    for case in range(4):
        genotype = {p: int(rng.integers(n)) for p, n in space.parameters.items()}
        if case == 0:
            genotype = {p: (1 if p.startswith("bits") else 0) for p in genotype}
        plan = space.plan(genotype)
        work = compressor.compress(plan)
        path = tmp_path / "model.onnx"
        target.export(work.network, example, work.bits, inputs, path)
        real = path.stat().st_size
        assert model.costs(plan)["size_bytes"] == pytest.approx(real, abs=max(64, 0.004 * real))


@pytest.mark.parametrize("name", [*NETWORKS, "plain"])
def test_bytes_of_float_files_are_exact(name: str, tmp_path: Path) -> None:
    _, example, space, compressor, model = made(name)
    rng = np.random.default_rng(2)
    for _ in range(3):
        genotype = {
            p: int(rng.integers(n)) for p, n in space.parameters.items() if not p.startswith("bits")
        }
        plan = space.plan(genotype)
        path = tmp_path / "model.onnx"
        OnnxRuntimeCpu().export(compressor.compress(plan).network, example, {}, [], path)
        assert model.costs(plan)["size_bytes"] == path.stat().st_size


def test_a_thousand_plans_a_second() -> None:
    _, _, space, _, model = made("cifar")
    rng = np.random.default_rng(3)
    draws = [{p: int(rng.integers(n)) for p, n in space.parameters.items()} for _ in range(200)]
    plans = [space.plan(g) for g in draws]
    for plan in plans:
        model.costs(plan)
    fastest = math.inf  # of ten parts: a busy machine slows some of them
    for part in np.array_split(np.arange(len(plans)), 10):
        begin = time.thread_time()
        for i in part:
            model.costs(plans[i])
        fastest = min(fastest, (time.thread_time() - begin) / len(part))
    assert fastest < 1e-3
