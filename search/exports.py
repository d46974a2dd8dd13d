"""The exported files of a search: the front's and the recovered points' stay, the rest go."""

from __future__ import annotations

from ..objectives.evaluation import Artifact, Evaluation
from ..trackers.study import Study


class Exports:
    """The files that recorded trials left in a study that is open for writing."""

    def __init__(self, study: Study) -> None:
        self._study = study
        self._files: dict[str, Artifact] = {}  # by sha256

    def add(self, evaluation: Evaluation) -> None:
        """Count the files of a trial among those that may go."""
        if evaluation.artifact is not None:
            self._files |= {file.sha256: file for file in evaluation.artifact.files}

    def tidy(self) -> None:
        """While workers are busy: remove what was added and is not wanted now."""
        if kept := self._wanted():
            for sha256 in set(self._files) - kept:
                self._study.artifact_path(self._files.pop(sha256)).unlink(missing_ok=True)

    def keep_wanted(self) -> None:
        """When no worker is left: remove everything that is not wanted, whoever wrote it."""
        if kept := self._wanted():
            self._study.drop_artifacts(kept)

    def _wanted(self) -> set[str]:
        """sha256 of the files of the front, the baseline and every recovered point, whose training
        cost minutes; empty while there is no front."""
        front = {point.number for point in self._study.measured_front()}
        baselines = [self._study.baseline_at(rung) for rung in ("measure", "confirm")]
        found = [e for e in baselines if e is not None] if front else []
        found += [
            row.evaluation
            for row in self._study.rows()
            if row.number in front or row.parent is not None
        ]
        files = {f.sha256 for e in found if e.artifact is not None for f in e.artifact.files}
        return files | {weights.sha256 for e in found if (weights := e.weights) is not None}
