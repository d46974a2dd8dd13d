"""Asks, attempts and evaluations: what is written of each trial, one transaction at a time."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping
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
        with self.tables.write() as connection:
            for key, value in values.items():
                connection.execute(sa.delete(META).where(META.c.key == key))
                connection.execute(sa.insert(META).values(key=key, value=_dumps(value)))

    def get(self, key: str, default: Any = None) -> Any:
        """The entry of that name."""
        with self.tables.read() as connection:
            text = connection.execute(sa.select(META.c.value).where(META.c.key == key)).scalar()
        return default if text is None else json.loads(text)

    def entries(self, prefix: str) -> dict[str, Any]:
        """All entries whose name starts with ``prefix``, without it."""
        mine = META.c.key.startswith(prefix, autoescape=True)
        query = sa.select(META.c.key, META.c.value).where(mine).order_by(META.c.key)
        with self.tables.read() as connection:
            found = connection.execute(query).all()
        return {row.key[len(prefix) :]: json.loads(row.value) for row in found}

    def begin(self, ask: Ask, owner: str) -> None:
        """Record the proposal (the first time) and one more attempt at it."""
        with self.tables.write() as connection:
            plan = connection.execute(
                sa.select(ASKS.c.plan).where(ASKS.c.number == ask.number)
            ).scalar()
            if plan is None:
                connection.execute(sa.insert(ASKS).values(**_ask_columns(ask)))
            elif json.loads(plan) != ask.plan.to_json():
                raise InputError(f"trial {ask.number}", "was asked before with another plan", "")
            if _finished(connection, ask.number):
                raise InputError(f"trial {ask.number}", "has its result already", "")
            attempt = _attempts(connection, ask.number) + 1
            row = {"number": ask.number, "attempt": attempt, "owner": owner}
            connection.execute(sa.insert(ATTEMPTS).values(**row, begun_at=time.time()))

    def finish(self, number: int, evaluation: Evaluation) -> None:
        """Record the result of a trial and end its attempt."""
        if evaluation.rung not in FINAL_RUNGS:
            raise InputError(f"trial {number}", f"rung {evaluation.rung!r} ends no trial", "add it")
        with self.tables.write() as connection:
            plan = connection.execute(
                sa.select(ASKS.c.plan).where(ASKS.c.number == number)
            ).scalar()
            if plan is None:
                raise InputError(f"trial {number}", "was never asked", "begin it first")
            if json.loads(plan) != evaluation.plan.to_json():
                raise InputError(f"trial {number}", "the result is of another plan", "")
            if _finished(connection, number):
                raise _second(number, "")
            _insert(connection, number, evaluation)
            mine = (ATTEMPTS.c.number == number) & ATTEMPTS.c.ended_at.is_(None)
            connection.execute(sa.update(ATTEMPTS).where(mine).values(ended_at=time.time()))

    def add(self, number: int, evaluation: Evaluation) -> None:
        """Record a further result: of the baseline, or of a finished trial."""
        with self.tables.write() as connection:
            if number != BASELINE and not _finished(connection, number):
                raise InputError(f"trial {number}", "has no result to add to", "finish it first")
            try:
                _insert(connection, number, evaluation)
            except sa.exc.IntegrityError:
                raise _second(number, f" at {evaluation.rung!r}") from None

    def asks(self, number: int | None = None) -> list[Ask]:
        """All proposals by number, or the one of that number."""
        query = sa.select(ASKS).order_by(ASKS.c.number)
        if number is not None:
            query = query.where(ASKS.c.number == number)
        with self.tables.read() as connection:
            return [_ask(row) for row in connection.execute(query)]

    def attempts(self, number: int) -> int:
        """How often the trial was begun."""
        with self.tables.read() as connection:
            return _attempts(connection, number)

    def in_flight(self) -> list[int]:
        """Trials that were begun and have no result."""
        ended = sa.select(EVALUATIONS.c.number).where(EVALUATIONS.c.rung.in_(FINAL_RUNGS))
        query = sa.select(ASKS.c.number).where(ASKS.c.number.not_in(ended)).order_by(ASKS.c.number)
        with self.tables.read() as connection:
            return [int(n) for n in connection.execute(query).scalars()]

    def rows(self) -> list[Row]:
        """Every evaluation, the baseline's too, in the order in which they were finished."""
        table = EVALUATIONS
        query = sa.select(table, ASKS.c.parent).join(
            ASKS, ASKS.c.number == table.c.number, isouter=True
        )
        with self._reading, self.tables.read() as connection:
            fresh = query.where(table.c.id > self._last_id).order_by(table.c.id)
            for row in connection.execute(fresh).all():
                evaluation = Evaluation.from_json(json.loads(row.evaluation), f"trial {row.number}")
                self._rows.append(Row(row.number, evaluation, row.parent, row.finished_at))
                self._last_id = row.id
            return list(self._rows)


def _second(number: int, at: str) -> InputError:
    return InputError(f"trial {number}", f"has a result{at} already", "the late one is dropped")


def _finished(connection: sa.Connection, number: int) -> bool:
    query = sa.select(EVALUATIONS.c.id).where(
        EVALUATIONS.c.number == number, EVALUATIONS.c.rung.in_(FINAL_RUNGS)
    )
    return connection.execute(query).first() is not None


def _attempts(connection: sa.Connection, number: int) -> int:
    query = sa.select(sa.func.max(ATTEMPTS.c.attempt)).where(ATTEMPTS.c.number == number)
    return connection.execute(query).scalar() or 0


def _insert(connection: sa.Connection, number: int, evaluation: Evaluation) -> None:
    data = evaluation.to_json()
    Evaluation.from_json(data, f"trial {number}")  # what cannot be read back is not written
    connection.execute(
        sa.insert(EVALUATIONS).values(
            number=number,
            rung=evaluation.rung,
            failed=evaluation.failed,
            evaluation=_dumps(data),
            finished_at=time.time(),
        )
    )


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
