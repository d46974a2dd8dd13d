"""Quantities beyond latency that a job may ask for: throughput, peak memory, energy."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..targets.energy import energy_meter, energy_mj
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
    the ``targets``: memory is that of this machine's processor, energy of its processor or GPU."""
    asked = asked_resources(names)
    for target in targets or ("",):
        elsewhere = {
            "peak_memory_bytes": target.startswith("remote:") or _device(target) == "cuda",
            "energy_mj": target.startswith("remote:"),
        }
        for quantity in asked:
            if elsewhere.get(quantity):
                raise InputError(
                    where,
                    f"{quantity} is not available of {target!r}, which does not run on this "
                    "machine's processor",
                    "leave it out",
                )
        if "energy_mj" in asked and energy_meter(device := _device(target)) is None:
            raise InputError(where, *_NO_METER[device])
    if "peak_memory_bytes" in asked and not can_measure_memory():
        raise InputError(
            where,
            "peak_memory_bytes is not available on this system (no /proc/self/clear_refs)",
            "leave it out, or measure on Linux",
        )


_NO_METER = {
    "cpu": (
        "energy_mj is not available on this machine (no readable RAPL counter)",
        "leave it out, or measure on a machine whose /sys/class/powercap can be read",
    ),
    "cuda": (
        "energy_mj is not available on this machine (NVML tells of no GPU)",
        "leave it out, or install nvidia-ml-py beside a GPU and its driver",
    ),
}


def _device(target: str) -> str:
    return "cuda" if target.endswith("-cuda") or target == "tensorrt" else "cpu"


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
        meter = energy_meter(_device(target.name))
        found["energy_mj"] = energy_mj(lambda: runtime.predict(inputs), meter)
    return found
