"""Workers on a Ray cluster: every plan is a trial of Ray Tune, in actors that are used again."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
import threading
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

from ..errors import EnvironmentFault, InputError, ParetuneError
from ..objectives.evaluation import Artifact, Evaluation
from ..spaces.plan import CompressionPlan
from .jobs import Result, WorkerJob
from .ray_connection import check_resources
from .ray_device import Reservation
from .ray_tune import FINISHED, Bundles, run_trials
from .ray_worker import PLAN, Site
from .worker import rebuilt

MOST_LOST = 3  # trials in a row whose actors die before any plan was tried
MOST_SCREENED = 8  # candidates screened in one trial
GIVE_WAY_S = 10.0  # a device that moves to a node with room has it by then
MOST_AWAY_S = 600.0  # a device without a place ends the search
_LOOK_S = 2.0
_log = logging.getLogger(__name__)


class RayPool:
    """Workers for a search on the Ray cluster that this process is connected to.

    site: what each worker loads. workers: actors at most. resources: what each holds, e.g.
    ``{"CPU": 1, "GPU": 0.25}``; training: the same while a plan is trained. device: what the
    latency device holds; when its node is lost and no other has room, all workers give way.

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
        device: Reservation | None = None,
    ) -> None:
        self._site, self.workers, self._device = site, workers, device
        self._bundles = Bundles(dict(resources), dict(training or resources))
        self._change = threading.Condition()
        self._queue: deque[WorkerJob] = deque()
        self._at_work: dict[str, list[WorkerJob]] = {}  # Tune's trial id -> its jobs
        self._results: list[Result] = []
        self._told: dict[Any, dict[str, Any]] = {}
        self._fatal: ParetuneError | None = None
        self._closed = False
        self._lost, self._why = 0, ""
        self._look_at = 0.0  # when the device is looked at next
        self._away_since: float | None = None
        self._yielding = False
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
        """Whether the workers are to end: for good, or to give way to the latency device."""
        return self._closed or self._in_the_way()

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
        """Ray Tune's loop, until the pool is closed; begun anew after the workers gave way."""
        try:
            while not self._closed:
                place = tempfile.mkdtemp(dir=self._scratch)
                try:
                    run_trials(self, self._site, self.workers, self._bundles, place)
                except Exception:
                    if not self._yielding:
                        raise
                if not self._yielding:
                    return self._end("Ray Tune ended before the search did; look at its logs")
                if not self._wait_for_device():
                    return
        except Exception as error:
            self._end(f"Ray Tune ended: {' '.join(str(error).split())[:500]}")

    def _in_the_way(self) -> bool:
        """Whether the workers are to give way, as the device finds no place; asked many times a
        second."""
        now = time.monotonic()
        if self._device is not None and not self._yielding and now >= self._look_at:
            self._look_at = now + _LOOK_S
            lost = not self._device.placed()
            self._away_since = (self._away_since or now) if lost else None
            if self._away_since is not None and now - self._away_since >= GIVE_WAY_S:
                _log.warning("the latency device lost its node: all workers make room for it")
                self._yielding = True
        return self._yielding

    def _wait_for_device(self) -> bool:
        """All workers have ended: what they were at is queued again, and the device takes its
        place. Whether the search can go on."""
        with self._change:
            for jobs in reversed(self._at_work.values()):
                self._queue.extendleft(reversed(jobs))
            self._at_work.clear()
        assert self._device is not None and self._away_since is not None
        end = self._away_since + MOST_AWAY_S
        while not self._closed and not self._room():
            if time.monotonic() > end:
                held = ", ".join(f"{n:g} {name}" for name, n in self._device.resources.items())
                self._end(
                    f"the latency device lost its node, and for {MOST_AWAY_S / 60:g} min no other "
                    f"had {held} free for it beside a worker; start one, and go on"
                )
                return False
            time.sleep(_LOOK_S)
        self._away_since, self._yielding = None, False
        return not self._closed

    def _room(self) -> bool:
        """Whether the device has its place, and some node has room for a worker beside it."""
        if self._device is None or not self._device.placed():
            return False
        taken = (self._device.node, self._device.resources)
        try:
            check_resources("", self._bundles.resources, str, taken)
        except InputError:
            return False
        return True

    def _end(self, why: str) -> None:
        with self._change:
            if not self._closed and self._fatal is None:
                self._fatal = EnvironmentFault(why)
            self._change.notify_all()
