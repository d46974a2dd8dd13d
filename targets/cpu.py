"""The processor a measurement was made on, and where on it a timing thread may run."""

from __future__ import annotations

import contextlib
import os
import platform
import statistics
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

# Flags that decide which int8 and float kernels a runtime picks (x86, then ARM).
KERNEL_FLAGS = (
    *("sse4_1", "avx", "f16c", "fma", "avx2", "avx512f", "avx512bw"),
    *("avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16"),
    *("asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2"),
)
VNNI_FLAGS = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})
TRIED = 8
"""Equally idle cores, at most, that are told apart by the reference loop."""


@cache
def cpu_features() -> dict[str, Any]:
    """The processor as plain JSON, for manifests: architecture, model name, cores, kernel flags.

    ``flags`` holds those of KERNEL_FLAGS that the kernel reports, and is empty where the
    system does not tell them (no /proc/cpuinfo).
    """
    fields: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            key, colon, value = line.partition(":")
            if colon:
                fields.setdefault(key.strip().lower(), value.strip())
    known = set((fields.get("flags") or fields.get("features") or "").split())
    return {
        "architecture": platform.machine(),
        "model": fields.get("model name") or platform.processor() or "unknown",
        "cores": len(allowed_cores()) or os.cpu_count() or 1,
        "flags": [flag for flag in KERNEL_FLAGS if flag in known],
    }


def saturates_int8(features: dict[str, Any] | None = None) -> bool:
    """Whether products of uint8 and int8 are added in 16 bits here, so that they can saturate.

    True for x86 without VNNI (or with unknown flags). Weights are then stored in 7 bits
    (``reduce_range``), as ONNX Runtime's quantisation guide advises.
    """
    features = cpu_features() if features is None else features
    x86 = str(features["architecture"]).lower() in {"x86_64", "amd64", "i386", "i686", "x86"}
    return x86 and not VNNI_FLAGS & set(features["flags"])


def has_int8_kernels(features: dict[str, Any] | None = None) -> bool:
    """Whether this processor adds products of 8-bit integers in 32 bits (x86 with VNNI or AMX)."""
    features = cpu_features() if features is None else features
    return bool(VNNI_FLAGS & set(features["flags"]))


def allowed_cores() -> list[int]:
    """The cores this thread may run on; empty where the system does not tell."""
    if not hasattr(os, "sched_getaffinity"):
        return []
    return sorted(os.sched_getaffinity(0))


def reference_loop() -> int:
    """A fifth of a millisecond of arithmetic that keeps a core's units busy and needs no memory: it
    takes nearly twice as long while another guest of the host computes on the same physical core.
    """
    return sum(range(20_000))


def quiet_core(watch_s: float = 0.05) -> int | None:
    """The allowed core that was idle most during the next ``watch_s`` seconds, or None.

    Among cores as idle as it (:data:`TRIED` at most) it is one that runs the reference loop as fast
    as any: what the host's other guests do is no processor time here. Then the highest number
    wins (interrupts mostly go to the lowest).
    """
    cores = allowed_cores()
    if len(cores) < 2:
        return cores[0] if cores else None
    before = _idle_ticks()
    time.sleep(watch_s)
    after = _idle_ticks()
    idle = {core: after.get(core, 0) - before.get(core, 0) for core in cores}
    alike = [core for core in cores if idle[core] >= max(idle.values()) - 1][-TRIED:]
    if len(alike) == 1:
        return alike[0]
    loops = {core: _loop_ns(core) for core in alike}
    return max(core for core in alike if loops[core] <= 1.1 * min(loops.values()))


def _loop_ns(core: int) -> float:
    """What the reference loop takes on ``core``: the median of five."""
    took = []
    with pinned(core):
        for _ in range(5):
            begin = time.thread_time_ns()
            reference_loop()
            took.append(time.thread_time_ns() - begin)
    return statistics.median(took)


@contextlib.contextmanager
def pinned(core: int | None) -> Iterator[bool]:
    """Keep the calling thread on ``core``; its former cores are restored afterwards.

    Gives whether it worked: False for None, and where the system does not allow it.
    """
    former = allowed_cores()
    if core is None or not former:
        yield False
        return
    try:
        os.sched_setaffinity(0, {core})
    except OSError:
        yield False
        return
    try:
        yield True
    finally:
        os.sched_setaffinity(0, former)


def _idle_ticks() -> dict[int, int]:
    """Idle clock ticks of each core since boot (/proc/stat); empty where there is none."""
    ticks: dict[int, int] = {}
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/stat").read_text().splitlines():
            words = line.split()
            if words[0].startswith("cpu") and words[0] != "cpu":
                ticks[int(words[0][3:])] = int(words[4])
    return ticks
