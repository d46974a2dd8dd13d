"""A study in a PostgreSQL server: one schema a study, one driver at a time, restarts sat out."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import socket
import ssl
import time
import uuid
from collections.abc import Callable
from datetime import datetime
from typing import Any, TypeVar

import sqlalchemy as sa

from ..errors import EnvironmentFault, InputError
from .pgpass import password_for

T = TypeVar("T")
PATIENCE_S = 300.0  # that a server may be away while a search is running
WHERE = "tracker.storage"
_CONNECT_S, _ANSWER_S = 8.0, 60.0
_LOCK = 0x70617265  # "pare": the class of our advisory locks
_LOST = re.compile(r"^(08|57P)")  # SQLSTATEs of connections that were or are being closed
_HOLDER = """
SELECT a.pid, a.application_name, a.backend_start FROM pg_locks l JOIN pg_stat_activity a
USING (pid) WHERE l.locktype = 'advisory' AND l.granted AND l.classid = :space
AND l.objid = :key AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""
_log = logging.getLogger(__name__)


class Server:
    """A PostgreSQL database as one study sees it: a schema of its own, named after the study.

    address: ``postgresql://user@host:port/database``, ``?sslmode=`` disable, prefer (default),
        require or verify-full (authorities: the system's, or PGSSLROOTCERT). Never a password: that
        is read from PGPASSWORD or ``~/.pgpass`` whenever a connection is made.
    name: the study's.

    The connection that writes holds a session-level advisory lock. The server lifts it when the
    holder's connection ends: at once when the process dies, within a minute when its machine does.
    Because nothing is written but on that connection, a driver that lost it can write no more once
    another one has the study.
    """

    def __init__(self, address: str, name: str) -> None:
        url = checked_address(address)
        self._to: dict[str, Any] = {
            "host": url.host or "localhost",
            "port": url.port or int(os.environ.get("PGPORT", "5432")),
            "database": url.database,
            "user": url.username or os.environ.get("PGUSER") or "postgres",
        }
        self._tls = str(url.query.get("sslmode", "prefer"))
        self.schema = schema_of(name)
        self._key = int(hashlib.sha256(self.schema.encode()).hexdigest()[:7], 16)
        me = f"paretune {os.getpid()} on {socket.gethostname()[:36]}"
        self._me = f"{me} {uuid.uuid4().hex[:8]}"
        self._patience_s = 0.0  # an address where nothing listens is told at once

    def __str__(self) -> str:
        to = self._to
        return f"postgresql://{to['user']}@{to['host']}:{to['port']}/{to['database']}"

    def reader(self) -> sa.Engine:
        """An engine for reading."""
        return self._engine(self._connect)

    def writer(self) -> sa.Engine:
        """An engine with a single connection that holds the study's lock.

        Raises InputError, when it connects, if another driver holds the study.
        """
        return self._engine(self._connect_as_driver, pool_size=1, max_overflow=0)

    def exists(self) -> bool:
        """Whether the schema holds a study's tables."""
        found = self._ask("SELECT to_regclass(:name)", name=f'"{self.schema}".paretune_meta')
        return bool(found and found[0][0] is not None)

    def driven(self) -> bool:
        """Whether a driver holds the study at this moment."""
        return bool(self._ask(_HOLDER, space=_LOCK, key=self._key))

    def optuna_storage(self) -> Any:
        """Optuna's tables in the same schema."""
        from optuna.storages import RDBStorage

        settings = {"creator": self._connect, "pool_pre_ping": True}
        return RDBStorage("postgresql+pg8000://", engine_kwargs=settings)

    def patiently(self, call: Callable[[], T]) -> T:
        """``call``, again and again while the server is away: up to five minutes once a driver has
        begun, not at all before.

        Raises EnvironmentFault with the server's words.
        """
        end, pause = 0.0, 0.1
        while True:
            try:
                return call()
            except sa.exc.IntegrityError:
                raise
            except (sa.exc.DBAPIError, sa.exc.TimeoutError, OSError) as error:
                now = time.monotonic()
                if not end:
                    end = now + self._patience_s
                    if self._patience_s and lost(error):
                        _log.warning("%s is away (%s); waiting for it", self, reason(error))
                if not lost(error) or now >= end:
                    raise self._fault(error) from None
                time.sleep(pause)
                pause = min(2 * pause, 5.0)

    def _fault(self, error: Exception) -> EnvironmentFault:
        cause = getattr(error, "orig", None) or error
        code = cause.args[0].get("C", "") if _told(cause) else ""
        remedy = "start it and run the same command again: no acknowledged trial is lost"
        if code.startswith("28"):
            remedy = "set PGPASSWORD or write it into ~/.pgpass, and name the user in the address"
        elif code == "3D000":
            remedy = "create the database, or name another"
        elif code in ("42501", "3F000"):
            remedy = f"have its owner run: CREATE SCHEMA {self.schema} AUTHORIZATION your_role"
        return EnvironmentFault(f"{self}: storage failed ({reason(error)}); {remedy}")

    def _engine(self, creator: Callable[[], Any], **settings: Any) -> sa.Engine:
        return sa.create_engine(
            "postgresql+pg8000://", creator=creator, pool_pre_ping=True, **settings
        )

    def _ask(self, query: str, **values: Any) -> list[Any]:
        engine = self._engine(self._connect, poolclass=sa.pool.NullPool)

        def call() -> list[Any]:
            with engine.connect() as connection:
                return list(connection.execute(sa.text(query), values).all())

        return self.patiently(call)

    def _connect(self) -> Any:
        try:
            from pg8000 import dbapi
        except ImportError:
            raise InputError(
                WHERE, "pg8000 is not installed", "pip install 'paretune[postgresql]'"
            ) from None
        socket.create_connection((self._to["host"], self._to["port"]), _CONNECT_S).close()
        secret = password_for(**self._to)
        context = _tls(self._tls)
        common = {**self._to, "password": secret, "application_name": self._me}
        try:
            connection = dbapi.connect(**common, ssl_context=context, timeout=_ANSWER_S)
        except dbapi.InterfaceError as error:
            if self._tls != "prefer" or "refuses SSL" not in str(error):
                raise
            connection = dbapi.connect(**common, timeout=_ANSWER_S)
        _settle(connection, f'SET search_path TO "{self.schema}"')
        return connection

    def _connect_as_driver(self) -> Any:
        connection = self._connect()
        try:
            for name, value in (("idle", 30), ("interval", 10), ("count", 3)):
                _settle(connection, f"SET tcp_keepalives_{name} = {value}")
            _settle(connection, "SET synchronous_commit = on")
            self._take(connection)
            present = "SELECT to_regnamespace(%s)"
            if _settle(connection, present, (f'"{self.schema}"',))[0][0] is None:
                _settle(connection, f'CREATE SCHEMA "{self.schema}"')
        except BaseException:
            connection.close()
            raise
        self._patience_s = PATIENCE_S
        return connection

    def _take(self, connection: Any) -> None:
        """Hold the lock, or say who does; a session of our own that the server has not missed yet
        is ended."""
        query = re.sub(r":(space|key)", "%s", _HOLDER)
        take = "SELECT pg_try_advisory_lock(%s, %s)"
        for _ in range(40):
            if _settle(connection, take, (_LOCK, self._key))[0][0]:
                return
            holders = _settle(connection, query, (_LOCK, self._key))
            if holders and holders[0][1] != self._me:
                raise InputError(
                    str(self),
                    f"another search holds the study {self.schema}: {_person(holders[0])}",
                    "wait until it ends, or stop it",
                )
            for pid, *_ in holders:
                _settle(connection, "SELECT pg_terminate_backend(%s)", (pid,))
            time.sleep(0.05)
        raise EnvironmentFault(f"{self}: the study {self.schema} could not be locked; try again")


def checked_address(address: str, where: str = WHERE) -> sa.URL:
    """The parts of a ``postgresql://`` address; a password is no part of it.

    where: what an error calls it. Raises InputError.
    """
    try:
        url = sa.make_url(address)
    except (sa.exc.ArgumentError, ValueError):
        url = sa.URL.create("unreadable")
    if url.password is not None:
        raise InputError(
            where, "the address carries a password", "set PGPASSWORD or write it into ~/.pgpass"
        )
    if url.drivername != "postgresql" or not url.database or set(url.query) - {"sslmode"}:
        raise InputError(
            where,
            f"not an address of a database: {address!r}",
            "write postgresql://user@host:5432/database, with ?sslmode=require if need be",
        )
    if url.query.get("sslmode", "prefer") not in _MODES:
        raise InputError(where, f"unknown sslmode {url.query['sslmode']!r}", f"known: {_MODES}")
    return url


def schema_of(name: str) -> str:
    """The schema that holds the study of that name: ``paretune_`` and what SQL can bear of it."""
    word = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")[:40]
    mark = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"paretune_{word}" if word == name else f"paretune_{word}_{mark}"


def lost(error: BaseException) -> bool:
    """Whether a connection broke or could not be made, rather than the server saying no."""
    if getattr(error, "connection_invalidated", False):
        return True
    cause = getattr(error, "orig", None) or error
    if _told(cause):
        return bool(_LOST.match(cause.args[0].get("C", "")))
    return isinstance(cause, OSError) or type(cause).__name__ == "InterfaceError"


def reason(error: BaseException) -> str:
    """The server's words in one line."""
    cause = getattr(error, "orig", None) or error
    text = cause.args[0].get("M", "") if _told(cause) else str(cause.__cause__ or cause)
    return re.sub(r"\s+", " ", text).strip()[:200]


_MODES = ("disable", "prefer", "require", "verify-full")


def _told(cause: BaseException) -> bool:
    """Whether it carries the server's own fields."""
    return bool(cause.args) and isinstance(cause.args[0], dict)


def _tls(mode: str) -> ssl.SSLContext | None:
    if mode == "disable":
        return None
    context = ssl.create_default_context(cafile=os.environ.get("PGSSLROOTCERT") or None)
    if mode != "verify-full":
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def _settle(connection: Any, statement: str, values: tuple[Any, ...] = ()) -> Any:
    """One statement and its commit; its rows."""
    cursor = connection.cursor()
    cursor.execute(statement, values)
    rows = cursor.fetchall() if cursor.description else ()
    connection.commit()
    return rows


def _person(holder: tuple[int, str, datetime]) -> str:
    _, name, since = holder
    signed = re.match(r"paretune (\d+ on \S+)", name or "")
    who = f"process {signed[1]}" if signed else "a session that did not sign"
    return f"{who} since {since:%Y-%m-%d %H:%M:%S}"
