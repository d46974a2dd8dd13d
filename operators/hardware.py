"""Where a training runs, and how precisely: plain CPU, one GPU, or all GPUs of a machine."""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..tasks.task import Task

_DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Hardware:
    """device: where tensors lie. dtype: autocast's, or None = float32 throughout."""

    device: torch.device
    dtype: torch.dtype | None

    @classmethod
    def choose(cls, device: str = "auto", precision: str = "auto") -> Hardware:
        """``auto``: a GPU if there is one; bf16 where it is computed natively, else float32.

        Raises InputError for a GPU that is not there, and for fp16 on a CPU.
        """
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        chosen = torch.device(device)
        if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
            raise InputError(
                "recover.device",
                f"{device!r}: this machine has {torch.cuda.device_count()} CUDA devices",
                "write auto or cpu",
            )
        if precision == "fp16" and chosen.type == "cpu":
            raise InputError("recover.precision", "'fp16' is for GPUs", "write auto or bf16")
        if precision == "auto":
            precision = "bf16" if native_bf16(chosen) else "fp32"
        return cls(chosen, _DTYPES[precision])

    @property
    def kind(self) -> str:
        """``cpu`` or ``cuda``."""
        return self.device.type

    def place(self, network: nn.Module, task: Task) -> nn.Module:
        """``network`` itself, moved here; images (n, C, H, W) are kept channels last, which is
        faster. The task's own network is copied first, and its copy is not trained."""
        if network is task.network:
            network = copy.deepcopy(network).requires_grad_(False).eval()
        layout = torch.channels_last if task.example.ndim == 4 else torch.preserve_format
        return network.to(self.device).to(memory_format=layout)

    def send(self, inputs: Tensor) -> Tensor:
        """A batch, moved here."""
        layout = torch.channels_last if inputs.ndim == 4 else torch.preserve_format
        return inputs.to(self.device, memory_format=layout)

    def autocast(self) -> AbstractContextManager[Any]:
        """The context in which networks run."""
        if self.dtype is None:
            return nullcontext()
        return torch.autocast(self.kind, self.dtype)

    def spread(self, network: nn.Module, alone: bool = False) -> nn.Module:
        """``network`` run on all GPUs, each batch divided among them, where there are several.

        Not when one GPU was named, and not with ``alone`` (inner outputs are then needed).
        """
        several = self.kind == "cuda" and self.device.index is None
        if alone or not several or torch.cuda.device_count() < 2:
            return network
        return nn.DataParallel(network)


def native_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 itself (emulated, it is ten times slower)."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    flags = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(bool(getattr(torch.cpu, flag, lambda: False)()) for flag in flags)
