"""Dynamic 8 bits and MatMulNBits: small, near the float network, and only where they are asked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from paretune.errors import CandidateError
from paretune.targets.onnxruntime_cpu import OnnxRuntimeCpu
from paretune.targets.target import Bits


def tokens() -> nn.Module:
    """A feed-forward block on (n, tokens, 64), whose linear layers are MatMuls; a head."""
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 64), nn.LayerNorm(64)),
        *(nn.Flatten(), nn.Linear(64 * 4, 5)),
    ).eval()


@pytest.fixture(scope="module")
def inputs() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((20, 4, 64)).astype(np.float32)


def exported(
    target: OnnxRuntimeCpu, bits: dict[str, Bits], inputs: np.ndarray, path: Path
) -> tuple[set[str], float]:
    """The operators of the file, and how far its results are from torch's, over their spread."""
    network = tokens()
    target.export(network, torch.zeros(1, 4, 64), bits, [inputs], path)
    with torch.no_grad():
        expected = network(torch.from_numpy(inputs)).numpy()
    given = target.load(path).predict(inputs)
    off = float(np.abs(given - expected).max() / (expected.max() - expected.min()))
    return {node.op_type for node in onnx.load(path).graph.node}, off


@pytest.mark.parametrize(("bits", "most"), [(8, 0.02), (4, 0.15)])
def test_blocks_for_linear_layers(
    bits: int, most: float, inputs: np.ndarray, tmp_path: Path
) -> None:
    target, path = OnnxRuntimeCpu(linears="blocks"), tmp_path / "a.onnx"
    wanted = {"0": Bits(bits, 32), "2": Bits(bits, 32), "5": Bits(bits, 32)}
    operators, off = exported(target, wanted, inputs, path)
    assert "MatMulNBits" in operators and off <= most
    model = onnx.load(path)
    assert sum(n.op_type == "MatMulNBits" for n in model.graph.node) == 2  # the head is a Gemm
    stored = 2 * 64 * 128 * bits / 8 + 2 * 64 * 128 / 32 * 4 + 64 * 4 * 5 * bits / 8
    assert path.stat().st_size <= 1.05 * stored + 5000


def test_dynamic_needs_no_calibration(inputs: np.ndarray, tmp_path: Path) -> None:
    target, path = OnnxRuntimeCpu(format="dynamic"), tmp_path / "a.onnx"
    network, wanted = tokens(), {name: Bits(8, 8) for name in ("0", "2", "5")}
    target.export(network, torch.zeros(1, 4, 64), wanted, [], path)
    operators, off = exported(target, wanted, inputs, path)
    assert {"DynamicQuantizeLinear", "MatMulInteger"} <= operators and off <= 0.05
    assert "MatMul" not in operators and "Gemm" not in operators
    operators, _ = exported(target, {"2": Bits(8, 8)}, inputs, path)
    assert "Gemm" in operators or "MatMul" in operators
    with pytest.raises(CandidateError, match="^2: dynamic quantisation has 8-bit weights only"):
        target.export(network, torch.zeros(1, 4, 64), {"2": Bits(4, 8)}, [], path)
