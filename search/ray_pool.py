"""Workers on a Ray cluster: every plan is a trial of Ray Tune, in actors that are used again."""

from __future__ import annotations

import json
import shutil
import tempfile
import threading
from collections import deque
from collections.abc import Mapping
from typing import Any

from ..errors import EnvironmentFault, ParetuneError
from ..objectives.evaluation import Artifact, Evaluation
from ..spaces.plan import CompressionPlan
from .jobs import Result, WorkerJob
from .ray_tune import FINISHED, Bundles, run_trials
from .ray_worker import PLAN, Site
from .worker import rebuilt

MOST_LOST = 3  # trials in a row whose actors die before any plan was tried
MOST_SCREENED = 8  # candidates screened in one trial


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
        self._bundles = Bundles(dict(resources), dict(training or resources))
        self._change = threading.Condition()
        self._queue: deque[WorkerJob] = deque()
        self._at_work: dict[str, list[WorkerJob]] = {}  # Tune's trial id -> its jobs
        self._results: list[Result] = []
        self._told: dict[Any, dict[str, Any]] = {}
        self._fatal: ParetuneError | None = None
        self._closed = False
        self._lost, self._why = 0, ""
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
            if self._results or self._fatal is None:  # what came before a fault is kept
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

    @property
    def closed(self) -> bool:
        """Whether the pool is closed, or about to be."""
        return self._closed

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
                return FINISHED
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

    def note_error(self, text: str) -> None:
        """Why actors died."""
        self._why = " ".join(text.split())[:300]

    def complete(self, trial_id: str, result: Mapping[str, Any] | None, lost: bool) -> None:
        """A trial ended: its answers, or ``lost`` when its actors died."""
        with self._change:
            jobs = self._at_work.pop(trial_id, [])
            if lost or result is None:
                self._lost += 1
                if self._lost >= MOST_LOST:
                    self._fatal = EnvironmentFault(
                        f"{self._lost} trials in a row lost their workers on the cluster; look at "
                        f"the cluster's state with `ray status` and at its logs ({self._why})"
                    )
                for job in jobs:
                    evaluation = job.failed("its workers on the cluster died", self._why or None)
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
            run_trials(self, self._site, self.workers, self._bundles, self._scratch)
            self._end("Ray Tune ended before the search did; look at the cluster's logs")
        except Exception as error:
            self._end(f"Ray Tune ended: {' '.join(str(error).split())[:500]}")

    def _end(self, why: str) -> None:
        with self._change:
            if not self._closed and self._fatal is None:
                self._fatal = EnvironmentFault(why)
            self._change.notify_all()
