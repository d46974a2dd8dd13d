"""Asks, attempts and evaluations: what is written of each trial, one transaction at a time."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from ..errors import InputError
from ..objectives.evaluation import Evaluation
from ..spaces.plan import CompressionPlan
from .ask import BASELINE, Ask, Row
from .tables import ASKS, ATTEMPTS, EVALUATIONS, META, Tables

FINAL_RUNGS = ("measure", "recover")  # the rungs that end a trial


class Ledger:
    """The rows of one study database. Evaluations are only ever added, so they are read once."""

    def __init__(self, tables: Tables) -> None:
        self.tables = tables
        self._rows: list[Row] = []
        self._last_id = 0
        self._reading = threading.Lock()

    def put(self, values: Mapping[str, Any]) -> None:
        """Write entries under their names, all or none."""

        def work(connection: sa.Connection) -> None:
            for key, value in values.items():
                connection.execute(sa.delete(META).where(META.c.key == key))
                connection.execute(sa.insert(META).values(key=key, value=_dumps(value)))

        self.tables.write(work)

    def get(self, key: str, default: Any = None) -> Any:
        """The entry of that name."""
        query = sa.select(META.c.value).where(META.c.key == key)
        text = self.tables.read(lambda connection: connection.execute(query).scalar())
        return default if text is None else json.loads(text)

    def entries(self, prefix: str) -> dict[str, Any]:
        """All entries whose name starts with ``prefix``, without it."""
        mine = META.c.key.startswith(prefix, autoescape=True)
        query = sa.select(META.c.key, META.c.value).where(mine).order_by(META.c.key)
        found = self.tables.read(lambda connection: connection.execute(query).all())
        return {row.key[len(prefix) :]: json.loads(row.value) for row in found}

    def begin(self, ask: Ask, owner: str) -> None:
        """Record the proposal (the first time) and one more attempt at it."""
        begun_at, columns = time.time(), _ask_columns(ask)

        def work(connection: sa.Connection) -> None:
            plan = connection.execute(
                sa.select(ASKS.c.plan).where(ASKS.c.number == ask.number)
            ).scalar()
            if plan is None:
                connection.execute(sa.insert(ASKS).values(**columns))
            elif json.loads(plan) != ask.plan.to_json():
                raise InputError(f"trial {ask.number}", "was asked before with another plan", "")
            if _result(connection, ask.number) is not None:
                raise InputError(f"trial {ask.number}", "has its result already", "")
            latest = _attempt(connection, ask.number)
            if latest is not None and (latest.begun_at, latest.owner) == (begun_at, owner):
                return  # written before the connection was lost
            attempt = 1 + (latest.attempt if latest is not None else 0)
            row = {"number": ask.number, "attempt": attempt, "owner": owner}
            connection.execute(sa.insert(ATTEMPTS).values(**row, begun_at=begun_at))

        self.tables.write(work)

    def finish(self, number: int, evaluation: Evaluation) -> None:
        """Record the result of a trial and end its attempt."""
        if evaluation.rung not in FINAL_RUNGS:
            raise InputError(f"trial {number}", f"rung {evaluation.rung!r} ends no trial", "add it")
        row = _evaluation_columns(number, evaluation)

        def work(connection: sa.Connection) -> None:
            plan = connection.execute(
                sa.select(ASKS.c.plan).where(ASKS.c.number == number)
            ).scalar()
            if plan is None:
                raise InputError(f"trial {number}", "was never asked", "begin it first")
            if json.loads(plan) != evaluation.plan.to_json():
                raise InputError(f"trial {number}", "the result is of another plan", "")
            known = _result(connection, number)
            if known is not None:
                if known.finished_at == row["finished_at"]:
                    return  # written before the connection was lost
                raise _second(number, "")
            connection.execute(sa.insert(EVALUATIONS).values(**row))
            mine = (ATTEMPTS.c.number == number) & ATTEMPTS.c.ended_at.is_(None)
            connection.execute(sa.update(ATTEMPTS).where(mine).values(ended_at=time.time()))

        self.tables.write(work)

    def add(self, number: int, evaluation: Evaluation) -> None:
        """Record a further result: of the baseline, or of a finished trial."""
        row = _evaluation_columns(number, evaluation)

        def work(connection: sa.Connection) -> None:
            if number != BASELINE and _result(connection, number) is None:
                raise InputError(f"trial {number}", "has no result to add to", "finish it first")
            known = _result(connection, number, (evaluation.rung,))
            if known is None:
                connection.execute(sa.insert(EVALUATIONS).values(**row))
            elif known.finished_at != row["finished_at"]:
                raise _second(number, f" at {evaluation.rung!r}")

        self.tables.write(work)

    def asks(self, number: int | None = None) -> list[Ask]:
        """All proposals by number, or the one of that number."""
        query = sa.select(ASKS).order_by(ASKS.c.number)
        if number is not None:
            query = query.where(ASKS.c.number == number)
        found = self.tables.read(lambda connection: connection.execute(query).all())
        return [_ask(row) for row in found]

    def attempts(self, number: int) -> int:
        """How often the trial was begun."""
        latest = self.tables.read(lambda connection: _attempt(connection, number))
        return 0 if latest is None else int(latest.attempt)

    def in_flight(self) -> list[int]:
        """Trials that were begun and have no result."""
        ended = sa.select(EVALUATIONS.c.number).where(EVALUATIONS.c.rung.in_(FINAL_RUNGS))
        query = sa.select(ASKS.c.number).where(ASKS.c.number.not_in(ended)).order_by(ASKS.c.number)
        found = self.tables.read(lambda connection: connection.execute(query).scalars().all())
        return [int(n) for n in found]

    def rows(self) -> list[Row]:
        """Every evaluation, the baseline's too, in the order in which they were finished."""
        table = EVALUATIONS
        query = sa.select(table, ASKS.c.parent).join(
            ASKS, ASKS.c.number == table.c.number, isouter=True
        )
        with self._reading:
            fresh = query.where(table.c.id > self._last_id).order_by(table.c.id)
            for row in self.tables.read(lambda connection: connection.execute(fresh).all()):
                evaluation = Evaluation.from_json(json.loads(row.evaluation), f"trial {row.number}")
                self._rows.append(Row(row.number, evaluation, row.parent, row.finished_at))
                self._last_id = row.id
            return list(self._rows)


def _second(number: int, at: str) -> InputError:
    return InputError(f"trial {number}", f"has a result{at} already", "the late one is dropped")


def _result(
    connection: sa.Connection, number: int, rungs: Sequence[str] = FINAL_RUNGS
) -> sa.Row[Any] | None:
    """What is recorded of a trial at one of ``rungs``."""
    mine = (EVALUATIONS.c.number == number) & EVALUATIONS.c.rung.in_(rungs)
    return connection.execute(sa.select(EVALUATIONS.c.finished_at).where(mine)).first()


def _attempt(connection: sa.Connection, number: int) -> sa.Row[Any] | None:
    """The latest attempt at a trial."""
    latest = sa.select(ATTEMPTS).where(ATTEMPTS.c.number == number)
    return connection.execute(latest.order_by(ATTEMPTS.c.attempt.desc())).first()


def _evaluation_columns(number: int, evaluation: Evaluation) -> dict[str, Any]:
    data = evaluation.to_json()
    Evaluation.from_json(data, f"trial {number}")  # what cannot be read back is not written
    return {
        "number": number,
        "rung": evaluation.rung,
        "failed": evaluation.failed,
        "evaluation": _dumps(data),
        "finished_at": time.time(),
    }


def _ask_columns(ask: Ask) -> dict[str, Any]:
    if ask.number < 0:
        raise InputError(f"trial {ask.number}", "numbers start at 0", "")
    return {
        "number": ask.number,
        "plan": _dumps(ask.plan.to_json()),
        "params": _dumps(dict(ask.params)),
        "system_attrs": _dumps(dict(ask.system_attrs)),
        "study_attrs": _dumps(dict(ask.study_attrs)),
        "burnt": _dumps([dict(b) for b in ask.burnt]),
        "parent": ask.parent,
        "asked_at": time.time(),
    }


def _ask(row: Any) -> Ask:
    return Ask(
        number=row.number,
        plan=CompressionPlan.from_json(json.loads(row.plan), f"trial {row.number}"),
        params=json.loads(row.params),
        system_attrs=json.loads(row.system_attrs),
        study_attrs=json.loads(row.study_attrs),
        burnt=tuple(json.loads(row.burnt)),
        parent=row.parent,
    )


def _dumps(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))
