"""The loop of a search: propose, try, write down, tell; killed at any instant, it goes on."""

from __future__ import annotations

import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from ..errors import AllFailedError, InputError
from ..objectives.evaluation import Evaluation
from ..spaces.plan import CompressionPlan
from ..trackers.ask import Ask
from ..trackers.study import BASELINE, Study
from .confirmation import Unchanged, confirm
from .events import Event, Listener, Progress
from .exports import Exports
from .interrupt import Interrupt
from .jobs import Result, Workers
from .proposer import Proposer
from .recovery import recovery_asks, recovery_of, training
from .scout import Errand
from .stopping import Patience, Stagnation
from .window import Window

HOPELESS = 20  # failures without a single success that end a search
_TIDY_EVERY = 10  # trials between two removals of files that are on no front
_COLLECT_S = 0.5
_CONFIRM_ROUNDS = 5


@dataclass(frozen=True)
class Budget:
    """When a search ends.

    trials: finished trials in all, failed ones and those of earlier runs included.
    timeout_s: of this run; None = no limit. Then no further candidate is begun; those at work have
        ``grace_s`` to finish, what is not finished stays recorded as in flight and is run first
        when the search is resumed.
    patience: end earlier, when the hypervolume no longer grows; what was asked is finished.
    """

    trials: int
    timeout_s: float | None = None
    grace_s: float = 60.0
    patience: Patience | None = None


class Driver:
    """Runs a search on an open study until its budget is spent.

    study: open for writing; what it holds is kept and counted. identity: the plan that changes
    nothing. make_pool: starts the workers, called only if there is something to evaluate.
    window: asks that are open at a time (see :class:`Window`). recover: how many points are
    trained after the search, outside the budget.

    Raises InputError when the uncompressed network cannot be measured, AllFailedError when nothing
    ever succeeds, EnvironmentFault (disk, workers), KeyboardInterrupt. Whatever is raised, all that
    was finished is in the study, no worker is left, and a new Driver goes on from there.
    """

    def __init__(
        self,
        study: Study,
        proposer: Proposer,
        identity: CompressionPlan,
        make_pool: Callable[[], Workers],
        budget: Budget,
        window: int = 2,
        listeners: Sequence[Listener] = (),
        interrupt: Interrupt | None = None,
        recover: int = 0,
    ) -> None:
        self._study, self._proposer, self._identity = study, proposer, identity
        self._make_pool, self._budget, self._listeners = make_pool, budget, listeners
        self._interrupt = interrupt or Interrupt()
        self._recover = recover
        self._window = Window(proposer, window, budget.trials)
        self._progress = Progress(budget.trials)
        self._owner = f"{socket.gethostname()}:{os.getpid()}"
        self._started: Workers | None = None
        self._baseline: Evaluation | None = None
        self._files = Exports(study)
        self._causes: Counter[str] = Counter()
        self._errands: dict[str, Errand] = {}  # job id -> a candidate being screened
        self._stagnation: Stagnation | None = None

    def run(self) -> str:
        """Search, then measure the front again on the evaluate split; returns why it ended."""
        begun = time.monotonic()
        try:
            self._measure_baseline()
            reason = self._search(begun)
            if self._progress.failed and self._progress.failed == self._progress.done:
                raise AllFailedError(self._histogram())
            self._confirm()
            if self._recover:
                self._train(recovery_asks(self._study, self._recover))
        finally:
            self._stop_workers()
        self._files.keep_wanted()  # after the last worker has gone
        self._study.publish_front()
        self._emit("ended", note=reason)
        return reason

    @property
    def _pool(self) -> Workers:
        if self._started is None:
            self._started = self._make_pool()
        return self._started

    def _stop_workers(self) -> None:
        if self._started is not None:
            self._started.close()
            self._started = None

    def _measure_baseline(self) -> None:
        baseline, seconds = self._study.baseline, 0.0
        if baseline is None:
            self._pool.submit(BASELINE, self._identity)
            (result,) = self._results(1)
            baseline, seconds = result.evaluation, result.seconds
            if baseline.failed:
                raise InputError(
                    "baseline",
                    f"the uncompressed network cannot be measured: {baseline.cause}",
                    "it has to run on the target before anything can be compared with it",
                )
            self._study.add(BASELINE, baseline)
        self._baseline = baseline
        self._proposer.begin(baseline)
        if self._budget.patience is not None:
            self._stagnation = Stagnation(
                self._budget.patience, baseline.values, self._proposer.constraints
            )
        self._emit("baseline", BASELINE, baseline, seconds)

    def _search(self, begun: float) -> str:
        """Trials until the budget is spent."""
        outstanding = self._restore()
        first, ending = time.monotonic(), (self._stagnation and self._stagnation.reason) or ""
        end = None if self._budget.timeout_s is None else begun + self._budget.timeout_s
        while True:
            self._interrupt.check()
            if not ending and end is not None and time.monotonic() >= end:
                ending = "the time is up"
                outstanding -= set(self._pool.withdraw() if self._started else ())
            elif ending and end is not None and time.monotonic() >= end + self._budget.grace_s:
                self._stop_workers()  # what they are at stays in flight
                return ending
            while not ending:
                self._send_errands()
                if (ask := self._window.next()) is None:
                    break
                self._study.begin(ask, self._owner)
                self._submit(ask.number, ask.plan)
                outstanding.add(ask.number)
            if not outstanding and (ending or not self._errands):
                return ending or self._window.exhausted or "the budget is spent"
            for result in self._pool.collect(_COLLECT_S):
                if self._was_errand(result):
                    continue
                self._study.finish(result.job_id, result.evaluation)
                self._window.add(result.job_id, result.evaluation)
                outstanding.discard(result.job_id)
                self._count(result.evaluation)
                self._progress = replace(self._progress, seconds=time.monotonic() - first)
                self._emit("trial", result.job_id, result.evaluation, result.seconds)
                self._look_back()
                if self._stagnation is not None and not ending:
                    ending = self._stagnation.add(result.job_id, result.evaluation) or ""

    def _restore(self) -> set[int]:
        """Replay what the study holds; queue what was begun and not finished, with its plan."""
        asks = [ask for ask in self._study.asks() if ask.parent is None]
        numbers = {ask.number for ask in asks}
        rows = [row for row in self._study.rows("measure") if row.number in numbers]
        for row in rows:
            self._count(row.evaluation)
            if self._stagnation is not None:
                self._stagnation.add(row.number, row.evaluation)
        self._files.fetch()
        if self._proposer.scout is not None:
            screened = self._study.screened()
            self._proposer.scout.recall(screened)
            self._progress = replace(self._progress, screened=len(screened))
        self._window.restore(asks, {row.number: row.evaluation for row in rows})
        self._progress = replace(self._progress, resumed=len(rows))
        done, limit = {row.number for row in rows}, self._budget.trials
        waiting = [ask for ask in asks if ask.number not in done and ask.number < limit]
        if asks:
            note = f"{len(rows)} of {self._budget.trials} trials are done"
            self._emit("resumed", note=note)
        for ask in waiting:
            self._study.begin(ask, self._owner)
            self._submit(ask.number, ask.plan)
        return {ask.number for ask in waiting}

    def _confirm(self) -> None:
        """Measure the front again, together, on data that the search did not see."""
        for _ in range(_CONFIRM_ROUNDS):
            front, near = self._study.front().unconfirmed()
            if not front and not near:
                return
            artifact = self._baseline.artifact if self._baseline else None
            unchanged = Unchanged(self._identity, artifact)
            confirm(front, near, unchanged, self._study, self._pool, self._results, self._emit)

    def recover_one(self, number: int) -> Ask:
        """Train one point of a finished search now, measure it and confirm it; its trial."""
        try:
            self._measure_baseline()
            ask = recovery_of(self._study, number)
            self._train([ask])
        finally:
            self._stop_workers()
        self._study.publish_front()
        return ask

    def _train(self, asks: Sequence[Ask]) -> None:
        """Each a trial of its own; those that get onto the front are confirmed like the others."""
        if not asks or self._baseline is None:
            return
        for ask in asks:
            self._study.begin(ask, self._owner)
        training(asks, self._study, self._pool, self._baseline, self._results, self._emit)
        self._confirm()

    def _send_errands(self) -> None:
        """Have screened what the next ask waits for, before anything else."""
        for errand in self._window.errands():
            self._errands[errand.job_id] = errand
            self._pool.submit(errand.job_id, errand.plan, "screen", self._baseline, first=True)

    def _was_errand(self, result: Result) -> bool:
        """Whether a result is a screened candidate's; then it is noted."""
        errand, scout = self._errands.pop(result.job_id, None), self._proposer.scout
        if errand is None or scout is None:
            return False
        row = scout.add(errand, result.evaluation, result.seconds)
        self._study.note_screened(row)
        self._progress = replace(self._progress, screened=self._progress.screened + 1)
        return True

    def _submit(self, number: int, plan: CompressionPlan) -> None:
        self._pool.submit(number, plan, "measure", self._baseline)

    def _results(self, count: int, meanwhile: Callable[[], None] | None = None) -> Iterator[Result]:
        """The next ``count`` results as they arrive."""
        while count > 0:
            self._interrupt.check()
            if meanwhile is not None:
                meanwhile()
            for result in self._pool.collect(_COLLECT_S):
                if not self._was_errand(result):
                    count -= 1
                    yield result

    def _count(self, evaluation: Evaluation) -> None:
        done, failed = self._progress.done + 1, self._progress.failed + evaluation.failed
        self._progress = replace(self._progress, done=done, failed=failed)
        if evaluation.cause is not None:
            self._causes[evaluation.cause] += 1
        self._files.add(evaluation)

    def _look_back(self) -> None:
        """Give up when nothing works; from time to time remove files that no one will want."""
        done, failed = self._progress.done, self._progress.failed
        if failed == done and done >= HOPELESS:
            raise AllFailedError(self._histogram())
        if done % _TIDY_EVERY == 0:
            self._files.tidy()

    def _histogram(self) -> str:
        causes = "; ".join(f"{count} x {cause}" for cause, count in self._causes.most_common(3))
        return f"search: all of {self._progress.done} candidates failed: {causes}"

    def _emit(
        self,
        kind: str,
        number: int | None = None,
        evaluation: Evaluation | None = None,
        seconds: float = 0.0,
        note: str = "",
        share: float | None = None,
    ) -> None:
        event = Event(kind, self._progress, number, evaluation, seconds, note, share)
        for listener in self._listeners:
            listener.on_event(event)
