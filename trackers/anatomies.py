"""The per-layer pictures of a study's points, read from the exported files that it keeps."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import CandidateError
from ..objectives.anatomy import VERSION, Anatomy, FileAnatomy, anatomy
from ..objectives.evaluation import Evaluation
from ..targets.cpu import cpu_features
from ..targets.onnx_layers import file_layers
from .study import Study

FILE = ".anatomies.json"
_RUNTIME = "onnxruntime-cpu"


def anatomies(study: Study, profile: bool = False) -> dict[int, Anatomy]:
    """Trial -> its layers, for the points of the front.

    profile: also time the layers of files that are not timed yet (about 0.3 s a point of a small
    network); done only where the study was measured: with ONNX Runtime on a CPU like this one.
    Times are kept in the study folder. Bytes and times are left out where the exported file is
    missing or no ONNX file.
    """
    base = study.baseline
    if base is None:
        return {}
    known = _Times(study.folder)
    reference = _read(study, base, [], known, profile)
    names = [layer.name for layer in reference.layers] if reference else []
    found = {}
    for point in study.front():
        file = reference and _read(study, point.evaluation, names, known, profile)
        timed = _words(point.evaluation) if file and file.times is not None else ""
        found[point.number] = anatomy(point.plan, base.plan, file, reference, timed)
    known.save()
    return found


def _read(
    study: Study, evaluation: Evaluation, names: list[str], known: _Times, profile: bool
) -> FileAnatomy | None:
    artifact = evaluation.artifact
    if artifact is None or artifact.format != "onnx":
        return None
    path = study.artifact_path(artifact)
    try:
        layers = file_layers(path, names)
    except (CandidateError, OSError):
        return None
    names = names or [layer.name for layer in layers]
    if profile and artifact.sha256 not in known.files and _same_machine(evaluation):
        from ..targets.onnx_profile import layer_times

        conditions = _environment(evaluation)
        threads, batch = conditions.get("threads"), conditions.get("batch")
        try:
            times, rest = layer_times(path, names, int(threads or 1), int(batch or 1))
        except CandidateError:
            times, rest = {}, 0.0
        if times:
            known.add(artifact.sha256, times, rest)
    kept = known.files.get(artifact.sha256)
    times_of = kept and kept["times"]
    return FileAnatomy(layers, artifact.size_bytes, times_of, kept["rest_ms"] if kept else None)


def _environment(evaluation: Evaluation) -> Mapping[str, Any]:
    found = evaluation.notes.get("environment")
    return found if isinstance(found, Mapping) else {}


def _same_machine(evaluation: Evaluation) -> bool:
    there = _environment(evaluation)
    return there.get("target") == _RUNTIME and there.get("cpu") == cpu_features()


def _words(evaluation: Evaluation) -> str:
    there = _environment(evaluation)
    threads = int(there.get("threads") or 1)
    return (
        f"kernel times of ONNX Runtime {there.get('onnxruntime', '')}'s profiler, "
        f"{threads} thread{'s' if threads > 1 else ''}, batch {there.get('batch', 1)}"
    )


class _Times:
    """sha256 of a file -> its layers' times; kept beside the study, where that can be written."""

    def __init__(self, folder: Path) -> None:
        self._path, self._new = folder / FILE, False
        self.files: dict[str, dict[str, Any]] = {}
        try:
            data = json.loads(self._path.read_text(encoding="utf-8"))
            if data["version"] == VERSION:
                self.files = dict(data["files"])
        except (OSError, ValueError, KeyError, TypeError):
            return

    def add(self, sha256: str, times: Mapping[str, float], rest_ms: float) -> None:
        self.files[sha256] = {"times": dict(times), "rest_ms": rest_ms}
        self._new = True

    def save(self) -> None:
        if not self._new:
            return
        text = json.dumps({"version": VERSION, "files": self.files})
        try:
            self._path.write_text(text, encoding="utf-8")
        except OSError:
            return  # a folder that can only be read: they are measured again
