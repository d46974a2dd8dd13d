"""The study's own tables, and transactions on them whose failures a person can act on."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

import sqlalchemy as sa

from ..errors import EnvironmentFault, InputError
from .postgres import Server

SCHEMA = 1
BUSY_SECONDS = 60
T = TypeVar("T")

_metadata = sa.MetaData()
META = sa.Table(
    "paretune_meta",
    _metadata,
    sa.Column("key", sa.String(200), primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
)
ASKS = sa.Table(
    "paretune_asks",
    _metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("plan", sa.Text, nullable=False),
    sa.Column("params", sa.Text, nullable=False),
    sa.Column("system_attrs", sa.Text, nullable=False),
    sa.Column("study_attrs", sa.Text, nullable=False),
    sa.Column("burnt", sa.Text, nullable=False),
    sa.Column("parent", sa.Integer),
    sa.Column("asked_at", sa.Float, nullable=False),
)
ATTEMPTS = sa.Table(
    "paretune_attempts",
    _metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("attempt", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("owner", sa.String(200), nullable=False),
    sa.Column("begun_at", sa.Float, nullable=False),
    sa.Column("ended_at", sa.Float),
)
EVALUATIONS = sa.Table(
    "paretune_evaluations",
    _metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("number", sa.Integer, nullable=False, index=True),
    sa.Column("rung", sa.String(16), nullable=False),
    sa.Column("failed", sa.Boolean, nullable=False),
    sa.Column("evaluation", sa.Text, nullable=False),
    sa.Column("finished_at", sa.Float, nullable=False),
    sa.UniqueConstraint("number", "rung"),
)
SCREENED = sa.Table(
    "paretune_screened",
    _metadata,
    sa.Column("turn", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("place", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("params", sa.Text, nullable=False),
    sa.Column("outcome", sa.Text),
    sa.Column("seconds", sa.Float, nullable=False),
)


class Tables:
    """One study's database; ``read`` and ``write`` do a piece of work in a transaction.

    place: the SQLite file, or the schema of a PostgreSQL server (see postgres.py). A server that
    goes away in the middle is waited for, and the work is done again: so what is handed to
    ``write`` has to bear being repeated after a commit whose answer was lost.
    """

    def __init__(self, place: Path | Server, write: bool) -> None:
        self.place, self.writable = place, write
        if isinstance(place, Path):
            self._reader = self._writer = _sqlite_engine(place, write)
        else:
            self._reader = place.reader()
            self._writer = place.writer() if write else self._reader

    @property
    def where(self) -> str:
        """What messages call it: the file, or the address without a secret."""
        return str(self.place)

    def read(self, work: Callable[[sa.Connection], T]) -> T:
        """What ``work`` finds in one read transaction."""
        return self._again(lambda: self._read_once(work))

    def write(self, work: Callable[[sa.Connection], T]) -> T:
        """Do ``work`` in one write transaction: on return it is on the disk, on an error nothing
        is.

        Raises EnvironmentFault when the disk or the database refuses.
        """
        if not self.writable:
            raise InputError(self.where, "the study is open for reading", "open it for writing")
        return self._again(lambda: self._write_once(work))

    def create(self) -> None:
        """Make the tables that are missing."""
        self.write(_metadata.create_all)

    def driven(self) -> bool:
        """Whether a driver on any machine holds the study on its server."""
        return not isinstance(self.place, Path) and self.place.driven()

    def close(self) -> None:
        """Give back the connections; the last writer folds the log into the file."""
        self._reader.dispose()
        self._writer.dispose()

    def _read_once(self, work: Callable[[sa.Connection], T]) -> T:
        with self._reader.connect() as connection:
            return work(connection)

    def _write_once(self, work: Callable[[sa.Connection], T]) -> T:
        with self._writer.begin() as connection:
            return work(connection)

    def _again(self, call: Callable[[], T]) -> T:
        if isinstance(self.place, Path):
            with failures_named(self.place):
                return call()
        return self.place.patiently(call)


def new_database(path: Path) -> None:
    """An empty file that only its owner can read; SQLite gives its side files the same mode."""
    for suffix in ("", "-journal", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    with failures_named(path):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))


def check_database(path: Path) -> None:
    """Refuse a file that is not a whole SQLite database, without changing a byte of it.

    Raises EnvironmentFault naming the first damage.
    """
    with failures_named(path):
        connection = sqlite3.connect(_address(path, "ro"), uri=True, timeout=BUSY_SECONDS)
        try:
            verdict = connection.execute("PRAGMA quick_check(1)").fetchone()
        finally:
            connection.close()
    if verdict is None or verdict[0] != "ok":
        raise _damaged(path, str(verdict and verdict[0]))


@contextmanager
def failures_named(path: Path) -> Iterator[None]:
    """Turn what a database or a disk throws into one line with the path and the free space."""
    try:
        yield
    except sa.exc.IntegrityError:
        raise
    except (sa.exc.DBAPIError, sqlite3.Error, OSError) as error:
        cause = getattr(error, "orig", None) or error
        raise _fault(path, cause) from None


def _fault(path: Path, cause: BaseException) -> EnvironmentFault:
    text = re.sub(r"\s+", " ", str(cause)).strip()
    if "malformed" in text or "not a database" in text:
        return _damaged(path, text)
    if "locked" in text:
        return EnvironmentFault(
            f"{path}: another program has kept it locked for {BUSY_SECONDS} s; "
            "close that program and run the same command again"
        )
    folder = path if path.is_dir() else path.parent
    try:
        room = f", {shutil.disk_usage(folder).free:,} bytes free"
    except OSError:
        room = ""
    return EnvironmentFault(
        f"{path}: storage failed ({text}{room}); free space or make it writable and run the same "
        "command again: no acknowledged trial is lost"
    )


def _damaged(path: Path, what: str) -> EnvironmentFault:
    what = re.sub(r"\s+", " ", what)[:200]
    return EnvironmentFault(
        f"{path}: the database is damaged ({what}) and was left as it is; "
        "restore it from a backup or start in a new folder"
    )


def _address(path: Path, mode: str) -> str:
    text = f"file:{quote(str(path.resolve()))}?mode={mode}"
    log = path.with_name(path.name + "-wal")
    if mode == "ro" and not os.access(path.parent, os.W_OK) and not log.exists():
        return text + "&immutable=1"  # nobody can write there, so no side files are needed
    return text


def _sqlite_engine(path: Path, write: bool) -> sa.Engine:
    def connect() -> sqlite3.Connection:
        connection = sqlite3.connect(
            _address(path, "rw" if write else "ro"),
            uri=True,
            timeout=BUSY_SECONDS,
            isolation_level=None,  # transactions are begun below, by name
            check_same_thread=False,
        )
        if write:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
        return connection

    engine = sa.create_engine("sqlite://", creator=connect, poolclass=sa.pool.QueuePool)

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

    return engine
