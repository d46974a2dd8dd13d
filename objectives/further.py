"""Several targets in one job: the same plan exported, scored and timed on each further one."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from ..targets.target import Target
from .evaluation import Artifact, Evaluation
from .latency import LatencyMeter
from .paired import packed, paired_error
from .resources import measure_resources

if TYPE_CHECKING:
    from ..operators.compress import Compressed
    from .evaluate import Evaluator

SHARED = frozenset({"macs", "params", "archive_bytes", "archive_ratio"})
"""Values that are the same on every target."""


def target_suffix(target: str) -> str:
    """What a target's values end in: ``openvino-cpu`` -> ``openvino_cpu``."""
    return re.sub(r"\W+", "_", target).strip("_")


def measured_on(
    target: str, values: Mapping[str, float], errors: Mapping[str, float]
) -> tuple[dict[str, float], dict[str, float]]:
    """One target's values and errors under their names in a job with several targets."""
    end = target_suffix(target)
    named = [
        {f"{k}_{end}": v for k, v in part.items() if k not in SHARED} for part in (values, errors)
    ]
    return named[0], named[1]


def seen_from(evaluation: Evaluation, target: str) -> Evaluation:
    """The evaluation as a job with this target alone would have it: bare names, its own file."""
    end = f"_{target_suffix(target)}"

    def bare(part: Mapping[str, float]) -> dict[str, float]:
        own = {k.removesuffix(end): v for k, v in part.items() if k.endswith(end)}
        return own | {k: v for k, v in part.items() if k in SHARED}

    values = bare(evaluation.values)
    if not values:
        return evaluation
    artifact = evaluation.artifact
    if artifact is not None:
        artifact = artifact.beside.get(target) or replace(artifact, beside={})
    notes = evaluation.notes.get(target_suffix(target), evaluation.notes)
    return replace(
        evaluation, values=values, errors=bare(evaluation.errors), artifact=artifact, notes=notes
    )


@dataclass(frozen=True)
class Found:
    """What one further target gave; values and errors under their suffixed names."""

    artifact: Artifact
    values: dict[str, float]
    errors: dict[str, float]
    notes: dict[str, Any]


class FurtherTarget:
    """A target beside the first of a job; plans are compressed once for all of them."""

    def __init__(
        self, evaluator: Evaluator, target: Target, folder: Path, inputs: np.ndarray
    ) -> None:
        self.name = target.name
        self._evaluator, self._target, self._inputs = evaluator, target, inputs
        states = f".speed_states.{target_suffix(target.name)}.json"
        self._meter = LatencyMeter(target, folder, inputs, states)

    def measure(
        self,
        made: Compressed,
        rung: str,
        baseline: Evaluation | None,
        known: Artifact | None,
        seconds: dict[str, float],
    ) -> Found:
        """Export, score and time ``made`` here; its file in ``known`` is measured again if there.

        seconds: wall time by stage, this target's are added. Raises CandidateError.
        """
        evaluator, target, begin = self._evaluator, self._target, time.perf_counter()
        base = None if baseline is None else seen_from(baseline, self.name)
        artifact = known.beside.get(self.name) if known is not None else None
        files = evaluator.folder / "artifacts"
        with self._meter.working(rung):
            if artifact is None or not (files / artifact.file_name).exists():
                artifact = evaluator.export(target, made)
            path = files / artifact.file_name
            split = evaluator.split(rung)
            result = evaluator.task.score.measure(evaluator.predict(target, path), split)
        values = dict(result.values) | {"size_bytes": float(artifact.size_bytes)}
        errors = dict(result.errors)
        notes: dict[str, Any] = {"examples": result.count, "environment": target.description}
        if evaluator.timed:
            reference = files / base.artifact.file_name if base and base.artifact else path
            timed = self._meter.measure(path, reference, rung, base)
            values, errors = values | timed.values, errors | timed.errors
            notes["timing"] = timed.conditions
        if evaluator.resources:
            values |= measure_resources(evaluator.resources, target, path, self._inputs, values)
        notes |= relate(values, errors, base, evaluator.task.score.name, result.right)
        seconds[target_suffix(self.name)] = time.perf_counter() - begin
        return Found(artifact, *measured_on(self.name, values, errors), notes)


def relate(
    values: dict[str, float],
    errors: dict[str, float],
    baseline: Evaluation | None,
    score: str,
    right: Tensor | None = None,
) -> dict[str, Any]:
    """Add what is relative to the baseline, and the error of what follows from the latency; of the
    baseline, return the notes that later comparisons need. right: whether each example was
    answered rightly, (n,) bool."""
    if "throughput" in values and "latency_ms" in errors:
        errors["throughput"] = values["throughput"] * errors["latency_ms"] / values["latency_ms"]
    base: Mapping[str, float] = baseline.values if baseline is not None else values
    values["size_ratio"] = values["size_bytes"] / base["size_bytes"]
    values["compression_ratio"] = base["size_bytes"] / values["size_bytes"]
    if "archive_bytes" in values:
        values["archive_ratio"] = values["archive_bytes"] / base["size_bytes"]
    if score in base and score in values:
        values["accuracy_drop"] = base[score] - values[score]
        if baseline is not None and score in errors:
            errors["accuracy_drop"] = errors[score]
    if right is None:
        return {}
    if baseline is None:
        return {"right": packed(right)}
    paired = paired_error(right, baseline.notes.get("right"))
    if paired is not None:
        errors["accuracy_drop"] = paired
    return {}
