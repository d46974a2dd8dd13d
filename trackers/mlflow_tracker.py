"""MLflow as a picture of the study: drawn while the search runs, and again at any later time."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import EnvironmentFault, ParetuneError
from .lock import FileLock
from .mlflow_link import MlflowSettings, reason, shown
from .mlflow_mirror import Mirror
from .mlflow_read import RunRecord, download_artifact, read_run
from .study import Study

__all__ = [
    "MlflowProjector",
    "MlflowSettings",
    "RunRecord",
    "SyncReport",
    "download_artifact",
    "read_run",
    "sync",
]
SYNC_LOCK = "mlflow.lock"
_FIRST_PAUSE, _LONGEST_PAUSE = 5.0, 60.0  # seconds after a failed call
_PICTURES_EVERY = 60.0  # seconds
_REST, _REST_OF_WORK = 4.0, 99.0  # a push's time, and its processor time, is rested so many times


@dataclass(frozen=True)
class SyncReport:
    """What a sync did: runs made, runs changed, runs that were right already, and complaints."""

    created: int
    updated: int
    skipped: int
    problems: tuple[str, ...]
    run_id: str
    uri: str
    experiment: str

    @property
    def summary(self) -> str:
        """In one line."""
        return (
            f"MLflow {shown(self.uri)}, experiment {self.experiment!r}: "
            f"{self.created} runs created, {self.updated} updated, {self.skipped} up to date"
        )


def sync(
    study: Study,
    uri: str | None = None,
    experiment: str | None = None,
    artifacts: str = "front",
) -> SyncReport:
    """Bring MLflow up to date with the study; running it again changes nothing.

    A wiped store is filled again, deleted and half-written runs are made whole, ``pareto`` tags
    follow the front. While a search is running on the study its parent run stays open.
    uri, experiment: see :class:`MlflowSettings`. artifacts: ``"front"`` or ``"none"``.
    Raises EnvironmentFault when MLflow cannot be reached or fails, InputError on a bad address.
    """
    mirror = Mirror(study, MlflowSettings(uri, experiment, artifacts))
    lock = _lock(study.folder, wait_seconds=60.0)
    try:
        runs = mirror.push(final=not study.driven())
    except ParetuneError:
        raise
    except Exception as error:
        raise EnvironmentFault(
            f"{shown(str(mirror.settings.uri))}: MLflow failed ({reason(error)}); "
            f"start it and run `paretune sync {study.folder}`"
        ) from error
    finally:
        if lock is not None:
            lock.release()
    touched = len(mirror.created) + len(mirror.updated)
    return SyncReport(
        created=len(mirror.created),
        updated=len(mirror.updated),
        skipped=len(runs.children) + 1 - touched,
        problems=tuple(mirror.problems),
        run_id=runs.parent.run_id,
        uri=str(mirror.settings.uri),
        experiment=str(mirror.settings.experiment),
    )


@dataclass(frozen=True)
class LoggingCost:
    """What logging took from a search of ``wall_s`` seconds.

    processor_s: of its thread, beside the search. waited_s: for its last push, after the search.
    """

    wall_s: float
    processor_s: float
    waited_s: float

    @property
    def share(self) -> float:
        """The most that it can have taken of the wall time: as if no other core had been free."""
        return (self.processor_s + self.waited_s) / max(self.wall_s, 1e-9)


class MlflowProjector:
    """Draws a running search in MLflow from a thread of its own; the search never waits for it.

    Opens its own reading connection to the study. Between two pushes it rests so long that it takes
    at most a hundredth of one core from the search (its first push, which imports MLflow in some
    four seconds, and the last one aside). When MLflow fails it rests (5 s, then longer up to a
    minute) and goes on; nothing is lost, because what is missing is found out from the study.

    begun: when the search began, by ``time.monotonic`` (default: now); its cost is told of that.
    Raises InputError on a bad address.
    """

    def __init__(
        self,
        study_folder: Path | str,
        settings: MlflowSettings | Mapping[str, Any],
        begun: float | None = None,
    ) -> None:
        self._folder = Path(study_folder)
        given = settings if isinstance(settings, MlflowSettings) else MlflowSettings(**settings)
        given.resolved(self._folder, "")  # a bad address is refused here: nobody hears the thread
        self._settings = given
        self._news, self._closing = threading.Event(), threading.Event()
        self._problem: str | None = None
        self._missing = 0
        self._done = False
        self._mirror: Mirror | None = None
        self._run_id: str | None = None
        self._begun = time.monotonic() if begun is None else begun
        self._processor_s = 0.0
        self._cost: LoggingCost | None = None
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()

    def notify(self, number: int) -> None:
        """Say that a trial has finished. Returns at once."""
        self._news.set()

    @property
    def run_id(self) -> str | None:
        """The parent run, once MLflow has it."""
        return self._run_id

    @property
    def uri(self) -> str:
        """MLflow's address, without users and passwords."""
        return shown(str(self._settings.resolved(self._folder, "").uri))

    @property
    def cost(self) -> LoggingCost | None:
        """What logging took, once closed."""
        return self._cost

    def close(self, timeout: float = 30.0) -> tuple[str, ...]:
        """Draw the end of the search within ``timeout`` seconds; the complaints, none if all is in.

        Call when nothing more will be written to the study.
        """
        ended, processor_s = time.monotonic(), self._processor_s
        self._closing.set()
        self._news.set()
        self._thread.join(timeout)
        now = time.monotonic()
        self._cost = LoggingCost(now - self._begun, processor_s, now - ended)
        problems = tuple(self._mirror.problems) if self._mirror else ()
        if self._done:
            return problems
        why = self._problem or f"not done within {timeout:g} s"
        return (
            *problems,
            f"MLflow is not up to date ({why}); run `paretune sync {self._folder}`",
        )

    def _work(self) -> None:
        pause, pictures_due = _FIRST_PAUSE, time.monotonic() + _PICTURES_EVERY
        study: Study | None = None
        while not self._done:
            final = self._closing.is_set()
            self._news.clear()
            started, worked, first = time.monotonic(), time.thread_time(), self._run_id is None
            try:
                if study is None:
                    study = Study.open(self._folder)
                if self._mirror is None:
                    self._mirror = Mirror(study, self._settings)
                self._push(self._mirror, final, started >= pictures_due)
                took = time.monotonic() - started
                if started >= pictures_due:
                    pictures_due = time.monotonic() + max(_PICTURES_EVERY, 50 * took)
                self._problem, self._done, pause = None, final, _FIRST_PAUSE
                work = time.thread_time() - worked
                self._processor_s += work
                if not final:
                    rest = 0.0 if first else _REST_OF_WORK * work
                    self._closing.wait(max(1.0, _REST * took, rest))
                    self._news.wait()
            except Exception as error:  # whatever it is, the search goes on without MLflow
                self._problem = reason(error)
                self._processor_s += time.thread_time() - worked
                if self._mirror is not None:
                    self._mirror.forget()
                if final:
                    break
                self._closing.wait(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
        if study is not None:
            study.close()

    def _push(self, mirror: Mirror, final: bool, pictures: bool) -> None:
        lock = _lock(self._folder, wait_seconds=10.0 if final else 0.0)
        try:
            self._run_id = mirror.push(final, pictures).parent.run_id
        finally:
            if lock is not None:
                lock.release()


def _lock(folder: Path, wait_seconds: float) -> FileLock | None:
    """One writer to MLflow at a time; none needed where the folder cannot be written."""
    try:
        return FileLock.take(folder / SYNC_LOCK, "sync with MLflow", wait_seconds)
    except EnvironmentFault:
        return None
