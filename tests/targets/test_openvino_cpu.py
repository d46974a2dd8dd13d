"""OpenVINO: the conformance suite, exclusion of layers from int8, refusals in one line."""

from __future__ import annotations

import importlib.util
import io
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from paretune.errors import CandidateError, InputError
from paretune.targets.catalogue import make_target
from paretune.targets.target import Bits, Target

openvino = pytest.importorskip("openvino", reason="the extra 'openvino' is not installed")
pytest.importorskip("nncf", reason="the extra 'openvino' is not installed")

_path = Path(__file__).parents[1] / "conformance" / "target_conformance.py"
_spec = importlib.util.spec_from_file_location("target_conformance", _path)
assert _spec and _spec.loader
_suite = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_suite)


class TestOpenVino(_suite.TargetConformance):
    def make_target(self) -> Target:
        return make_target("openvino-cpu", {"seconds": 0.5})


def _types(path: Path) -> tuple[bytes, bytes]:
    with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as packed:
        return packed.read("model.xml"), packed.read("model.bin")


def _int8_weights(path: Path) -> int:
    model = openvino.Core().read_model(*_types(path))
    return sum(
        op.get_type_name() == "Constant"
        and op.get_element_type().get_type_name() == "i8"
        and len(op.get_output_shape(0)) > 1
        for op in model.get_ordered_ops()
    )


def test_only_the_layers_of_the_plan_are_8_bits_wide(tmp_path: Path) -> None:
    network, target = _suite.small_network(), make_target("openvino-cpu")
    inputs = np.random.default_rng(0).standard_normal((7, 3, 8, 8)).astype(np.float32)
    example = torch.from_numpy(inputs[:1])
    for layers in ([], ["0"], ["0", "3"], ["0", "3", "7"]):
        bits = {name: Bits(8, 8) for name in layers}
        target.export(network, example, bits, [inputs], tmp_path / "a.zip")
        assert _int8_weights(tmp_path / "a.zip") == len(layers)


def test_the_file_runs_with_openvino_alone(tmp_path: Path) -> None:
    network, target = _suite.small_network(), make_target("openvino-cpu")
    inputs = np.random.default_rng(0).standard_normal((5, 3, 8, 8)).astype(np.float32)
    target.export(network, torch.from_numpy(inputs[:1]), {}, [], tmp_path / "a.zip")
    core = openvino.Core()
    compiled = core.compile_model(
        core.read_model(*_types(tmp_path / "a.zip")), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    with torch.no_grad():
        expected = network(torch.from_numpy(inputs)).numpy()
    np.testing.assert_allclose(compiled(inputs)[0], expected, atol=1e-4)


CTRL_C = """
import gc, signal, sys, threading
import numpy as np, torch
from paretune.targets.catalogue import make_target
from paretune.targets.target import Bits
network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU()).eval()
inputs = np.zeros((4, 3, 8, 8), np.float32)
targets = [make_target("openvino-cpu") for _ in range(3)]
for target in targets:
    target.export(network, torch.zeros(1, 3, 8, 8), {"0": Bits(8, 8)}, [inputs], sys.argv[1])
    target.load(sys.argv[1]).predict(inputs)
del target
del targets[0]
thread = threading.Thread(target=lambda: (targets.clear(), gc.collect()))
thread.start()
thread.join()
signal.signal(signal.SIGINT, lambda *_: print("noticed"))
signal.raise_signal(signal.SIGINT)
"""


def test_ctrl_c_is_noticed_when_models_are_gone(tmp_path: Path) -> None:
    """OpenVINO leaves a thread with a stack for signals that is no longer there."""
    file = tmp_path / "a.zip"
    command = [sys.executable, "-X", "faulthandler", "-c", CTRL_C, file]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout.split()[-1:]) == (0, ["noticed"]), done.stderr


def test_times_any_batch_beside_the_baseline(tmp_path: Path) -> None:
    torch.manual_seed(0)
    wide = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3)).eval()
    slim = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 64, 3)).eval()
    target = make_target("openvino-cpu", {"batch": 2, "seconds": 0.3})
    inputs = np.zeros((1, 3, 24, 24), dtype=np.float32)
    for name, network in (("wide", wide), ("slim", slim)):
        target.export(network, torch.zeros(1, 3, 24, 24), {}, [], tmp_path / f"{name}.zip")
    timing = target.time(tmp_path / "slim.zip", tmp_path / "wide.zip", inputs)
    assert timing.notes["batch"] == 2
    assert timing.unstable or 0 < timing.ratio < 0.8  # an eighth of the multiplications


def test_an_operator_that_openvino_lacks_is_named(tmp_path: Path) -> None:
    class Odd(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.linalg.det(x @ x.transpose(-1, -2) + torch.eye(4)).sum(1, keepdim=True)

    with pytest.raises(CandidateError, match=r"^export: OpenVINO has no operator Det$"):
        make_target("openvino-cpu").export(
            Odd().eval(), torch.randn(1, 2, 4, 4), {}, [], tmp_path / "a.zip"
        )


def test_wrong_options_are_input_errors() -> None:
    with pytest.raises(InputError, match="did you mean 'bfloat16'"):
        make_target("openvino-cpu", {"precision": "bfloat"})
    with pytest.raises(InputError, match="did you mean 'threads'"):
        make_target("openvino-cpu", {"thread": 2})
