"""How a study's database comes into being, whole or not at all, and how its layout is checked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import EnvironmentFault, InputError
from .durable_file import sync_folder
from .ledger import Ledger
from .postgres import Server
from .tables import SCHEMA, Tables, check_database, new_database


def found_database(place: Path | Server, entries: Mapping[str, Any]) -> Tables:
    """The tables with their first entries, open for writing.

    A file gets its final name only when it is complete; on a server the entries are the last thing
    written. Raises InputError when another driver is at it, or was faster.
    """
    entries = {"schema": SCHEMA, **entries}
    if not isinstance(place, Path):
        tables = Tables(place, True)
        try:
            tables.create()
            if Ledger(tables).get("schema") is not None:
                raise InputError(str(place), "holds this study already", "run the command again")
            Ledger(tables).put(entries)
            return tables
        except BaseException:
            tables.close()
            raise
    draft = place.with_name(f"{place.name}.new")
    new_database(draft)
    tables = Tables(draft, True)
    try:
        tables.create()
        Ledger(tables).put(entries)
    finally:
        tables.close()
    draft.rename(place)
    sync_folder(place.parent)
    return Tables(place, True)


def checked_tables(place: Path | Server, write: bool) -> Tables:
    """The tables of a study that is there, after a look at whether they are whole and of this
    version; open for writing, a server's lock is held.

    Raises InputError, EnvironmentFault.
    """
    if isinstance(place, Path):
        check_database(place)
    tables = Tables(place, write)
    try:
        if write:
            tables.write(lambda _: None)  # the first connection takes the lock
        check_layout(Ledger(tables))
        return tables
    except BaseException:
        tables.close()
        raise


def check_layout(ledger: Ledger) -> None:
    """Refuse a database that is no study's, or one of another version's layout (InputError)."""
    where = ledger.tables.where
    try:
        schema = ledger.get("schema")
    except EnvironmentFault as fault:
        if "no such table" not in str(fault) and "does not exist" not in str(fault):
            raise
        schema = None
    if schema is None:
        raise InputError(where, "is not a study's database", "name another folder")
    if schema != SCHEMA:
        raise InputError(
            where,
            f"has the layout {schema!r}, this paretune reads {SCHEMA}",
            "use the version of paretune that wrote it",
        )
