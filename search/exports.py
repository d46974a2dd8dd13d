"""The exported files of a search: the front's and the recovered points' stay, the rest go."""

from __future__ import annotations

from ..objectives.evaluation import Artifact, Evaluation
from ..objectives.running_front import RunningFront
from ..trackers.study import Study


class Exports:
    """The files that recorded trials left in a study that is open for writing."""

    def __init__(self, study: Study) -> None:
        self._study = study
        self._files: dict[str, Artifact] = {}  # by sha256
        self._front = RunningFront(study.objectives, study.job.get("constraints") or ())

    def add(self, evaluation: Evaluation) -> None:
        """Count the files of a measured trial among those that may go."""
        self._front.add(evaluation)
        if evaluation.artifact is not None:
            self._files |= {file.sha256: file for file in evaluation.artifact.files}

    def fetch(self) -> None:
        """Have here what is kept elsewhere of the baseline's and the front's files: this may be
        another machine than the one that wrote them."""
        for evaluation in self._standing():
            for file in evaluation.artifact.files if evaluation.artifact is not None else ():
                self._study.artifact_path(file)

    def tidy(self) -> None:
        """While workers are busy: remove what was added and is not wanted now."""
        if not self._front.evaluations:
            return
        kept = _files(self._standing())
        for sha256 in set(self._files) - kept:
            self._study.drop_artifact(self._files.pop(sha256))

    def keep_wanted(self) -> None:
        """When no worker is left: remove everything that is not wanted, whoever wrote it."""
        if kept := self._wanted():
            self._study.drop_artifacts(kept)

    def _standing(self) -> list[Evaluation]:
        baseline = self._study.baseline
        return [*self._front.evaluations, *([baseline] if baseline is not None else [])]

    def _wanted(self) -> set[str]:
        """sha256 of the files of the front, the baseline and every recovered point, whose training
        cost minutes; empty while there is no front."""
        front = {point.number for point in self._study.measured_front()}
        if not front:
            return set()
        baselines = [self._study.baseline_at(rung) for rung in ("measure", "confirm")]
        found = [e for e in baselines if e is not None]
        found += [
            row.evaluation
            for row in self._study.rows()
            if row.number in front or row.parent is not None
        ]
        return _files(found) | {w.sha256 for e in found if (w := e.weights) is not None}


def _files(evaluations: list[Evaluation]) -> set[str]:
    """sha256 of their exported files."""
    return {f.sha256 for e in evaluations if e.artifact is not None for f in e.artifact.files}
