"""Does a target work on this machine? A tiny network is exported to it, run there and compared."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ..errors import InputError, ParetuneError
from .catalogue import TARGETS, make_target
from .target import Bits

RUNTIMES = ("onnxruntime", "openvino", "executorch", "litert", "tensorrt", "torch")
_CLOSE = 1e-3  # of the largest output, for a float32 file
_ROUGH = 0.25  # of the same, for int8


@dataclass(frozen=True)
class Tryout:
    """What became of one target. state: "works", "absent" (its runtime or device is not here) or
    "broken". detail: the runtime's version, or why; bits: widths that were run."""

    target: str
    state: str
    detail: str
    seconds: float = 0.0


class _Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(torch.relu(self.conv(x)).mean((2, 3)))
        return found


def try_targets() -> Iterator[Tryout]:
    """Try every target that paretune knows (some seconds in all)."""
    for name in TARGETS:
        yield try_target(name)


def try_target(name: str) -> Tryout:
    """Export a tiny network in float32 and, where offered, in int8; run both and compare them with
    torch's outputs."""
    start = time.perf_counter()
    try:
        target = make_target(name)
    except InputError as error:  # the runtime or the device is missing
        told = error.problem + (f"; {error.remedy}" if error.remedy else "")
        return Tryout(name, "absent", told)
    except ParetuneError as error:
        return Tryout(name, "absent", str(error))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = _Tiny().eval()
        inputs = torch.randn(16, 3, 8, 8)
    with torch.inference_mode():
        expected = network(inputs).numpy()
    widths = [(32, 32)] + [(8, 8)] * ((8, 8) in target.choices.bits)
    try:
        with tempfile.TemporaryDirectory(prefix="paretune-doctor-") as folder:
            for weight, activation in widths:
                path = Path(folder) / f"{weight}.{target.format}"
                bits = {"conv": Bits(weight, activation)}
                target.export(network, inputs[:1], bits, [inputs.numpy()], path)
                found = target.load(path).predict(inputs.numpy())
                off = float(abs(found - expected).max() / abs(expected).max())
                if off > (_CLOSE if weight == 32 else _ROUGH):
                    kind = "float32" if weight == 32 else "int8"
                    return Tryout(name, "broken", f"its {kind} outputs are {off:.0%} off torch's")
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        return Tryout(name, "broken", reason[0][:200])
    said = target.description
    version = next(
        (f"{k} {said[k]}" for k in RUNTIMES if k in said),
        "",
    )
    kinds = "float32 and int8" if len(widths) > 1 else "float32"
    return Tryout(name, "works", f"{kinds}; {version}".rstrip("; "), time.perf_counter() - start)
