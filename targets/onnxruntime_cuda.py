"""The target ``onnxruntime-cuda``: ONNX files on an NVIDIA GPU."""

from __future__ import annotations

import time
from typing import Any

import torch
from onnx import TensorProto, helper

from ..errors import CandidateError, InputError
from ..spaces.choices import Choices
from .onnx_session import CUDA, open_session, require_runtime
from .onnxruntime_cpu import OnnxRuntimeCpu
from .timing import Clock


class OnnxRuntimeCuda(OnnxRuntimeCpu):
    """The files of ``onnxruntime-cpu`` in float32, run by ONNX Runtime's CUDA provider.

    That provider has no 8-bit convolutions (their nodes would go back to the CPU one by one), so
    activations stay float32; weights of fewer bits make the file smaller, not faster. A session
    without the provider is an error, never a silent run on the CPU; single operators that it lacks
    are computed on the CPU, and the way there and back is timed with the rest.

    A timed call is what ``session.run`` on NumPy arrays takes by the wall clock: the batch goes to
    the GPU, is computed, and the outputs come back, as for ``torch-cuda``.
    linears: see :class:`.onnxruntime_cpu.OnnxRuntimeCpu`. The other options are those of
    :class:`.clocked.ClockedTarget`. CUDA_VISIBLE_DEVICES chooses among several GPUs.

    Raises InputError where ONNX Runtime has no CUDA provider, or cannot use it here.
    """

    name = "onnxruntime-cuda"
    choices = Choices(bits=((32, 32),), more_bits=tuple((w, 32) for w in (8, 6, 4, 3, 2)))
    provider = CUDA
    device = "cuda"

    def __init__(self, *, linears: str = "packed", seconds: float = 3.0, **options: Any) -> None:
        where = f"target {self.name!r}"
        if CUDA not in require_runtime(self.name).get_available_providers():
            raise InputError(
                where,
                "the onnxruntime that is installed was built without CUDA",
                'pip uninstall onnxruntime, then pip install "onnxruntime-gpu"; or use '
                "'onnxruntime-cpu'",
            )
        try:
            open_session(_smallest_model(), where="CUDA", provider=self.provider)
        except CandidateError as error:
            raise InputError(
                where,
                f"there is no usable CUDA device here ({error})",
                "see that the driver, CUDA and cuDNN are those that this onnxruntime wants; or use "
                "'onnxruntime-cpu'",
            ) from error
        super().__init__(linears=linears, seconds=seconds, **options)

    def _versions(self) -> dict[str, Any]:
        told = torch.cuda.is_available()  # also where torch was built without CUDA
        return {
            "onnxruntime": require_runtime(self.name).__version__,
            "linears": self.linears,
            "provider": self.provider,
            "gpu": torch.cuda.get_device_name() if told else "unknown",
        }

    @property
    def _clock(self) -> Clock:
        """Wall time, also with one thread: the calling thread waits while the GPU computes."""
        return time.perf_counter_ns


def _smallest_model() -> bytes:
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", ports[:1], ports[1:])
    opset = [helper.make_opsetid("", 17)]
    return bytes(helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString())
