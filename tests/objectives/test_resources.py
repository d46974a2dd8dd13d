"""Throughput, peak memory and energy: measured, or refused before anything is started."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from paretune.errors import CandidateError, InputError
from paretune.objectives import resources
from paretune.objectives.further import relate
from paretune.objectives.problem import parse_constraints, parse_objectives
from paretune.targets.catalogue import make_target
from paretune.targets.energy import energy_counters, energy_mj
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
    monkeypatch.setattr(resources, "energy_counters", list)
    job = load_job({**JOB, "objectives": ["accuracy", "energy_mj"]})
    with pytest.raises(InputError, match=r"objectives\[1\]: energy_mj is not available"):
        parse_objectives(job)
    job = load_job({**JOB, "constraints": ["energy_mj < 5"]})
    with pytest.raises(InputError, match=r"constraints\[0\]: energy_mj is not available"):
        parse_constraints(job)


@pytest.mark.parametrize("quantity", ["energy_mj", "peak_memory_bytes"])
@pytest.mark.parametrize("name", ["remote:https://board:8765", "torch-cuda"])
def test_what_runs_elsewhere_is_not_measured_here(
    name: str, quantity: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resources, "energy_counters", lambda: [Path("counter")])
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
    assert energy_counters(tmp_path) == [counter]

    def call() -> None:
        counter.write_text(str((int(counter.read_text()) + 300) % 1000))

    assert energy_mj(call, 0.0, [counter]) == pytest.approx(0.3)  # one call, the counter wrapped
    with pytest.raises(CandidateError, match="not available"):
        energy_mj(call, 0.0, [])


@pytest.mark.skipif(not can_measure_memory(), reason="no /proc/self/clear_refs")
def test_peak_memory_grows_with_the_weights(tmp_path: Path) -> None:
    """A file with 64 MB of weights needs at least 60 MB more than one with 4 kB."""
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
