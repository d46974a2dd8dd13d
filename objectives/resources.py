"""Quantities beyond latency that a job may ask for: throughput, peak memory, energy."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..targets.energy import energy_counters, energy_mj
from ..targets.footprint import can_measure_memory, peak_memory_bytes
from ..targets.target import Target
from .objective import quantity_name

RESOURCES = ("throughput", "peak_memory_bytes", "energy_mj")


def asked_resources(names: Collection[str]) -> tuple[str, ...]:
    """Which of RESOURCES these value names belong to."""
    quantities = {quantity_name(name) for name in names}
    return tuple(resource for resource in RESOURCES if resource in quantities)


def check_measurable(
    names: Collection[str], where: str = "objectives", targets: Collection[str] = ()
) -> None:
    """Raises InputError for a quantity that cannot be measured on this machine, or not of one of
    the ``targets``: memory and energy are those of this machine's processor."""
    asked = asked_resources(names)
    elsewhere = [t for t in targets if t.startswith("remote:") or t.endswith("-cuda")]
    for quantity in set(asked) & {"peak_memory_bytes", "energy_mj"} if elsewhere else ():
        raise InputError(
            where,
            f"{quantity} is not available of {elsewhere[0]!r}, which does not run on this "
            "machine's processor",
            "leave it out",
        )
    if "energy_mj" in asked and not energy_counters():
        raise InputError(
            where,
            "energy_mj is not available on this machine (no readable RAPL counter)",
            "leave it out, or measure on a machine whose /sys/class/powercap can be read",
        )
    if "peak_memory_bytes" in asked and not can_measure_memory():
        raise InputError(
            where,
            "peak_memory_bytes is not available on this system (no /proc/self/clear_refs)",
            "leave it out, or measure on Linux",
        )


def measure_resources(
    asked: Collection[str],
    target: Target,
    path: Path,
    inputs: np.ndarray,
    values: Mapping[str, float],
) -> dict[str, float]:
    """The asked quantities of one file. inputs: the timed batch, (batch, ...) float32.

    values: those measured before; throughput follows from latency_ms. Raises CandidateError.
    """
    found: dict[str, float] = {}
    if "throughput" in asked:
        found["throughput"] = 1000.0 * len(inputs) / values["latency_ms"]
    if "peak_memory_bytes" in asked:
        found["peak_memory_bytes"] = float(peak_memory_bytes(target, path, inputs.shape))
    if "energy_mj" in asked:
        runtime = target.load(path)
        found["energy_mj"] = energy_mj(lambda: runtime.predict(inputs))
    return found
