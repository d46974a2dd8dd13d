"""Energy of a batch, where the machine can tell: RAPL counters of the processor package."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from ..errors import CandidateError

RAPL = Path("/sys/class/powercap")


def energy_counters(root: Path = RAPL) -> list[Path]:
    """The readable package counters (microjoules); empty where the machine does not tell."""
    found = []
    for folder in sorted(root.glob("intel-rapl:*")):
        counter = folder / "energy_uj"
        if folder.name.count(":") != 1:  # intel-rapl:0:0 is a part of intel-rapl:0
            continue
        try:
            int(counter.read_text())
        except (OSError, ValueError):
            continue
        found.append(counter)
    return found


def energy_mj(
    call: Callable[[], object], seconds: float = 1.0, counters: list[Path] | None = None
) -> float:
    """Millijoules of one call: what the processor packages used while it was repeated.

    Everything that runs on the processor counts, so other load has to be kept away. A counter that
    wraps around once is corrected. Raises CandidateError where the machine does not tell.
    """
    counters = energy_counters() if counters is None else counters
    if not counters:
        raise CandidateError("energy_mj: not available on this machine")
    before = [int(c.read_text()) for c in counters]
    calls, end = 0, time.perf_counter() + seconds
    while time.perf_counter() < end or not calls:
        call()
        calls += 1
    used = 0
    for counter, start in zip(counters, before, strict=True):
        grown = int(counter.read_text()) - start
        if grown < 0:
            grown += int((counter.parent / "max_energy_range_uj").read_text())
        used += grown
    return used / 1000 / calls
