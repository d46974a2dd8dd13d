"""What a bundle says about itself, for machines: ``manifest.json``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import PurePath
from typing import Any

from .. import __version__
from ..objectives.point import Point
from ..objectives.wording import summary
from .check import Checked
from .formats import load_lines
from .source import Source
from .verify import VERSION

_OF_TRAINING = ("method", "best_epoch", "steps", "seconds", "first_score")
_OF_DATA = ("data", "train", "search", "evaluate", "classes")


def make_manifest(source: Source, point: Point, checked: Checked) -> dict[str, Any]:
    """The manifest: sha256, plan, measured values, baseline, versions, processor, how to load.

    Plain JSON. ``values`` and ``errors`` (one standard error) are those of ``rung``; ``relative``
    to ``baseline``, the uncompressed network under the same conditions. ``original``: the plan
    that changes nothing, with the full channel counts. ``data``: examples of each split and the
    classes, in the order of the model's outputs. ``compress``: how the plan was carried out.
    """
    evaluation = checked.evaluation
    artifact = evaluation.artifact
    if artifact is None:
        raise ValueError("an evaluation without a file has no manifest")
    baseline = source.baseline.get(evaluation.rung)
    file = f"model.{artifact.format}"
    trained = source.recovered.get(point.number)
    recovery = trained.notes.get("recovery", {}) if trained is not None else {}
    return {
        "version": VERSION,
        "paretune": __version__,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "study": {"name": source.name, "id": source.study_id, "trial": point.number},
        "model": {
            "file": file,
            "sha256": artifact.sha256,
            "size_bytes": artifact.size_bytes,
            "format": artifact.format,
        },
        "plan": evaluation.plan.to_json(),
        "plan_fingerprint": evaluation.plan.fingerprint,
        "original": baseline.plan.to_json() if baseline else None,
        "summary": summary(evaluation.plan, baseline.plan if baseline else None),
        "rung": evaluation.rung,
        "examples": evaluation.notes.get("examples"),
        "values": dict(evaluation.values),
        "errors": dict(evaluation.errors),
        "baseline": dict(baseline.values) if baseline else {},
        "baseline_errors": dict(baseline.errors) if baseline else {},
        "environment": dict(evaluation.notes.get("environment", {})),
        "remeasured": checked.remeasured,
        "checked_score": checked.score,
        "task": _task(source.job["task"]),
        "data": _data(source.job["task"]["data"], checked.task),
        "compress": dict(source.job.get("compress") or {}),
        "recovery": {key: recovery[key] for key in _OF_TRAINING if key in recovery},
        "input": _input(source.job, checked),
        "load": load_lines(str(source.job["target"].get("name") or ""), file),
    }


def _task(task: Mapping[str, Any]) -> dict[str, Any]:
    """What was compressed; of a user's file only its name, for the folder is nobody's business."""
    told = {key: task.get(key) for key in ("model", "model_args", "score")}
    for key in ("model", "score"):
        file, colon, name = str(told[key]).rpartition(":")
        if colon and file.endswith(".py"):
            told[key] = f"{PurePath(file).name}:{name}"
    return told


def _data(data: Mapping[str, Any], described: Mapping[str, Any]) -> dict[str, Any]:
    """Counts and classes; an image folder by the last parts of its path."""
    told = {key: described[key] for key in _OF_DATA if key in described}
    folder = next((data[k] for k in ("evaluate", "train") if isinstance(data.get(k), str)), None)
    if folder is not None:
        told["data"] = "/".join(PurePath(folder).parts[-2:])
    return told


def _input(job: Mapping[str, Any], checked: Checked) -> dict[str, Any]:
    data = job["task"]["data"]
    shape: Sequence[int] | None = None
    if checked.examples is not None:
        shape = ["batch", *checked.examples[0].shape[1:]]  # type: ignore[list-item]
    return {
        "name": "input",
        "dtype": "float32",
        "shape": shape,
        "pixels": "value / 255, then minus mean, divided by std, per channel",
        "mean": data.get("mean"),
        "std": data.get("std"),
    }
