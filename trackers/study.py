"""The study on disk: all that a search has found out, safe against a kill at any instant."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..objectives.evaluation import Artifact, Evaluation
from ..objectives.objective import Objective
from .ask import BASELINE, Ask, Row
from .job_copy import differing_keys, plain, write_job
from .layout import checked_tables, found_database
from .ledger import FINAL_RUNGS, Ledger
from .lock import FileLock
from .optuna_tables import OptunaTables
from .place import DATABASE, LOCK, Place
from .screened import Screened, ScreenedTable
from .tables import Tables

if TYPE_CHECKING:
    from ..objectives.front import ParetoFront

__all__ = ["BASELINE", "Ask", "Row", "Study"]

_USER = "user."
_COPY_EVERY = 20  # finished trials between two copies to Optuna's tables (30 ms a trial)


class Study:
    """A study folder: ``study.db``, ``job.yaml``, ``artifacts/<sha256>.<format>``.

    A result is acknowledged when :meth:`finish` returns: it is on the disk in one transaction. One
    driver writes (``write=True`` takes a lock), any number of readers may look. The finished
    trials are copied to Optuna's own tables in the same file, from time to time and at the end, so
    that Optuna's tools open it; a missing part of that copy is made up for when the study is
    opened for writing.

    >>> with Study.open("runs/resnet20") as study:          # doctest: +SKIP
    ...     print(study.front().table())
    """

    def __init__(self, place: Place, tables: Tables, lock: FileLock | None) -> None:
        self.folder = place.folder
        self._tables, self._lock = tables, lock
        self._ledger = Ledger(tables)
        self._artifacts = place.artifact_store()
        self._screened = ScreenedTable(tables)
        self.id: str = self._ledger.get("id")
        self.name: str = self._ledger.get("name")
        self.job: dict[str, Any] = self._ledger.get("job")
        self.objectives = [Objective(**o) for o in self._ledger.get("objectives")]
        self._optuna = OptunaTables(tables.place, self.name, self.objectives)
        self._waiting = 0

    @classmethod
    def create(
        cls,
        folder: Path | str,
        job: Mapping[str, Any],
        *,
        name: str,
        objectives: Sequence[Objective],
    ) -> Study:
        """A new study in ``folder`` (made if missing), open for writing.

        job: the resolved job, plain JSON; its ``tracker`` section says whether the database and the
        exported files are kept elsewhere.
        Raises InputError when the folder holds anything else or a study already.
        """
        place = Place.of_job(folder, plain(job), name)
        place.make_folder()
        lock = FileLock.take(place.folder / LOCK, "search")
        try:
            if place.holds_study():
                raise InputError(str(folder), "holds a study already", "resume it or name another")
            entries = {
                "id": uuid.uuid4().hex,
                "name": name,
                "job": plain(job),
                "objectives": [{"name": o.name, "options": dict(o.options)} for o in objectives],
            }
            write_job(place.folder, plain(job))
            return cls(place, found_database(place.database(), entries), lock)
        except BaseException:
            lock.release()
            raise

    @classmethod
    def open(cls, folder: Path | str | Place, *, write: bool = False) -> Study:
        """The study in ``folder``, to look at or (``write=True``) to go on with.

        Given as a :class:`Place`, the folder may be new to a study whose database is on a server.
        Raises InputError when there is none, when another driver holds it or when another version
        of paretune wrote it; EnvironmentFault when the database is damaged (it is left as it is) or
        cannot be reached.
        """
        place = folder if isinstance(folder, Place) else Place.of_folder(folder)
        database = place.database()
        if not place.holds_study():
            raise InputError(
                str(place.folder),
                f"holds no study ({DATABASE} is missing)",
                "name the folder that `paretune search` wrote",
            )
        if write:
            place.make_folder()
        lock = FileLock.take(place.folder / LOCK, "search") if write else None
        try:
            study = cls(place, checked_tables(database, write), lock)
        except BaseException:
            if lock is not None:
                lock.release()
            raise
        if write and study.rows():
            study._copy_to_optuna()
        return study

    def close(self) -> None:
        """Finish the copy in Optuna's tables and let the folder go."""
        try:
            if self._lock is not None:
                self._screened.flush()
            if self._lock is not None and self._waiting:
                self._copy_to_optuna()
            self._optuna.close()
            self._tables.close()
        finally:
            if self._lock is not None:
                self._lock.release()

    def __enter__(self) -> Study:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def changed(self, job: Mapping[str, Any]) -> list[str]:
        """The keys in which ``job`` describes another search than the stored one.

        Task, space, objectives, constraints, target, seed and sampler count; budgets do not.
        """
        return differing_keys(self.job, plain(job))

    def set_job(self, job: Mapping[str, Any]) -> None:
        """Store a job that differs in its budget only, and rewrite ``job.yaml``."""
        new = plain(job)
        self._ledger.put({"job": new})
        self.job = new
        write_job(self.folder, new)

    def put(self, key: str, value: Any) -> None:
        """Keep a JSON value under a name of the caller's."""
        self._ledger.put({_USER + key: value})

    def get(self, key: str, default: Any = None) -> Any:
        """The value kept under that name."""
        return self._ledger.get(_USER + key, default)

    def entries(self) -> dict[str, Any]:
        """All values kept by :meth:`put`."""
        return self._ledger.entries(_USER)

    def begin(self, ask: Ask, owner: str) -> None:
        """Record a proposal before it is given to a worker; again for each further attempt."""
        self._ledger.begin(ask, owner)

    def finish(self, number: int, evaluation: Evaluation) -> None:
        """Acknowledge a trial's result: once this returns, no kill loses it.

        Raises InputError when the trial has a result already, was never asked, or when the result
        is of another plan; EnvironmentFault when the disk refuses (then nothing was recorded, and
        the same call may be repeated once there is space).
        """
        self._publish(evaluation)
        self._ledger.finish(number, evaluation)
        self._waiting += 1
        if self._waiting >= _COPY_EVERY:
            self._copy_to_optuna()

    def add(self, number: int, evaluation: Evaluation) -> None:
        """Record a further result: the baseline's (number ``BASELINE``) or a confirmed one.

        Raises InputError when there is one for the same number and rung.
        """
        self._publish(evaluation)
        self._ledger.add(number, evaluation)

    def note_screened(self, row: Screened) -> None:
        """Keep a screened candidate; written in batches, a kill may lose the last one."""
        self._screened.add(row)

    def screened(self) -> list[Screened]:
        """All screened candidates, by the trial before which they were screened."""
        return self._screened.rows()

    def asks(self) -> list[Ask]:
        """All proposals, by number."""
        return self._ledger.asks()

    def attempts(self, number: int) -> int:
        """How often that trial was begun."""
        return self._ledger.attempts(number)

    def in_flight(self) -> list[int]:
        """The trials that were begun and have no result, by number."""
        return self._ledger.in_flight()

    def history(self) -> list[Row]:
        """The evaluations of trials in the order in which they were finished."""
        return [row for row in self._ledger.rows() if row.number != BASELINE]

    def rows(self, rung: str | None = None) -> list[Row]:
        """The evaluations of trials (the baseline is none), by number; of one rung if named."""
        found = [row for row in self.history() if rung in (None, row.evaluation.rung)]
        return sorted(found, key=lambda row: row.number)

    def baseline_at(self, rung: str) -> Evaluation | None:
        """The identity plan's evaluation at a rung."""
        for row in self._ledger.rows():
            if row.number == BASELINE and row.evaluation.rung == rung:
                return row.evaluation
        return None

    @property
    def baseline(self) -> Evaluation | None:
        """The identity plan as measured during the search."""
        return self.baseline_at("measure")

    def front(self) -> ParetoFront:
        """The best trade-offs found, with their confirmed values where there are any.

        The baseline beside it is the confirmed one where every point on the front is confirmed.
        """
        front = self.measured_front()
        confirmed = self.baseline_at("confirm")
        if confirmed is None or not len(front) or any(p.rung != "confirm" for p in front):
            return front
        return self._front(confirmed)

    def measured_front(self) -> ParetoFront:
        """The same points beside the baseline that was measured during the search."""
        return self._front(self.baseline)

    def publish_front(self) -> None:
        """Write the front into Optuna's tables with every choice as a parameter (0.2 s a point)."""
        self._copy_to_optuna()
        final = {r.number: r.evaluation for r in self.rows() if r.evaluation.rung in FINAL_RUNGS}
        numbers = [point.number for point in self.front()]
        self._optuna.add_front({n: final[n] for n in numbers if n in final})

    def artifact_path(self, artifact: Artifact) -> Path:
        """Where an exported file lies; fetched from where copies are kept, if it is missing."""
        return self._artifacts.local(artifact)

    def store_artifact(self, path: Path | str) -> Artifact:
        """Keep a copy of an exported file under its sha256; durable when this returns."""
        return self._artifacts.store(Path(path))

    def drop_artifact(self, artifact: Artifact) -> None:
        """Delete one exported file."""
        self._artifacts.remove(artifact)

    def drop_artifacts(self, keep: set[str]) -> None:
        """Delete the exported files whose sha256 is not in ``keep``."""
        self._artifacts.drop(keep)

    def driven(self) -> bool:
        """Whether a driver (this one included) holds the study at this moment."""
        if self._lock is not None or FileLock.held(self.folder / LOCK):
            return True
        return self._tables.driven()

    def _publish(self, evaluation: Evaluation) -> None:
        """A result is acknowledged after its files have their copy."""
        kept = evaluation.artifact.files if evaluation.artifact is not None else ()
        weights = (evaluation.weights,) if evaluation.weights is not None else ()
        self._artifacts.publish((*kept, *weights))

    def _front(self, baseline: Evaluation | None) -> ParetoFront:
        from ..objectives.front import ParetoFront

        rows = self.rows()
        return ParetoFront(
            [(row.number, row.evaluation) for row in rows],
            self.objectives,
            self.job.get("constraints") or (),
            baseline,
            {row.number: row.parent for row in rows if row.parent is not None},
        )

    def _copy_to_optuna(self) -> None:
        self._waiting = 0
        final = [row for row in self.history() if row.evaluation.rung in FINAL_RUNGS]
        identity = self.baseline.plan if self.baseline else None
        self._optuna.add(final, lambda number: self._ledger.asks(number)[0], identity)
