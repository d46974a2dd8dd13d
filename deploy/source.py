"""Where a chosen point is taken from: a study folder, or a run in MLflow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..objectives.evaluation import Artifact, Evaluation
from ..objectives.front import ParetoFront
from ..objectives.point import Point
from ..tasks.job import load_job
from ..tasks.user_code import is_code
from ..trackers.artifact_store import sha256_of
from ..trackers.mlflow_read import RunRecord, download_artifact, read_run
from ..trackers.place import Place
from ..trackers.study import Study

_SHIPPED = tuple(
    f"paretune.tasks.vision:{n}" for n in ("cifar_resnet", "plain_cnn", "vgg16_bn_cifar")
)
"""Code that comes with paretune, which a run may name."""


@dataclass(frozen=True)
class Source:
    """A front to choose from and the files that belong to it.

    baseline: the identity plan's evaluation at each rung. number: the trial that the user named by
    naming its run, or None. folder, record: the study folder or the MLflow run it was read from.
    recovered: what came of training a trial's plan, by the trial's number. own_job: the job's
    network and data are those of a job file that the user gave.
    """

    name: str
    study_id: str
    job: Mapping[str, Any]
    front: ParetoFront
    baseline: Mapping[str, Evaluation]
    number: int | None
    folder: Path | None = None
    record: RunRecord | None = None
    recovered: Mapping[int, Evaluation] = field(default_factory=dict)
    own_job: bool = False

    def fetch(self, artifact: Artifact, to: Path) -> Path | None:
        """The exported file, copied into the folder ``to``; None where it was not kept.

        Raises InputError when the file's bytes are not those that were measured.
        """
        target = to / artifact.file_name
        if self.folder is not None:
            stored = Place.of_folder(self.folder).artifact_store().local(artifact)
            if not stored.is_file():
                return None
            target.write_bytes(stored.read_bytes())
        elif self.record is not None:
            name = f"models/{artifact.file_name}"
            if name not in self.record.artifacts:
                return None
            target = download_artifact(self.record.parent_run_id, name, to, self.record.uri)
        if sha256_of(target) != artifact.sha256:
            target.unlink()
            raise InputError(
                str(artifact.file_name),
                "its content is not what was measured (its sha256 differs)",
                "the file was changed or damaged; delete it and pull again to rebuild it",
            )
        return target


def open_source(
    source: str | Path, uri: str | None = None, job: str | Path | None = None
) -> Source:
    """A study folder, or ``mlflow:RUN_ID`` (the search's run or one trial's).

    job: a job file to take the network, the data and the code that they name from, instead of
    what the study keeps. Raises InputError when there is none, EnvironmentFault when MLflow cannot
    be reached.
    """
    text = str(source)
    if text.startswith("mlflow:"):
        found = _from_run(read_run(text.removeprefix("mlflow:"), uri))
        return found if job is None else replace(found, job=_own(job, found), own_job=True)
    if job is not None:
        raise InputError("--job", "a study folder has its job", "leave --job out")
    with Study.open(Path(text)) as study:
        bases = {rung: study.baseline_at(rung) for rung in ("measure", "confirm")}
        return Source(
            name=study.name,
            study_id=study.id,
            job=study.job,
            front=study.front(),
            baseline={rung: e for rung, e in bases.items() if e is not None},
            number=None,
            folder=Path(text),
            recovered={row.number: row.evaluation for row in study.rows("recover")},
        )


def check_trusted(source: Source) -> None:
    """Refuse to run code that only a run in MLflow names.

    Raises InputError naming it; with the user's own job file, or a study folder, nothing is
    refused.
    """
    if source.record is None or source.own_job:
        return
    job = load_job(source.job)
    task, recover = job.task, job.recover
    named = [task.model, task.data.kind, task.score, task.loss, task.divergence]
    named += [recover.augment if recover is not None else None]
    foreign = [name for name in named if name and is_code(name) and name not in _SHIPPED]
    if foreign:
        raise InputError(
            f"mlflow:{source.record.run_id}",
            f"its job names code that would be run here: {', '.join(foreign)}",
            "give your own job file with --job JOB.yaml, or --no-verify to run none",
        )


def _own(job: str | Path, source: Source) -> dict[str, Any]:
    """What was searched, with the network, the data and the code of the user's own job."""
    own = load_job(job).to_json()
    return {**source.job, **{key: own.get(key) for key in ("folder", "task", "recover")}}


def _from_run(record: RunRecord) -> Source:
    found = {rung: record.baseline(rung) for rung in ("measure", "confirm")}
    recovered = {
        entry["number"]: Evaluation.from_json(entry["rungs"]["recover"])
        for entry in record.study["front"]
        if "recover" in entry["rungs"]
    }
    return Source(
        name=record.study["name"],
        study_id=record.study_id,
        job=record.study["job"],
        front=record.front(),
        baseline={rung: e for rung, e in found.items() if e is not None},
        number=record.number,
        record=record,
        recovered=recovered,
    )


def choose(source: Source, where: str | None, best: str | None, trial: int | None) -> Point:
    """The point that the user means: by number, by the run named, or the best of those allowed.

    Raises InputError when nothing says which, NothingMeetsError when no point meets ``where``.
    """
    number = trial if trial is not None else source.number
    if number is not None:
        return source.front[number]
    if best is None:
        raise InputError(
            "--best", "not given", "name what the point shall be best in, e.g. --best latency_ms"
        )
    return source.front.choose(where, best)
