"""A search from a job to a front on disk: checks first, then the work."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console

from ..errors import InputError
from ..objectives.page import write_page
from ..objectives.problem import Problem, parse_constraints, parse_objectives, parse_target
from ..tasks.job import Job, load_job
from ..trackers.layout import DATABASE
from ..trackers.study import Study
from .display import Opening, make_display
from .driver import Budget, Driver
from .events import Event, Listener
from .interrupt import Interrupt
from .pool import Pool
from .proposer import Proposer
from .samplers import check_sampler, default_population, make_sampler

FACTORY = "paretune.objectives.evaluate:Evaluator.from_job"
_MLFLOW_WAIT_S = 60.0


class Search:
    """A search for one job, in one study folder; running it again goes on where it ended.

    job: a :class:`Job`, the path of a job file, or the same as a mapping.
    out: the study folder (default ``studies/<job's name>``).
    trials, timeout (minutes), workers, sampler, seed: instead of the job's own.

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
    ) -> None:
        given = {
            "trials": trials,
            "timeout": timeout,
            "workers": workers,
            "sampler": sampler,
            "seed": seed,
        }
        self.job = _with_options(load_job(job), {k: v for k, v in given.items() if v is not None})
        self.folder = Path(out) if out is not None else Path("studies") / _folder(self.job.name)
        check_sampler(self.job.search.sampler, self.job.where("search.sampler"))
        parse_objectives(self.job)
        parse_constraints(self.job)
        parse_target(self.job)

    def run(self, display: str = "auto", listeners: Sequence[Listener] = ()) -> Study:
        """Search until the budget is spent, measure the front again, write it down; the study.

        display: ``auto``, ``live``, ``plain`` or ``quiet``. listeners: hear of everything too.
        The study is open for reading. Ctrl-C raises KeyboardInterrupt; what was finished is kept.
        Raises InputError (also when ``out`` holds another job's study, naming what differs),
        AllFailedError, EnvironmentFault. (When no point meets the constraints, ``front()`` is empty
        and ``front().choose()`` names the nearest one.)
        """
        with ExitStack() as stack:
            study, problem = self._open()
            stack.enter_context(study)
            stop = stack.enter_context(Interrupt())
            search, space = self.job.search, problem.space
            opening = Opening(space.size, len(space.parameters), search.sampler, search.workers)
            screen = stack.enter_context(make_display(display, study, opening))
            watchers: list[Listener] = [screen, *listeners]
            section = self.job.tracker and self.job.tracker.mlflow
            if section is not None:
                settings = section.model_dump()
                watchers.append(
                    stack.enter_context(_Mlflow(study.folder, settings, screen.console))
                )
            driver = Driver(
                study,
                self._proposer(study, problem),
                space.identity,
                lambda: self._pool(study),
                Budget(
                    search.trials,
                    None if search.timeout is None else 60 * search.timeout,
                    min(60.0, search.deadline),
                ),
                self._window(study),
                watchers,
                stop,
                self._recovered(),
            )
            try:
                driver.run()
            except BaseException:
                with suppress(Exception):  # the error at hand matters more
                    _write_front(study)
                raise
            _write_front(study)
        return Study.open(self.folder)

    def recover_one(self, trial: int, display: str = "auto") -> Study:
        """Train one finished trial of this study again, as the job's ``recover`` section says; the
        study, with the recovered point as a trial of its own.

        Raises InputError for a number that is no finished trial of the search.
        """
        with ExitStack() as stack:
            study, problem = self._open()
            stack.enter_context(study)
            stop = stack.enter_context(Interrupt())
            search, space = self.job.search, problem.space
            opening = Opening(space.size, len(space.parameters), search.sampler, search.workers)
            screen = stack.enter_context(make_display(display, study, opening))
            driver = Driver(
                study,
                self._proposer(study, problem),
                space.identity,
                lambda: self._pool(study),
                Budget(search.trials),
                self._window(study),
                [screen],
                stop,
            )
            driver.recover_one(trial)
            _write_front(study)
        return Study.open(self.folder)

    def _open(self) -> tuple[Study, Problem]:
        """The study, open for writing, and the job made concrete; nothing is written before the
        job proved good."""
        if not (self.folder / DATABASE).exists():
            problem = Problem.from_job(self.job)
            return self._create(problem), problem
        study = Study.open(self.folder, write=True)
        try:
            changed = study.changed(self.job.to_json())
            if changed and study.baseline is None and not study.asks():
                study.close()  # nothing was measured yet: nothing is lost
                for name in (DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm"):
                    (self.folder / name).unlink(missing_ok=True)
                return self._open()
            if changed:
                raise InputError(
                    str(self.folder),
                    f"holds a search of another job: {', '.join(changed)} differ",
                    f"name another folder, or go on with {self.folder / 'job.yaml'}",
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

    def _proposer(self, study: Study, problem: Problem) -> Proposer:
        search, space = self.job.search, problem.space
        population = search.population or study.get("population")
        population = population or default_population(search.trials)
        study.put("population", population)  # a resume with another budget keeps it
        sampler = make_sampler(
            search.sampler,
            space.parameters,
            seed=search.seed,
            population=population,
            where=self.job.where("search.sampler"),
        )
        presets = space.presets()
        objectives, constraints = problem.objectives, problem.constraints
        return Proposer(space, objectives, constraints, sampler, search.seed, presets)

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

    def _pool(self, study: Study) -> Pool:
        search = self.job.search
        machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        given = search.memory_gb and search.memory_gb * 1e9
        memory = int(given or 0.8 * machine / search.workers)
        settings = {"job": self.job.to_json(), "folder": str(study.folder.resolve())}
        return Pool(FACTORY, settings, search.workers, search.deadline, memory)


class _Mlflow:
    """Keeps MLflow up to date while the search runs; says in the end what is missing there."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], console: Console) -> None:
        from ..trackers.mlflow_tracker import MlflowProjector

        self._projector, self._console = MlflowProjector(folder, settings), console

    def on_event(self, event: Event) -> None:
        """A trial finished, or a point was confirmed."""
        if event.number is not None:
            self._projector.notify(event.number)

    def __enter__(self) -> _Mlflow:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        wait_s = _MLFLOW_WAIT_S if error is None or isinstance(error, Exception) else 5.0
        for problem in self._projector.close(wait_s):
            self._console.print(problem, markup=False, highlight=False)


def _with_options(job: Job, given: Mapping[str, Any]) -> Job:
    """The job with some of its search options replaced, checked like the job itself."""
    if not given:
        return job
    data = job.to_json()
    checked = load_job({**data, "search": {**data["search"], **given}})
    return job.model_copy(update={"search": checked.search})


def _write_front(study: Study) -> None:
    """``front.csv`` and ``front.html`` in the study folder."""
    if study.baseline is None:
        return
    front = study.front()
    front.to_csv(study.folder / "front.csv")
    write_page(study.folder / "front.html", front, study.measured_front().history(), study.name)


def _folder(name: str) -> str:
    """The job's name as the name of a folder."""
    return re.sub(r"[^\w.+-]+", "-", name).strip("-.") or "search"
