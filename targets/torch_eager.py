"""The targets ``torch-cpu`` and ``torch-cuda``: PyTorch itself, eager or compiled."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..errors import CandidateError, InputError
from ..spaces.choices import Choices
from .clocked import ClockedTarget, Run, brief, check_bits, first_examples
from .target import Bits, Grid
from .timing import Clock
from .torch_lowering import has_8_bits, integer_kernels, lowered
from .torch_program import ProgramError, read_program, write_program
from .torch_quantize import INSTALL, quantized
from .whole_file import write_bytes


class TorchCpu(ClockedTarget):
    """Run in PyTorch on the CPU: float32, bfloat16 and int8, layer by layer.

    The artifact holds the operators as JSON and the tensors as safetensors (see torch_program.py):
    no pickle, and the network's class is not needed to load it. int8 is static, by torchao's PT2E
    (torch_quantize.py), and runs on oneDNN's kernels (torch_lowering.py). It is offered where the
    processor has VNNI or AMX and torchao is installed; a file runs everywhere.
    compile: run through ``torch.compile`` (needs a C++ compiler; minutes for a large network).
    Files with 8-bit layers run on their kernels as they are: torch.compile makes float32 of them.
    The other options are those of :class:`.clocked.ClockedTarget`.
    """

    name = "torch-cpu"
    format = "safetensors"
    choices = Choices(bits=((32, 32), (16, 16)))
    half = torch.bfloat16

    def __init__(self, *, compile: bool = False, **options: Any) -> None:
        super().__init__(**options)
        if not isinstance(compile, bool):
            raise InputError("compile", f"expected true or false, got {compile!r}", "")
        self.compile = compile
        missing = self._without_int8()
        if missing:
            self.choices = replace(type(self).choices, without=((8, missing),))
        else:
            self.choices = replace(type(self).choices, bits=(*type(self).choices.bits, (8, 8)))

    def _without_int8(self) -> str:
        """Why 8 bits are not offered here; empty where they are."""
        if not integer_kernels():
            return "this processor has no fast 8-bit kernels (VNNI or AMX)"
        return "" if find_spec("torchao") else f"torchao is missing: {INSTALL}"

    def _versions(self) -> dict[str, Any]:
        torchao = {} if self.choices.without else {"torchao": version("torchao")}
        return {"torch": torch.__version__, **torchao, "compile": self.compile}

    def export(
        self,
        network: nn.Module,
        example: torch.Tensor,
        bits: Mapping[str, Bits],
        calibration: Iterable[np.ndarray],
        path: Path,
        grids: Mapping[str, Grid] | None = None,
    ) -> None:
        """Write ``network`` as one safetensors file; see Target.export.

        Raises CandidateError naming the layer, or the operator that cannot be kept.
        """
        names = dict(network.named_modules())
        for layer, wanted in bits.items():
            reason = dict(self.choices.without).get(wanted.weight)
            if reason:
                raise CandidateError(f"{layer}: {self.name} without {wanted.weight} bits: {reason}")
        widths = check_bits(bits, self.choices.bits, names, self.name, grids)
        copied = copy.deepcopy(network).eval()
        for layer in widths.get((16, 16), []):
            parent, _, leaf = layer.rpartition(".")
            inner = copied.get_submodule(layer)
            setattr(copied.get_submodule(parent), leaf, _Half(inner, self.half))
        layers = widths.get((8, 8), [])
        try:
            if layers:
                examples = first_examples(calibration, self.calibration_examples)
                copied = quantized(copied, example, layers, examples)
            data = write_program(copied, example)
        except CandidateError:
            raise
        except Exception as error:
            raise CandidateError(f"export: torch.export refuses it ({brief(error)})") from error
        write_bytes(Path(path), data)

    def _open(self, data: bytes, threads: int, batch: int | None, where: str) -> Run:
        integers = self.device == "cpu" and integer_kernels()
        try:
            network: Any = read_program(data, self.device)
            eight = has_8_bits(network)
            if eight:
                network = lowered(network, integers)
        except ProgramError as error:
            raise CandidateError(f"{where}: {error}") from error
        except Exception as error:
            raise CandidateError(f"{where}: its 8-bit layers cannot be ({brief(error)})") from error
        if self.compile and not (eight and integers):
            network = torch.compile(network, dynamic=batch is None)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)

        def run(inputs: np.ndarray) -> np.ndarray:
            with torch.inference_mode():
                return network(torch.from_numpy(inputs).to(self.device)).float().cpu().numpy()  # type: ignore[no-any-return]

        return run


class TorchCuda(TorchCpu):
    """The same on an NVIDIA GPU, float16 instead of bfloat16, timed with CUDA events."""

    name = "torch-cuda"
    device = "cuda"
    half = torch.float16

    def _without_int8(self) -> str:
        return "its int8 kernels were not tried on a GPU yet"

    def __init__(self, *, compile: bool = False, **options: Any) -> None:
        if not torch.cuda.is_available():
            raise InputError(
                "target 'torch-cuda'", "there is no CUDA device here", "use 'torch-cpu'"
            )
        super().__init__(compile=compile, **options)

    def _versions(self) -> dict[str, Any]:
        gpu = torch.cuda.get_device_name()
        return super()._versions() | {"cuda": torch.version.cuda, "gpu": gpu}

    @property
    def _clock(self) -> Clock:
        return CudaClock()


class CudaClock:
    """Nanoseconds on the GPU's own clock: each reading is a CUDA event that is waited for."""

    __name__ = "cuda_events"

    def __init__(self) -> None:
        self._last: Any = None
        self._ns = 0

    def __call__(self) -> int:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        event.synchronize()
        if self._last is None:
            self._ns = time.perf_counter_ns()
        else:
            self._ns += round(self._last.elapsed_time(event) * 1e6)
        self._last = event
        return self._ns


class _Half(nn.Module):
    """A layer that computes in half precision; what enters and leaves it is float32."""

    def __init__(self, layer: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.layer, self.dtype = layer.to(dtype), dtype

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.layer(inputs.to(self.dtype)).float()  # type: ignore[no-any-return]
