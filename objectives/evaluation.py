"""What came of one plan: the record that crosses back from a worker and is kept for ever."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import InputError
from ..spaces.plan import CompressionPlan

VERSION = 1
RUNGS = ("screen", "measure", "recover", "confirm")


@dataclass(frozen=True)
class Artifact:
    """An exported file, named by its content: ``artifacts/<sha256>.<format>`` in the study.

    beside: in a job with several targets, the same plan's files for the further ones, by target.
    """

    sha256: str
    size_bytes: int
    format: str  # the file's extension, e.g. "onnx"
    beside: Mapping[str, Artifact] = field(default_factory=dict)

    @property
    def file_name(self) -> str:
        return f"{self.sha256}.{self.format}"

    @property
    def files(self) -> tuple[Artifact, ...]:
        """This file and those beside it."""
        return (self, *self.beside.values())

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; :meth:`from_json` reads it back equal."""
        data: dict[str, Any] = {k: v for k, v in vars(self).items() if k != "beside"}
        if self.beside:
            data["beside"] = {target: file.to_json() for target, file in self.beside.items()}
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Artifact:
        beside = {target: cls.from_json(file) for target, file in data.get("beside", {}).items()}
        return cls(data["sha256"], data["size_bytes"], data["format"], beside)


@dataclass(frozen=True)
class Evaluation:
    """The numbers of one plan at one rung of the fidelity ladder, or why there are none.

    rung: ``"screen"`` (a cheap guess, never on a front), ``"measure"`` (exported file, search
        split), ``"recover"`` (the same after training) or ``"confirm"`` (exported file, evaluate
        split).
    values: named with units: accuracy, accuracy_drop, size_bytes, size_ratio, compression_ratio,
        latency_ms, latency_ratio, macs, params ... Finite floats, empty when failed.
    errors: one standard error for those values that have one, same keys and units.
    artifact: the exported file that gave the values.
    cause: one line why it failed, else None. ``detail``: the traceback, for ``--debug``.
    seconds: wall time by stage. notes: conditions of the measurement (timing state, runtime ...).
    """

    plan: CompressionPlan
    rung: str
    values: Mapping[str, float] = field(default_factory=dict)
    errors: Mapping[str, float] = field(default_factory=dict)
    artifact: Artifact | None = None
    cause: str | None = None
    detail: str | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)
    version: int = VERSION

    @property
    def weights(self) -> Artifact | None:
        """The trained tensors behind a recovered point, kept beside its exported file."""
        recovery = self.notes.get("recovery")
        return Artifact(**recovery["weights"]) if recovery else None

    @property
    def failed(self) -> bool:
        return self.cause is not None

    @classmethod
    def failure(
        cls, plan: CompressionPlan, cause: str, rung: str = "measure", detail: str | None = None
    ) -> Evaluation:
        """A failed candidate, with its cause in one line."""
        line = " ".join(cause.split())[:500] or "unknown cause"
        return cls(plan=plan, rung=rung, cause=line, detail=detail)

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits over the plan, the rung and the values."""
        data = [self.plan.fingerprint, self.rung, sorted(self.values.items()), self.cause]
        return hashlib.sha256(json.dumps(data).encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; :meth:`from_json` reads it back equal."""
        return {
            "version": self.version,
            "plan": self.plan.to_json(),
            "rung": self.rung,
            "values": dict(self.values),
            "errors": dict(self.errors),
            "artifact": self.artifact.to_json() if self.artifact else None,
            "cause": self.cause,
            "detail": self.detail,
            "seconds": dict(self.seconds),
            "notes": dict(self.notes),
        }

    @classmethod
    def from_json(cls, data: Any, where: str = "evaluation") -> Evaluation:
        """Read an evaluation back, refusing values that are not finite numbers.

        Raises InputError naming the key. This is the gate before anything is told to a sampler.
        """
        if not isinstance(data, Mapping) or data.get("version") != VERSION:
            raise InputError(where, "not an evaluation of this version", "")
        if data.get("rung") not in RUNGS:
            raise InputError(where, f"unknown rung {data.get('rung')!r}", "known: measure, ...")
        artifact = data.get("artifact")
        return cls(
            plan=CompressionPlan.from_json(data.get("plan"), f"{where}.plan"),
            rung=data["rung"],
            values=_finite(data.get("values"), f"{where}.values"),
            errors=_finite(data.get("errors"), f"{where}.errors"),
            artifact=Artifact.from_json(artifact) if artifact else None,
            cause=data.get("cause"),
            detail=data.get("detail"),
            seconds=_finite(data.get("seconds"), f"{where}.seconds"),
            notes=dict(data.get("notes") or {}),
        )


def _finite(data: Any, where: str) -> dict[str, float]:
    if not isinstance(data, Mapping):
        raise InputError(where, f"expected a mapping, got {data!r}", "")
    out: dict[str, float] = {}
    for key, value in data.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InputError(f"{where}.{key}", f"expected a number, got {value!r}", "")
        if not math.isfinite(value) or abs(value) > 1e15:
            raise InputError(f"{where}.{key}", f"expected a finite number, got {value!r}", "")
        out[str(key)] = float(value)
    return out
