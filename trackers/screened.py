"""Screened candidates: what was tried cheaply on the way to a trial, kept in a table of its own."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from .tables import SCREENED, Tables

_BATCH, _EVERY_S = 32, 5.0


@dataclass(frozen=True)
class Screened:
    """One screened candidate. It is a guess, no trial: it never stands on a front.

    turn: number of the trial before which it was screened; place: within that turn.
    params: its genotype. values: what the screen found; None when it failed.
    """

    turn: int
    place: int
    params: Mapping[str, int]
    values: Mapping[str, float] | None
    seconds: float = 0.0


class ScreenedTable:
    """Rows of screened candidates, written in batches: a kill may lose the last batch, no more."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._waiting: list[Screened] = []
        self._due = time.monotonic() + _EVERY_S
        self._made = False

    def add(self, row: Screened) -> None:
        """Keep a row; it is on the disk after the batch is full, or :meth:`flush`."""
        self._waiting.append(row)
        if len(self._waiting) >= _BATCH or time.monotonic() >= self._due:
            self.flush()

    def flush(self) -> None:
        """Write what waits, in one transaction."""
        self._due = time.monotonic() + _EVERY_S
        if not self._waiting:
            return
        if not self._made:
            self._tables.create()  # a study of before there was such a table
            self._made = True

        def work(connection: sa.Connection) -> None:
            for row in self._waiting:
                mine = (SCREENED.c.turn == row.turn) & (SCREENED.c.place == row.place)
                connection.execute(sa.delete(SCREENED).where(mine))
            connection.execute(sa.insert(SCREENED), [_columns(row) for row in self._waiting])

        self._tables.write(work)
        self._waiting.clear()

    def rows(self) -> list[Screened]:
        """Every row on the disk or waiting, by turn and place."""
        return [*self._tables.read(_stored), *self._waiting]


def _stored(connection: sa.Connection) -> list[Screened]:
    if not sa.inspect(connection).has_table(SCREENED.name):
        return []
    query = sa.select(SCREENED).order_by(SCREENED.c.turn, SCREENED.c.place)
    return [_row(row) for row in connection.execute(query)]


def screened_table(rows: Sequence[Screened]) -> dict[str, Any]:
    """The rows as one table of columns and data, as MLflow shows it."""
    names = sorted({name for row in rows for name in row.values or ()})
    data = [
        [row.turn, row.place, *((row.values or {}).get(n) for n in names), json.dumps(row.params)]
        for row in rows
    ]
    return {"columns": ["before_trial", "place", *names, "options"], "data": data}


def _columns(row: Screened) -> dict[str, Any]:
    return {
        "turn": row.turn,
        "place": row.place,
        "params": json.dumps(dict(row.params), separators=(",", ":")),
        "outcome": None if row.values is None else json.dumps(dict(row.values)),
        "seconds": row.seconds,
    }


def _row(row: Any) -> Screened:
    values = None if row.outcome is None else _read(row.outcome)
    return Screened(row.turn, row.place, _read(row.params), values, row.seconds)


def _read(text: str) -> dict[str, Any]:
    """A JSON object whose names are held once for all rows: there may be a hundred thousand."""
    return {sys.intern(name): value for name, value in json.loads(text).items()}
