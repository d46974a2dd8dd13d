"""What Ray Tune runs: a trainable that tries one plan in a worker process of its own, and never
raises."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray import tune

from ..errors import EnvironmentFault, ParetuneError
from ..objectives.evaluation import Evaluation
from .jobs import Result, WorkerJob
from .luggage import unpacked
from .pool import Pool
from .ray_files import WorkerFolder, files_of
from .worker import described

PLAN = "plan"  # the one key of a trial's config: its jobs as JSON text
_TURN_S = 2.0  # between two looks at a training's progress


@dataclass(frozen=True)
class Site:
    """What every worker of a search is given once, through Ray's object store.

    factory, kwargs, deadline_s, memory_bytes: as :class:`.pool.Pool` takes them. study: its id.
    files: the :class:`.ray_files.StudyFiles` actor; None: the evaluator writes no files.
    small: small files of the study folder, by name. shared: the network and the decoded data as one
    uint8 array. device: the :class:`.ray_device.Device` actor. code: as
    :func:`.luggage.pack_code` gave.
    """

    factory: str
    kwargs: Mapping[str, Any]
    deadline_s: float
    memory_bytes: int | None = None
    study: str = "study"
    files: Any = None
    small: Mapping[str, bytes] = field(default_factory=dict)
    shared: Any = None
    device: Any = None
    code: Mapping[str, str] = field(default_factory=dict)


class PlanTrial(tune.Trainable):  # type: ignore[misc]
    """One trial: the plan of its config, tried by the same worker process as locally.

    The process is started with the first plan and lives as long as the actor does; what crashes,
    hangs or eats memory is that process.
    """

    def setup(self, config: dict[str, Any], site: Site | None = None) -> None:
        self._site, self._begun = site, False
        self._pool: Pool | None = None
        self._folder: WorkerFolder | None = None
        self._jobs: list[WorkerJob] = []
        self._results: list[Result] = []

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._begun = False
        return True

    def step(self) -> dict[str, Any]:
        try:
            return self._step()
        except ParetuneError as error:
            return {"done": True, "fatal": json.dumps(described(error))}
        except ray.exceptions.RayError as error:
            fault = EnvironmentFault(f"the study's files are out of reach: {_brief(error)}")
            return {"done": True, "fatal": json.dumps(described(fault))}
        except Exception as error:
            return {"done": True, "fatal": json.dumps(described(error))}

    def cleanup(self) -> None:
        if self._pool is not None:
            self._pool.close()
        if self._folder is not None:
            self._folder.remove()

    def _step(self) -> dict[str, Any]:
        pool = self._pool = self._pool or self._start()
        if not self._begun:
            self._begun, self._results = True, []
            self._jobs = [WorkerJob.from_message(m) for m in json.loads(self.config[PLAN])]
            for job in self._jobs:
                self._give(job, pool)
        while len(self._results) < len(self._jobs):
            self._results += pool.collect(_TURN_S)
            if told := pool.progress():
                return {"done": False, "told": json.dumps(list(told.items()))}
        for result in self._results:
            self._hand_back(result.evaluation)
        return {"done": True, "answers": json.dumps([_answer(r) for r in self._results])}

    def _start(self) -> Pool:
        site = self._site
        assert site is not None
        kwargs = dict(site.kwargs)
        if "job" in kwargs:
            kwargs["job"] = unpacked(kwargs["job"], site.code, Path.cwd())
        if site.files is not None:
            self._folder = WorkerFolder(site.study, site.files, dict(site.small))
            kwargs["folder"] = str(self._folder.path)
            if site.shared is not None:
                kwargs["shared"] = str(self._folder.shared(ray.get(site.shared)))
        answer = None
        if site.device is not None:
            from .ray_device import ask_device

            answer = lambda asked: ask_device(site.device, asked)  # noqa: E731
        return Pool(site.factory, kwargs, 1, site.deadline_s, site.memory_bytes, answer=answer)

    def _give(self, job: WorkerJob, pool: Pool) -> None:
        if self._folder is not None:
            wanted = files_of(job.baseline) + (
                [] if job.artifact is None else [*job.artifact.files]
            )
            self._folder.drop({artifact.sha256 for artifact in wanted})
            self._folder.fetch(wanted)
        pool.submit(job.job_id, job.plan, job.rung, job.baseline, job.artifact)

    def _hand_back(self, evaluation: Evaluation) -> None:
        if self._folder is not None and evaluation.rung != "screen":
            self._folder.deliver(files_of(evaluation))
            if evaluation.rung == "recover":
                self._folder.forget_training(self._jobs[0].job_id)


def _answer(result: Result) -> dict[str, Any]:
    return {
        "job": result.job_id,
        "evaluation": result.evaluation.to_json(),
        "seconds": result.seconds,
        "attempts": result.attempts,
    }


def _brief(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
