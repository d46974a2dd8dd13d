"""ExecuTorch: the conformance suite (slow: every lowering takes tens of seconds)."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from paretune.targets.catalogue import make_target
from paretune.targets.target import Target

if importlib.util.find_spec("executorch") is None:  # importing it takes half a minute
    pytest.skip("the extra 'executorch' is not installed", allow_module_level=True)
pytestmark = pytest.mark.slow

_path = Path(__file__).parents[1] / "conformance" / "target_conformance.py"
_spec = importlib.util.spec_from_file_location("target_conformance", _path)
assert _spec and _spec.loader
_suite = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_suite)


class TestExecuTorch(_suite.TargetConformance):
    def make_target(self) -> Target:
        return make_target("executorch-xnnpack", {"seconds": 0.5})


def test_fewer_examples_than_a_batch_are_calibrated_with_all_the_same() -> None:
    target = make_target("executorch-xnnpack", {"batch": 8})
    examples = np.random.default_rng(0).standard_normal((3, 3, 8, 8)).astype(np.float32)
    batch, network = torch.from_numpy(examples[np.arange(8) % 3]), _suite.small_network()
    module = torch.export.export(network, (batch,)).module()
    with torch.no_grad():
        expected = network(batch)
        given = target._quantized(module, [*_suite.LAYERS], examples)(batch)
    assert (given - expected).abs().max() <= 0.1 * (expected.max() - expected.min())
