"""A search from a job to a front on disk: checks first, then the work."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..objectives.problem import Problem, parse_constraints, parse_objectives, parse_targets
from ..objectives.table import write_whole
from ..tasks.job import Job, load_job
from ..trackers.job_copy import check_task
from ..trackers.mlflow_link import checked_uri
from ..trackers.mlflow_mirror import ENDED
from ..trackers.place import DATABASE, Place
from ..trackers.study import Study
from ..trackers.study_page import study_page
from .cluster import Cluster
from .display import Opening, QuietDisplay, make_display
from .driver import Budget, Driver
from .events import Event, Listener, Progress
from .head_start import HeadStart
from .interrupt import Interrupt
from .jobs import Workers
from .mlflow_watch import MlflowWatch
from .outset import make_proposer, plain_proposer
from .pool import Pool
from .preparation import SCREENING
from .samplers import check_sampler
from .stopping import Patience, constant_objectives

FACTORY = "paretune.objectives.evaluate:Evaluator.from_job"


class Search:
    """A search for one job, in one study folder; running it again goes on where it ended.

    job: a :class:`Job`, the path of a job file, or the same as a mapping.
    out: the study folder (default ``studies/<job's name>``).
    trials, timeout (minutes of one run, its preparation included), workers, sampler, seed, patience
        (trials), screen (candidates a trial), storage (``postgresql://user@host/database``):
        instead of the job's own.
    ray: address of a Ray cluster (``auto``, ``host:port``) whose nodes are the workers.

    Whatever can be checked without loading the network is checked at once.
    Raises InputError naming the job's line.

    >>> study = Search("job.yaml", trials=100).run()          # doctest: +SKIP
    >>> study.front().table()                                 # doctest: +SKIP
    """

    def __init__(
        self,
        job: Job | Path | str | Mapping[str, Any],
        out: Path | str | None = None,
        *,
        trials: int | None = None,
        timeout: float | None = None,
        workers: int | None = None,
        sampler: str | None = None,
        seed: int | None = None,
        patience: int | None = None,
        screen: int | None = None,
        storage: str | None = None,
        ray: str | None = None,
    ) -> None:
        given: dict[str, Any] = {
            "search.patience": None if patience is None else {"trials": patience},
            "search.screen": screen,
            "search.trials": trials,
            "search.timeout": timeout,
            "search.workers": workers,
            "search.sampler": sampler,
            "search.seed": seed,
            "tracker.storage": storage,
        }
        self.job = load_job(job).replaced(_options(given))
        self.folder = Path(out) if out is not None else Path("studies") / _folder(self.job.name)
        self._ray = ray
        self._cluster: Cluster | None = None
        check_sampler(self.job.search.sampler, self.job.where("search.sampler"))
        parse_objectives(self.job)
        parse_constraints(self.job)
        parse_targets(self.job)
        self._place = Place.of_job(self.folder, self.job.to_json(), self.job.name)
        self._place.check(self.job.where)
        if self.job.tracker and self.job.tracker.mlflow:
            checked_uri(self.job.tracker.mlflow.uri, self.job.where("tracker.mlflow.uri"))

    def run(self, display: str = "auto", listeners: Sequence[Listener] = ()) -> Study:
        """Search until the budget is spent, measure the front again, write it down; the study.

        display: ``auto``, ``live``, ``plain`` or ``quiet``. listeners: hear of everything too.
        The study is open for reading. Ctrl-C raises KeyboardInterrupt; what was finished is kept.
        Raises InputError (also when ``out`` holds another job's study, naming what differs, or one
        that began with other weights or data), AllFailedError, EnvironmentFault. (When no point
        meets the constraints, ``front()`` is empty and ``front().choose()`` names the nearest one.)
        """
        begun = time.monotonic()
        with ExitStack() as stack:
            if self._ray is not None:
                self._cluster = stack.enter_context(Cluster(self._ray, self.job))
            study, problem = self._open()
            stack.enter_context(study)
            check_task(study, problem.task.fingerprint)
            study.put(ENDED, "KILLED")  # what is true as long as nobody says otherwise
            stop = stack.enter_context(Interrupt())
            if self._cluster is not None:
                problem = self._cluster.begin(study, problem)
            search, space = self.job.search, problem.space
            workers = min(search.workers, search.trials)
            opening = Opening(space.size, len(space.parameters), search.sampler, workers)
            screen = stack.enter_context(make_display(display, study, opening))
            watchers: list[Listener] = [screen, *listeners]

            def say(text: str) -> None:
                stop.check()
                event = Event("preparing", Progress(search.trials), note=text)
                for watcher in watchers:
                    watcher.on_event(event)

            if workers < search.workers:
                say(f"{search.workers} workers for {search.trials} trials: {workers} are started")
            window = self._window(study)
            early = stack.enter_context(HeadStart())

            def timed() -> None:
                if self._cluster is None and study.baseline is None:
                    early.begin(lambda: self._pool(study, workers, search.screen != 0))

            proposer = make_proposer(self.job, study, problem, window, say, stop.check, timed)
            watchers += self._mlflow(study, stack, screen, begun)
            driver = Driver(
                study,
                proposer,
                space.identity,
                lambda: early.take(lambda: self._pool(study, workers, proposer.scout is not None)),
                Budget(
                    search.trials,
                    None
                    if search.timeout is None  # what was prepared took its part of the time
                    else max(0.0, begun + 60 * search.timeout - time.monotonic()),
                    min(60.0, search.deadline),
                    Patience(**search.patience.model_dump()) if search.patience else None,
                ),
                window,
                watchers,
                stop,
                self._recovered(),
            )
            try:
                driver.run()
                measured = [row.evaluation for row in study.rows("measure")]
                for name in constant_objectives(measured, problem.objectives):
                    say(f"{name} is the same for all trials: it decides nothing")
                study.put(ENDED, "FINISHED")
            except BaseException as error:
                with suppress(Exception):  # the error at hand matters more
                    study.put(ENDED, "FAILED" if isinstance(error, Exception) else "KILLED")
                    _write_front(study, profile=False)
                raise
            _write_front(study)
        return Study.open(self.folder)

    def recover_one(
        self, trial: int, display: str = "auto", recover: Mapping[str, Any] | None = None
    ) -> Study:
        """Train one finished trial of this study again, as the job's ``recover`` section says; the
        study, with the recovered point as a trial of its own. recover: instead of the job's own
        keys of that section, this time.

        Raises InputError for a number that is no finished trial of the search.
        """
        job = self.job if self.job.recover else load_job({**self.job.to_json(), "recover": {}})
        asked = job.replaced(_options({f"recover.{k}": v for k, v in (recover or {}).items()}))
        begun = time.monotonic()
        with ExitStack() as stack:
            study, problem = self._open()
            stack.enter_context(study)
            check_task(study, problem.task.fingerprint)
            self.job = asked
            stop = stack.enter_context(Interrupt())
            search, space = self.job.search, problem.space
            opening = Opening(space.size, len(space.parameters), search.sampler, search.workers)
            screen = stack.enter_context(make_display(display, study, opening))
            driver = Driver(
                study,
                plain_proposer(self.job, problem),
                space.identity,
                lambda: self._pool(study, 1, False),
                Budget(search.trials),
                self._window(study),
                [screen, *self._mlflow(study, stack, screen, begun)],
                stop,
            )
            driver.recover_one(trial)
            _write_front(study)
        return Study.open(self.folder)

    def _open(self) -> tuple[Study, Problem]:
        """The study, open for writing, and the job made concrete; nothing is written before the
        job proved good."""
        place = self._place
        if not place.holds_study():
            problem = Problem.from_job(self.job)
            return self._create(problem), problem
        study = Study.open(place, write=True)
        try:
            changed = study.changed(self.job.to_json())
            fresh = place.storage is None and study.baseline is None and not study.asks()
            if changed and fresh:
                study.close()  # nothing was measured yet: nothing is lost
                for name in (DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm"):
                    (self.folder / name).unlink(missing_ok=True)
                return self._open()
            if changed:
                raise InputError(
                    str(self.folder),
                    f"holds a search of another job: {', '.join(changed)} differ",
                    f"name another folder, or go on with {self.folder / 'job.yaml'}"
                    if place.storage is None
                    else f"give this job another name than {self.job.name!r}",
                )
            problem = Problem.from_job(self.job)
            study.set_job(self.job.to_json())
            return study, problem
        except BaseException:
            study.close()
            raise

    def _create(self, problem: Problem) -> Study:
        return Study.create(
            self.folder,
            self.job.to_json(),
            name=self.job.name,
            objectives=problem.objectives,
        )

    def _mlflow(
        self, study: Study, stack: ExitStack, screen: QuietDisplay, begun: float
    ) -> list[Listener]:
        """Who keeps MLflow up to date until the stack is closed, if the job asks for it."""
        section = self.job.tracker and self.job.tracker.mlflow
        if section is None:
            return []
        watch = MlflowWatch(study.folder, section.model_dump(), screen.console, begun)
        return [stack.enter_context(watch)]

    def _recovered(self) -> int:
        """How many points are trained after the search."""
        section = self.job.recover
        return 0 if section is None or section.method == "none" else section.top

    def _window(self, study: Study) -> int:
        """Asks open at a time: the job's, else what the study began with, else two a worker."""
        search = self.job.search
        width = search.window or study.get("window") or 2 * search.workers
        width = max(int(width), search.workers)
        study.put("window", width)
        return width

    def _pool(self, study: Study, workers: int, screening: bool) -> Workers:
        if self._cluster is not None:
            return self._cluster.workers(workers, screening)
        search = self.job.search
        machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        given = search.memory_gb and search.memory_gb * 1e9
        memory = int(given or 0.8 * machine / workers)
        settings = {"job": self.job.to_json(), "folder": str(study.folder.resolve())}
        factory = SCREENING if screening else FACTORY
        return Pool(factory, settings, workers, search.deadline, memory)


def _options(given: Mapping[str, Any]) -> dict[str, tuple[str, Any]]:
    """Which option of the command line gave each value of a section; those that were not given are
    left out."""
    known = {key: value for key, value in given.items() if value is not None}
    return {key: (f"--{key.partition('.')[2]}", value) for key, value in known.items()}


def _write_front(study: Study, profile: bool = True) -> None:
    """``front.csv`` and ``front.html`` in the study folder; profile: with the layers' times."""
    if study.baseline is None:
        return
    front = study.front()
    front.to_csv(study.folder / "front.csv")
    write_whole(study.folder / "front.html", study_page(study, profile, trials=profile))


def _folder(name: str) -> str:
    """The job's name as the name of a folder."""
    return re.sub(r"[^\w.+-]+", "-", name).strip("-.") or "search"
