"""ONNX Runtime on a GPU, where there is one; else its refusals, and all of it but the GPU."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from paretune.errors import CandidateError, InputError
from paretune.objectives.latency import LatencyMeter
from paretune.targets import onnx_session
from paretune.targets.catalogue import make_target
from paretune.targets.onnx_session import CPU, CUDA, open_session
from paretune.targets.onnxruntime_cuda import OnnxRuntimeCuda
from paretune.targets.target import Bits, Target

_path = Path(__file__).parents[1] / "conformance" / "target_conformance.py"
_spec = importlib.util.spec_from_file_location("target_conformance", _path)
assert _spec and _spec.loader
_suite = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_suite)


GPU = CUDA in onnxruntime.get_available_providers() and torch.cuda.is_available()
"""Whether this ONNX Runtime was built for a GPU that is here: then nothing may be refused."""


class TestOnnxRuntimeCuda(_suite.TargetConformance):
    tolerance = 1e-2  # of float32 convolutions that may compute in TF32

    def make_target(self) -> Target:
        try:
            return make_target("onnxruntime-cuda", {"seconds": 0.5})
        except InputError as error:
            if GPU:
                raise
            pytest.skip(str(error))


class OnTheCpu(OnnxRuntimeCuda):
    """All of the target but its provider."""

    provider = CPU


@pytest.fixture()
def claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    """An ONNX Runtime that says it was built with CUDA."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])


@pytest.mark.usefixtures("claimed")
class TestWithoutTheGpu(_suite.TargetConformance):
    def make_target(self) -> Target:
        return OnTheCpu(seconds=0.2)


def test_without_cuda_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CPU])
    with pytest.raises(InputError) as caught:
        make_target("onnxruntime-cuda", where="job.yaml:3")
    said = str(caught.value)
    assert said.startswith("job.yaml:3: target 'onnxruntime-cuda': ") and "\n" not in said
    assert "built without CUDA" in said and 'pip install "onnxruntime-gpu"' in said


@pytest.mark.skipif(GPU, reason="the provider can be had here")
@pytest.mark.filterwarnings("ignore:Specified provider")
@pytest.mark.usefixtures("claimed")
def test_a_provider_that_is_left_out_silently_is_an_error() -> None:
    """The real runtime, asked for a provider that it cannot give, opens the file on the CPU."""
    with pytest.raises(InputError, match=f"no usable CUDA device here.*cannot use {CUDA} here"):
        make_target("onnxruntime-cuda")


def test_the_cpu_comes_after_the_provider_and_nothing_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[tuple[list[str], int]] = []
    real = onnxruntime.InferenceSession

    def session(data: bytes, options: Any, *, providers: list[str], enable_fallback: int) -> Any:
        asked.append((providers, enable_fallback))
        return real(data, options, providers=[CPU])

    runtime = onnx_session.require_runtime()
    monkeypatch.setattr(runtime, "InferenceSession", session)
    target, path = make_target("onnxruntime-cpu"), tmp_path / "a.onnx"
    target.export(nn.Sequential(nn.Linear(2, 2)).eval(), torch.zeros(1, 2), {}, [], path)
    asked.clear()
    open_session(path.read_bytes())
    with pytest.raises(CandidateError, match=f"^a: ONNX Runtime cannot use {CUDA} here$"):
        open_session(path.read_bytes(), where="a", provider=CUDA)
    assert asked == [([CPU], 0), ([CUDA, CPU], 0)]


@pytest.mark.usefixtures("claimed")
def test_it_is_timed_by_the_wall_and_stores_few_bits_with_float_activations(
    tmp_path: Path,
) -> None:
    target = OnTheCpu(batch=2, seconds=0.1)
    network = nn.Sequential(nn.Conv2d(3, 32, 3), nn.Conv2d(32, 32, 3)).eval()
    example, sizes = torch.zeros(1, 3, 8, 8), []
    for weight in (32, 8, 4):
        path = tmp_path / f"{weight}.onnx"
        target.export(network, example, {"1": Bits(weight, 32)}, [], path)
        sizes.append(path.stat().st_size)
    weights = 32 * 32 * 9
    assert sizes[0] - sizes[1] > 2.8 * weights and sizes[1] - sizes[2] > 0.48 * weights
    with pytest.raises(CandidateError, match="^1: onnxruntime-cuda runs .* activations of 32, not"):
        target.export(network, example, {"1": Bits(8, 8)}, [example.numpy()], tmp_path / "b")
    timing = target.time(tmp_path / "4.onnx", tmp_path / "32.onnx", example.numpy())
    assert timing.notes["clock"] == "perf_counter_ns" and timing.notes["batch"] == 2
    said = target.description
    assert (said["target"], said["provider"]) == ("onnxruntime-cuda", CPU) and "gpu" in said


@pytest.mark.usefixtures("claimed")
def test_runtimes_of_one_device_wait_for_each_other_and_others_do_not(tmp_path: Path) -> None:
    """Which lock a timing holds, seen while it is made."""
    held = {}
    for target in (make_target("onnxruntime-cpu"), make_target("torch-cpu"), OnTheCpu()):

        def time(*_: object, name: str = target.name) -> None:
            held[name] = sorted(path.name for path in tmp_path.glob(".device-*.lock"))
            raise CandidateError("seen")

        target.time = time  # type: ignore[method-assign, assignment]
        with pytest.raises(CandidateError, match="seen"):
            inputs = np.zeros((1, 2), dtype=np.float32)
            LatencyMeter(target, tmp_path, inputs).measure(tmp_path, tmp_path, "measure", None)
        for path in tmp_path.glob(".device-*.lock"):
            path.unlink()
    cpu = [".device-cpu.lock"]
    assert held == {"onnxruntime-cpu": cpu, "torch-cpu": cpu} | {
        "onnxruntime-cuda": [".device-cuda.lock"]
    }
