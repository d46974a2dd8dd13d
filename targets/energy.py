"""Energy of a batch, where the machine can tell: RAPL for its processors, NVML for its GPU."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import CandidateError

RAPL = Path("/sys/class/powercap")
Meter = Callable[[], float]
"""Millijoules that a device has used so far; only differences mean anything."""


def energy_meter(device: str = "cpu") -> Meter | None:
    """The meter of this machine's processors (``cpu``) or first visible GPU (``cuda``), or None
    where the machine does not tell."""
    return gpu_meter() if device == "cuda" else processor_meter()


def processor_meter(root: Path = RAPL) -> Meter | None:
    """The sum of the RAPL counters of the processor packages that can be read."""
    counters = []
    for folder in sorted(root.glob("intel-rapl:*")):
        counter = folder / "energy_uj"
        if folder.name.count(":") != 1:  # intel-rapl:0:0 is a part of intel-rapl:0
            continue
        try:
            counters.append(_Counter(counter))
        except (OSError, ValueError):
            continue
    return (lambda: sum(counter.read_mj() for counter in counters)) if counters else None


class _Counter:
    """A RAPL counter, which may wrap around once between two readings."""

    def __init__(self, path: Path) -> None:
        self._path, self._used = path, 0
        self._last = int(path.read_text())

    def read_mj(self) -> float:
        now = int(self._path.read_text())
        if now < self._last:
            self._used += int((self._path.parent / "max_energy_range_uj").read_text())
        self._used += now - self._last
        self._last = now
        return self._used / 1000


def gpu_meter() -> Meter | None:
    """NVML's counter of the first visible GPU (needs ``nvidia-ml-py`` and a Volta or newer)."""
    try:
        import pynvml

        nvml: Any = pynvml
        nvml.nvmlInit()
        first = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip() or "0"
        if first.isdigit():
            gpu = nvml.nvmlDeviceGetHandleByIndex(int(first))
        else:
            gpu = nvml.nvmlDeviceGetHandleByUUID(first)
        nvml.nvmlDeviceGetTotalEnergyConsumption(gpu)
    except Exception:  # not installed, no driver, no GPU, or one too old
        return None
    return lambda: float(nvml.nvmlDeviceGetTotalEnergyConsumption(gpu))


def energy_mj(call: Callable[[], object], meter: Meter | None, seconds: float = 1.0) -> float:
    """Millijoules of one call: what the device used while it was repeated.

    Everything that runs on the device counts, so other load has to be kept away; its idle power
    counts too. Raises CandidateError where the machine does not tell (``meter`` is None).
    """
    if meter is None:
        raise CandidateError("energy_mj: not available on this machine")
    call()
    before = meter()
    calls, end = 0, time.perf_counter() + seconds
    while time.perf_counter() < end or not calls:
        call()
        calls += 1
    return (meter() - before) / calls
