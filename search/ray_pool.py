"""Workers on a Ray cluster: every plan is a trial of Ray Tune, in actors that are used again."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ray import tune
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from ..errors import EnvironmentFault, ParetuneError
from ..objectives.evaluation import Artifact, Evaluation
from ..spaces.plan import CompressionPlan
from .jobs import Result, WorkerJob
from .ray_worker import PLAN, PlanTrial, Site
from .worker import rebuilt

MOST_LOST = 3  # trials in a row whose actors die before any plan was tried
MOST_SCREENED = 8  # candidates screened in one trial
_SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_RESULT_BUFFER_LENGTH": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "100000",
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S_AUTOSCALER": "100000",
    "RAY_AIR_NEW_OUTPUT": "0",
}


class RayPool:
    """Workers for a search on the Ray cluster that this process is connected to.

    site: what each worker loads. workers: actors at most. resources: what each holds, e.g.
    ``{"CPU": 1, "GPU": 0.25}``; training: the same while a plan is trained.

    A Tuner runs in a thread of its own while the pool is open. Its searcher suggests what was
    submitted, in that order; an actor that dies costs its plan one further attempt, in another
    actor. :meth:`collect` raises what makes going on pointless.
    """

    def __init__(
        self,
        site: Site,
        workers: int,
        resources: Mapping[str, float],
        training: Mapping[str, float] | None = None,
    ) -> None:
        self._site, self.workers = site, workers
        self._bundles = _Bundles(dict(resources), dict(training or resources))
        self._change = threading.Condition()
        self._queue: deque[WorkerJob] = deque()
        self._at_work: dict[str, list[WorkerJob]] = {}  # Tune's trial id -> its jobs
        self._results: list[Result] = []
        self._told: dict[Any, dict[str, Any]] = {}
        self._fatal: ParetuneError | None = None
        self._closed = False
        self._lost = 0
        self._scratch = tempfile.mkdtemp(prefix="paretune-tune-")
        self._thread = threading.Thread(target=self._run, name="ray-tune", daemon=True)
        self._thread.start()

    def submit(
        self,
        job_id: Any,
        plan: CompressionPlan,
        rung: str = "measure",
        baseline: Evaluation | None = None,
        artifact: Artifact | None = None,
        first: bool = False,
    ) -> None:
        """Queue one evaluation, as :meth:`.pool.Pool.submit`."""
        job = WorkerJob(job_id, plan, rung, baseline, artifact, first=first)
        with self._change:
            place = sum(other.first for other in self._queue) if first else len(self._queue)
            self._queue.insert(place, job)
            self._change.notify_all()

    def collect(self, timeout_s: float = 1.0) -> list[Result]:
        """The results that arrived, at once if there are any, else after ``timeout_s`` at most."""
        with self._change:
            if not self._results and self._fatal is None:
                self._change.wait(timeout_s)
            if self._fatal is None:
                found, self._results = self._results, []
                return found
        self.close()
        raise self._fatal

    def progress(self) -> dict[Any, dict[str, Any]]:
        """What workers told of long jobs since the last call."""
        with self._change:
            told, self._told = self._told, {}
        return told

    def withdraw(self) -> list[Any]:
        """Take back the jobs that no worker has begun; returns their ids."""
        with self._change:
            ids = [job.job_id for job in self._queue]
            self._queue.clear()
        return ids

    @property
    def busy(self) -> int:
        """Trials that workers are at."""
        return len(self._at_work)

    def close(self) -> None:
        """End every worker; queued and running jobs are dropped."""
        with self._change:
            self._closed = True
            self._queue.clear()
            self._change.notify_all()
        if self._thread is not threading.current_thread():
            self._thread.join(timeout=30.0)
        shutil.rmtree(self._scratch, ignore_errors=True)

    def __enter__(self) -> RayPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next plan as a trial's config, for Tune's thread: None while all workers are busy,
        ``FINISHED`` when the pool is closed. Waits while there is nothing to do at all."""
        with self._change:
            while not self._closed and not self._queue and not self._at_work:
                self._change.wait(1.0)
            if self._closed:
                return str(Searcher.FINISHED)
            if not self._queue or len(self._at_work) >= self.workers:
                return None
            jobs = [self._queue.popleft()]
            if jobs[0].rung == "screen":
                waiting = 1 + sum(job.rung == "screen" for job in self._queue)
                share = min(MOST_SCREENED, -(-waiting // self.workers))
                while len(jobs) < share and self._queue and self._queue[0].rung == "screen":
                    jobs.append(self._queue.popleft())
            self._at_work[trial_id] = jobs
        return {PLAN: json.dumps([job.message() for job in jobs])}

    def hear(self, trial_id: str, result: Mapping[str, Any]) -> None:
        """A trial told of its progress."""
        with self._change:
            self._told.update((job, told) for job, told in json.loads(result["told"]))
            self._change.notify_all()

    def complete(self, trial_id: str, result: Mapping[str, Any] | None, lost: bool) -> None:
        """A trial ended: its answers, or ``lost`` when its actors died."""
        with self._change:
            jobs = self._at_work.pop(trial_id, [])
            if lost or result is None:
                self._lost += 1
                if self._lost >= MOST_LOST:
                    self._fatal = EnvironmentFault(
                        f"{self._lost} trials in a row lost their workers on the cluster; look at "
                        "the cluster's state with `ray status` and at its logs"
                    )
                for job in jobs:
                    evaluation = job.failed("its workers on the cluster died")
                    self._results.append(Result(job.job_id, evaluation, 0.0, 2))
            elif "fatal" in result:
                self._fatal = self._fatal or rebuilt(json.loads(result["fatal"]))
            else:
                self._lost = 0
                for answer in json.loads(result["answers"]):
                    evaluation = Evaluation.from_json(answer["evaluation"])
                    self._results.append(
                        Result(answer["job"], evaluation, answer["seconds"], answer["attempts"])
                    )
            self._change.notify_all()

    def _run(self) -> None:
        """Ray Tune's loop, until the pool is closed."""
        try:
            os.environ.update(_SETTINGS, TUNE_MAX_PENDING_TRIALS_PG=str(self.workers))
            trainable = tune.with_resources(
                tune.with_parameters(PlanTrial, site=self._site), self._bundles
            )
            tune.Tuner(
                trainable,
                tune_config=tune.TuneConfig(
                    search_alg=_Suggestions(self),
                    scheduler=_Warm(self.workers),
                    num_samples=-1,
                    reuse_actors=True,
                    trial_name_creator=_name,
                    trial_dirname_creator=_name,
                ),
                run_config=tune.RunConfig(
                    storage_path=self._scratch,
                    name="search",
                    stop=_Stop(self),
                    failure_config=tune.FailureConfig(max_failures=1),
                    checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                    verbose=0,
                ),
            ).fit()
        except Exception as error:
            self._end(f"Ray Tune ended: {' '.join(str(error).split())[:500]}")
        else:
            self._end("Ray Tune ended by itself")

    def _end(self, why: str) -> None:
        with self._change:
            if not self._closed and self._fatal is None:
                self._fatal = EnvironmentFault(why)
            self._change.notify_all()


@dataclass(frozen=True)
class _Bundles:
    """What a trial's actor holds: ``training`` while a plan is trained, else ``resources``."""

    resources: Mapping[str, float]
    training: Mapping[str, float]

    def __call__(self, config: dict[str, Any]) -> tune.PlacementGroupFactory:
        trains = PLAN in config and json.loads(config[PLAN])[0]["rung"] == "recover"
        return tune.PlacementGroupFactory([dict(self.training if trains else self.resources)])


class _OfPool:
    """A part of Tune's settings that belongs to a pool: Tune copies and pickles its settings (to
    restore a run, which is never done here), and there is one pool."""

    _pool: RayPool

    def __deepcopy__(self, memo: dict[int, Any]) -> _OfPool:
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _Suggestions(_OfPool, Searcher):  # type: ignore[misc]
    """Tune's way to the plans that the driver asked the study for."""

    def __init__(self, pool: RayPool) -> None:
        super().__init__()
        self._pool = pool

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        return self._pool.suggest(trial_id)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        if "told" in result:
            self._pool.hear(trial_id, result)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        self._pool.complete(trial_id, result, error)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study on disk is what a search goes on from."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, see :meth:`save`."""


class _Warm(FIFOScheduler):  # type: ignore[misc]
    """First in, first out; and idle actors are kept, as what they have loaded is expensive."""

    def __init__(self, workers: int) -> None:
        super().__init__()
        self._workers, self._known = workers, set[Any]()

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        if trial.placement_group_factory not in self._known:
            self._known.add(trial.placement_group_factory)
            cache = getattr(tune_controller, "_actor_cache", None)
            if cache is not None:  # without it Tune keeps fewer idle actors: slower, not wrong
                cache.increase_max(trial.placement_group_factory, self._workers)

    def choose_trial_to_run(self, tune_controller: Any) -> None:
        """Whatever is pending, in Tune's own order."""


class _Stop(_OfPool, tune.Stopper):  # type: ignore[misc]
    """Ends the run, with what is at work, when the pool is closed."""

    def __init__(self, pool: RayPool) -> None:
        self._pool = pool

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._pool._closed


def _name(trial: Any) -> str:
    return str(trial.trial_id)
