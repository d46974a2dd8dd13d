"""The target as a whole: the conformance suite, its options, and the catalogue."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from paretune.errors import CandidateError, InputError
from paretune.targets import cpu
from paretune.targets.catalogue import TARGETS, make_target
from paretune.targets.cpu import (
    allowed_cores,
    cpu_features,
    pinned,
    quiet_core,
    saturates_int8,
)
from paretune.targets.onnxruntime_cpu import OnnxRuntimeCpu
from paretune.targets.target import Bits

_path = Path(__file__).parents[1] / "conformance" / "target_conformance.py"
_spec = importlib.util.spec_from_file_location("target_conformance", _path)
assert _spec and _spec.loader
_suite = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_suite)


class TestQOperator(_suite.TargetConformance):
    def make_target(self) -> OnnxRuntimeCpu:
        return OnnxRuntimeCpu(seconds=0.5)


class TestQdq(_suite.TargetConformance):
    def make_target(self) -> OnnxRuntimeCpu:
        return OnnxRuntimeCpu(format="qdq", seconds=0.5, threads=2)


def test_catalogue_makes_targets_and_names_the_nearest() -> None:
    assert set(TARGETS) >= {"onnxruntime-cpu", "openvino-cpu", "executorch-xnnpack"}
    target = make_target("onnxruntime-cpu", {"format": "qdq", "batch": 4})
    assert (target.name, target.quantized_format, target.batch) == ("onnxruntime-cpu", "qdq", 4)
    with pytest.raises(InputError, match=r"job.yaml:3.*did you mean 'onnxruntime-cpu'"):
        make_target("onnxruntime", where="job.yaml:3")
    with pytest.raises(InputError, match="did you mean 'threads'"):
        make_target("onnxruntime-cpu", {"thread": 1})


@pytest.mark.parametrize(
    "options",
    [{"format": "qop"}, {"threads": 0}, {"batch": "8"}, {"seconds": -1}, {"reduce_range": "no"}],
)
def test_wrong_options_are_input_errors(options: dict[str, object]) -> None:
    with pytest.raises(InputError, match=f"here: {next(iter(options))}"):
        make_target("onnxruntime-cpu", options, where="here")


def test_description_is_json_and_names_the_processor() -> None:
    description = OnnxRuntimeCpu(reduce_range=False).description
    assert json.loads(json.dumps(description)) == description
    assert description["reduce_range"] is False and description["cpu"]["cores"] >= 1


@pytest.mark.parametrize(
    ("architecture", "flags", "expected"),
    [
        ("x86_64", ["avx2"], True),
        ("x86_64", [], True),
        ("x86_64", ["avx2", "avx512f", "avx512_vnni"], False),
        ("AMD64", ["avx2", "avx_vnni"], False),
        ("aarch64", ["asimd"], False),
    ],
)
def test_reduced_range_follows_the_instruction_set(
    architecture: str, flags: list[str], expected: bool
) -> None:
    assert saturates_int8({"architecture": architecture, "flags": flags}) is expected


def test_pinning_is_undone() -> None:
    before = allowed_cores()
    core = quiet_core(0.01)
    if core is None:
        pytest.skip("this system does not tell the cores of a thread")
    assert core in before
    with pinned(core) as worked:
        assert not worked or allowed_cores() == [core]
    assert allowed_cores() == before
    with pinned(None) as worked:
        assert not worked
    assert cpu_features()["cores"] == len(before)


def test_equally_idle_cores_are_told_apart_by_the_loop(monkeypatch) -> None:
    """Cores 1 to 3 are idle; another guest computes on 1, which no count of idle time shows."""
    ticks = iter([dict.fromkeys(range(4), 0), {0: 1, 1: 5, 2: 5, 3: 4}] * 2)
    monkeypatch.setattr(cpu, "allowed_cores", lambda: [0, 1, 2, 3])
    monkeypatch.setattr(cpu, "_idle_ticks", lambda: next(ticks))
    loops = {1: 200_000, 2: 202_000, 3: 380_000}
    monkeypatch.setattr(cpu, "_loop_ns", loops.__getitem__)
    assert quiet_core(0.0) == 2
    loops[3] = 205_000
    assert quiet_core(0.0) == 3


def test_predict_takes_more_than_a_batch_and_names_wrong_shapes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).eval()
    target = OnnxRuntimeCpu()
    target.export(network, torch.zeros(1, 3, 2, 2), {}, [], tmp_path / "a.onnx")
    inputs = np.random.default_rng(1).standard_normal((257, 3, 2, 2)).astype(np.float32)
    runtime = target.load(tmp_path / "a.onnx", threads=2)
    with torch.no_grad():
        expected = network(torch.from_numpy(inputs)).numpy()
    np.testing.assert_allclose(runtime.predict(inputs), expected, atol=1e-5)
    with pytest.raises(CandidateError, match="a.onnx: it does not run"):
        runtime.predict(inputs[:, :2])
    with pytest.raises(InputError):
        runtime.predict(inputs[:0])


def test_weights_in_another_file_are_refused(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.zeros((300, 300), dtype=np.float32), "w")
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["b", 300]) for n in "xy"]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], "g", ports[:1], ports[1:], [weight]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, size_threshold=10)
    with pytest.raises(CandidateError, match="'w' lies in another file"):
        OnnxRuntimeCpu().load(tmp_path / "m.onnx")


def test_calibration_is_needed_for_8_bits_only(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3)).eval()
    target, example = OnnxRuntimeCpu(), torch.zeros(1, 1, 4, 4)
    target.export(network, example, {"0": Bits(32, 32)}, [], tmp_path / "a.onnx")
    with pytest.raises(CandidateError, match="no example given"):
        target.export(network, example, {"0": Bits(8, 8)}, [], tmp_path / "b.onnx")
    bad = np.full((1, 1, 4, 4), np.nan, dtype=np.float32)
    with pytest.raises(CandidateError, match="not finite"):
        target.export(network, example, {"0": Bits(8, 8)}, [bad], tmp_path / "b.onnx")


def test_batch_is_cut_or_repeated(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3)).eval()
    target = OnnxRuntimeCpu(batch=5, seconds=0.2)
    target.export(network, torch.zeros(1, 1, 9, 9), {}, [], tmp_path / "a.onnx")
    inputs = np.zeros((2, 1, 9, 9), dtype=np.float32)
    timing = target.time(tmp_path / "a.onnx", tmp_path / "a.onnx", inputs)
    assert timing.notes["batch"] == 5
    states = target.states
    assert states is not None and "5x1x9x9" in states.of
    assert OnnxRuntimeCpu(batch=5, states=states.to_json()).states == states
