"""Throughput, peak memory and energy: measured, or refused before anything is started."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from paretune.errors import CandidateError, InputError
from paretune.objectives import resources
from paretune.objectives.further import relate
from paretune.objectives.problem import parse_constraints, parse_objectives
from paretune.targets.catalogue import make_target
from paretune.targets.energy import energy_mj, gpu_meter, processor_meter
from paretune.targets.footprint import can_measure_memory, peak_memory_bytes
from paretune.tasks.job import load_job

JOB = {
    "name": "resources",
    "task": {"model": "paretune.tasks.vision:plain_cnn", "data": {"kind": "digits"}},
}


def test_throughput_is_examples_a_second() -> None:
    batch = np.zeros((8, 3), dtype=np.float32)
    target = make_target("onnxruntime-cpu")
    found = resources.measure_resources(
        ["throughput"], target, Path("none"), batch, {"latency_ms": 4.0}
    )
    assert found == {"throughput": 2000.0}


def test_throughput_is_as_uncertain_as_the_latency_it_follows_from() -> None:
    values = {"latency_ms": 4.0, "throughput": 2000.0, "size_bytes": 10.0}
    errors = {"latency_ms": 0.06}
    relate(values, errors, None, "accuracy")
    assert errors["throughput"] == pytest.approx(0.015 * 2000)


def test_energy_is_refused_where_the_machine_does_not_tell(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resources, "energy_meter", lambda device: None)
    job = load_job({**JOB, "objectives": ["accuracy", "energy_mj"]})
    with pytest.raises(InputError, match=r"objectives\[1\]: energy_mj is not available"):
        parse_objectives(job)
    job = load_job({**JOB, "constraints": ["energy_mj < 5"]})
    with pytest.raises(InputError, match=r"constraints\[0\]: energy_mj is not available"):
        parse_constraints(job)
    job = load_job({**JOB, "target": {"name": "torch-cuda"}, "constraints": ["energy_mj < 5"]})
    with pytest.raises(InputError, match=r"\(NVML tells of no GPU\); .*nvidia-ml-py"):
        parse_constraints(job)


@pytest.mark.parametrize(
    ("name", "quantity"),
    [
        ("remote:https://board:8765", "energy_mj"),
        ("remote:https://board:8765", "peak_memory_bytes"),
        ("torch-cuda", "peak_memory_bytes"),
        ("tensorrt", "peak_memory_bytes"),
    ],
)
def test_what_runs_elsewhere_is_not_measured_here(
    name: str, quantity: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resources, "energy_meter", lambda device: float)
    monkeypatch.setattr(resources, "can_measure_memory", lambda: True)
    here = {**JOB, "objectives": ["accuracy"], "constraints": [f"{quantity} < 5"]}
    parse_constraints(load_job(here))
    there = {"target": {"name": name}}
    with pytest.raises(InputError, match=f"constraints.0.: {quantity} is not available of '{name}"):
        parse_constraints(load_job({**here, **there}))
    with pytest.raises(InputError, match=f"objectives.1.: {quantity} is not available of '{name}"):
        parse_objectives(load_job({**JOB, **there, "objectives": ["accuracy", quantity]}))


def test_energy_is_what_the_counters_grew_by(tmp_path: Path) -> None:
    counter = tmp_path / "intel-rapl:0" / "energy_uj"
    for name in ("intel-rapl:0", "intel-rapl:0:0"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "energy_uj").write_text("900")
        (tmp_path / name / "max_energy_range_uj").write_text("1000")
    meter = processor_meter(tmp_path)

    def call() -> None:
        counter.write_text(str((int(counter.read_text()) + 300) % 1000))

    assert energy_mj(call, meter, 0.0) == pytest.approx(0.3)  # the warm-up wrapped the counter
    counter.write_text("600")
    assert energy_mj(call, processor_meter(tmp_path), 0.0) == pytest.approx(0.3)  # wrapped in it
    assert processor_meter(tmp_path / "nowhere") is None
    with pytest.raises(CandidateError, match="not available"):
        energy_mj(call, None, 0.0)


def test_a_gpus_energy_is_nvmls(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for NVML, which counts millijoules since its driver was loaded."""
    used = {"a": 7000, "b": 100}
    nvml = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByIndex=lambda index: "ab"[index],
        nvmlDeviceGetTotalEnergyConsumption=lambda gpu: used[gpu],
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    meter = gpu_meter()
    assert energy_mj(lambda: used.update(b=used["b"] + 25), meter, 0.0) == pytest.approx(25)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")  # no such GPU
    assert gpu_meter() is None
    monkeypatch.setitem(sys.modules, "pynvml", None)  # not installed
    assert gpu_meter() is None


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells it")
def test_peak_memory_grows_with_the_weights(tmp_path: Path) -> None:
    """A file with 64 MB of weights needs at least 60 MB more than one with 4 kB."""
    assert can_measure_memory()
    peaks = []
    for rows in (1, 16384):
        weight = np.random.default_rng(0).standard_normal((rows, 1024)).astype(np.float32).T
        initial = onnx.numpy_helper.from_array(np.ascontiguousarray(weight), "w")
        node = helper.make_node("MatMul", ["input", "w"], ["output"])
        ends = [
            helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", 1024]),
            helper.make_tensor_value_info("output", TensorProto.FLOAT, ["n", rows]),
        ]
        graph = helper.make_graph([node], "g", ends[:1], ends[1:], [initial])
        path = tmp_path / f"{rows}.onnx"
        opset = [helper.make_opsetid("", 17)]
        onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
        peaks.append(peak_memory_bytes(make_target("onnxruntime-cpu"), path, (2, 1024)))
    assert peaks[1] - peaks[0] > 60e6 and peaks[1] < 600e6
    with pytest.raises(CandidateError, match="absent.onnx"):
        peak_memory_bytes(make_target("onnxruntime-cpu"), tmp_path / "absent.onnx", (1, 4))
