"""The numbers a search can ask for: their names, directions and units."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import InputError, nearest


@dataclass(frozen=True)
class Quantity:
    """A named number: which way is better, and its unit."""

    maximize: bool
    unit: str
    meaning: str


QUANTITIES: dict[str, Quantity] = {
    "accuracy": Quantity(
        True, "share", "score of the exported file (top-1 unless the task differs)"
    ),
    "accuracy_drop": Quantity(False, "share", "the baseline's accuracy minus this one's"),
    "fidelity": Quantity(True, "share", "predictions equal to the original network's"),
    "divergence": Quantity(False, "nats", "mean divergence from the original network's outputs"),
    "loss": Quantity(False, "", "mean loss on labelled data"),
    "size_bytes": Quantity(False, "bytes", "the file that the runtime loads"),
    "size_ratio": Quantity(False, "x", "size_bytes over the baseline's"),
    "compression_ratio": Quantity(True, "x", "the baseline's size_bytes over this one's"),
    "archive_bytes": Quantity(
        False, "bytes", "a container that is decoded before it runs (sparse, codebook, 3 or 6 bits)"
    ),
    "archive_ratio": Quantity(False, "x", "archive_bytes over the baseline's size_bytes"),
    "latency_ms": Quantity(
        False, "ms", "one batch through the runtime, ratio times the baseline's"
    ),
    "latency_ratio": Quantity(False, "x", "latency over the interleaved baseline's"),
    "throughput": Quantity(True, "1/s", "examples a second, at the job's batch"),
    "macs": Quantity(False, "MACs", "multiply-accumulates of one example"),
    "params": Quantity(False, "", "parameters of the compressed network"),
    "peak_memory_bytes": Quantity(False, "bytes", "peak resident memory of a fresh process"),
    "energy_mj": Quantity(False, "mJ", "energy of one batch, where the machine can tell"),
}


@dataclass(frozen=True)
class Objective:
    """One axis of the front, e.g. ``Objective("latency_ms", {"target": "onnxruntime-cpu"})``."""

    name: str
    options: Mapping[str, Any]

    @property
    def maximize(self) -> bool:
        return QUANTITIES[quantity_name(self.name) or self.name].maximize

    @property
    def direction(self) -> str:
        """Optuna's word: ``"maximize"`` or ``"minimize"``."""
        return "maximize" if self.maximize else "minimize"

    @classmethod
    def parse(cls, item: Any, where: str = "objectives") -> Objective:
        """``"accuracy"`` or ``{"latency_ms": {"target": ..., "batch": 1}}``.

        Raises InputError on an unknown name (the nearest known one is given).
        """
        name, options = (item, {}) if isinstance(item, str) else _single(item, where)
        if name not in QUANTITIES:
            raise InputError(where, f"unknown objective {name!r:.80}", nearest(name, QUANTITIES))
        return cls(name, options)


def quantity_name(name: str) -> str | None:
    """The quantity behind a value's name: ``latency_ms_openvino_cpu`` is a ``latency_ms``."""
    owners = [q for q in QUANTITIES if name == q or name.startswith(q + "_")]
    return max(owners, key=len) if owners else None


def _single(item: Any, where: str) -> tuple[str, Mapping[str, Any]]:
    if not isinstance(item, Mapping) or len(item) != 1:
        raise InputError(where, f"expected a name or one {{name: options}}, got {item!r}", "")
    name, options = next(iter(item.items()))
    if not isinstance(options, Mapping | None):
        raise InputError(where, f"options of {name!r} must be a mapping, got {options!r}", "")
    return str(name), options or {}
