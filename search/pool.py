"""A pool of worker processes: a candidate that crashes, hangs or eats memory costs only itself."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from typing import Any

from ..errors import EnvironmentFault, InputError, ParetuneError
from ..objectives.evaluation import Artifact, Evaluation
from ..spaces.plan import CompressionPlan
from .channel import ChannelError
from .jobs import MOST_ATTEMPTS, Result, WorkerJob
from .process import WorkerProcess
from .worker import rebuilt

MOST_STARTS = 3  # starts in a row that may fail before the pool gives up
_TICK_S = 0.25


@dataclass
class Pool:
    """Long-lived worker processes that each load the evaluator once and try one plan at a time.

    factory: ``package.module:callable`` (dots may follow the colon) or ``/path/file.py:callable``,
        called in each worker with ``kwargs`` (plain JSON); gives an object with
        ``evaluate(plan, rung=..., baseline=..., artifact=...) -> Evaluation``.
    deadline_s: wall time for one candidate (of a training: without a sign of life); then its whole
        process group is killed.
    memory_bytes: what a candidate may take on top of what its worker holds after loading.
    start_s: wall time for loading.
    answer: answers what an evaluator asks for while it is at work (a plain JSON mapping for a plain
        JSON mapping; it must not raise); the pool does nothing else meanwhile.

    A worker that dies is replaced; the candidate it worked on is failed with the cause, or run
    again (at most twice) if it was killed from outside. :meth:`collect` raises what makes going on
    pointless: an evaluator that cannot be loaded, a full disk.
    """

    factory: str
    kwargs: Mapping[str, Any]
    workers: int = 1
    deadline_s: float = 600.0
    memory_bytes: int | None = None
    start_s: float = 900.0
    answer: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    _queue: deque[WorkerJob] = field(default_factory=deque, init=False)
    _live: list[WorkerProcess] = field(default_factory=list, init=False)
    _results: list[Result] = field(default_factory=list, init=False)
    _told: dict[Any, dict[str, Any]] = field(default_factory=dict, init=False)
    _fatal: ParetuneError | None = field(default=None, init=False)
    _failed_starts: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        for _ in range(self.workers):
            self._start()

    def submit(
        self,
        job_id: Any,
        plan: CompressionPlan,
        rung: str = "measure",
        baseline: Evaluation | None = None,
        artifact: Artifact | None = None,
        first: bool = False,
    ) -> None:
        """Queue one evaluation; jobs are begun in this order, those submitted ``first`` before the
        others.

        job_id: plain JSON, given back with the result. The rest is what the evaluator gets.
        """
        job = WorkerJob(job_id, plan, rung, baseline, artifact, first=first)
        place = sum(other.first for other in self._queue) if first else len(self._queue)
        self._queue.insert(place, job)
        self._hand_out()

    def collect(self, timeout_s: float = 1.0) -> list[Result]:
        """The results that arrived, at once if there are any, else after ``timeout_s`` at most.

        Raises what a worker met while loading, or EnvironmentFault (disk, workers that die).
        """
        end = time.monotonic() + timeout_s
        while True:
            self._turn(max(0.0, min(end - time.monotonic(), _TICK_S)))
            if self._fatal is not None and not self._results:  # what came before it is kept
                self.close()
                raise self._fatal
            if self._results or time.monotonic() >= end:
                found, self._results = self._results, []
                return found

    def progress(self) -> dict[Any, dict[str, Any]]:
        """What workers told of long jobs since the last call: job id -> the latest, plain JSON."""
        told, self._told = self._told, {}
        return told

    def withdraw(self) -> list[Any]:
        """Take back the jobs that no worker has begun; returns their ids."""
        ids = [job.job_id for job in self._queue]
        self._queue.clear()
        return ids

    @property
    def busy(self) -> int:
        """Candidates that workers are at."""
        return sum(worker.job is not None for worker in self._live)

    def close(self) -> None:
        """Kill every worker with all its children; queued and running jobs are dropped."""
        self._queue.clear()
        while self._live:
            worker = self._live.pop()
            worker.end()
            worker.printed()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> None:
        hello = {
            "factory": self.factory,
            "kwargs": dict(self.kwargs),
            "path": [os.path.abspath(folder) for folder in sys.path],
            "memory_bytes": self.memory_bytes,
        }
        try:
            self._live.append(WorkerProcess(hello))
        except OSError as error:
            self._fatal = EnvironmentFault(f"a worker could not be started: {error}")

    def _turn(self, wait_s: float) -> None:
        """Read what arrives within ``wait_s``, then look after the workers."""
        if self._live:
            wait([worker.channel.connection for worker in self._live], wait_s)
        elif not self._queue:
            time.sleep(wait_s)
        for worker in list(self._live):
            self._look_after(worker)
        idle = self.workers - len(self._live)
        for _ in range(min(idle, len(self._queue)) if self._fatal is None else 0):
            self._start()
        self._hand_out()

    def _look_after(self, worker: WorkerProcess) -> None:
        ended = worker.dead()  # asked first: what it sent before it died is still read
        try:
            while (message := worker.channel.poll()) is not None:
                self._heard(worker, message)
                if worker not in self._live:
                    return
        except ChannelError as error:
            self._lose(worker, f"the worker {error}")
            return
        seconds = time.monotonic() - worker.since
        if ended or worker.channel.closed:
            self._lose(worker, None)
        elif worker.job is not None and time.monotonic() - worker.alive > self.deadline_s:
            self._lose(worker, f"exceeded its deadline of {self.deadline_s:g} s")
        elif not worker.ready and seconds > self.start_s:
            self._lose(worker, f"did not load within {self.start_s:g} s")

    def _heard(self, worker: WorkerProcess, message: dict[str, Any]) -> None:
        job: WorkerJob | None = worker.job
        if "fatal" in message:
            self._fatal = self._fatal or rebuilt(message["fatal"])
        elif "ready" in message:
            worker.ready, self._failed_starts = True, 0
        elif "fault" in message:
            self._fatal = self._fatal or EnvironmentFault(str(message["fault"]))
        elif job is None or message.get("job") != job.job_id:
            raise ChannelError("answered what it was not asked")
        elif "progress" in message:
            worker.alive = time.monotonic()
            self._told[job.job_id] = message["progress"]
        elif "call" in message and self.answer is not None:
            worker.channel.send({"reply": self.answer(message["call"])})
            worker.alive = time.monotonic()
        else:
            worker.job = None
            try:
                evaluation = Evaluation.from_json(message.get("evaluation"))
                same = evaluation.plan.fingerprint == job.plan.fingerprint
                if not same or evaluation.rung != job.rung:
                    evaluation = job.failed("the evaluation is of another plan")
            except (InputError, TypeError) as error:
                evaluation = job.failed(f"the evaluation cannot be used: {error}")
            seconds = time.monotonic() - worker.since
            self._results.append(Result(job.job_id, evaluation, seconds, job.attempts))
            if message.get("worn"):  # out of memory: what is left of it is not to be trusted
                self._lose(worker, "out of memory")
            else:
                self._hand_out()

    def _lose(self, worker: WorkerProcess, cause: str | None) -> None:
        """End a worker; fail or queue again what it worked on."""
        self._live.remove(worker)
        job: WorkerJob | None = worker.job
        seconds = time.monotonic() - worker.since
        if not worker.end(wait_s=5.0 if cause is None else 0.0):
            cause = cause or "the worker closed its channel"
        printed = worker.printed()
        if job is not None:
            again = cause is None and worker.killed_from_outside()
            if again and job.attempts < MOST_ATTEMPTS:
                self._queue.appendleft(job)
                return
            cause = cause or worker.death() + (f" {job.attempts} times" if again else "")
            evaluation = job.failed(cause, printed or None)
            self._results.append(Result(job.job_id, evaluation, seconds, job.attempts))
        elif not worker.ready:
            self._failed_starts += 1
            if self._failed_starts >= MOST_STARTS and self._fatal is None:
                self._fatal = EnvironmentFault(
                    f"workers die while loading: {cause or worker.death()}; "
                    f"last words: {printed[-300:] or 'none'!r}"
                )
            elif self._fatal is None:
                self._start()

    def _hand_out(self) -> None:
        for worker in list(self._live):
            if self._queue and worker.ready and worker.job is None:
                job = self._queue.popleft()
                try:
                    worker.give(job, job.message())
                    job.attempts += 1
                except ChannelError as error:  # never begun
                    worker.job = None
                    self._queue.appendleft(job)
                    self._lose(worker, f"the worker {error}")
