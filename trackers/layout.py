"""How a study's database comes into being, whole or not at all, and how its layout is checked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import EnvironmentFault, InputError
from .ledger import Ledger
from .tables import SCHEMA, Tables, new_database

DATABASE = "study.db"


def found_database(folder: Path, entries: Mapping[str, Any], storage: str | None) -> Tables:
    """The tables with their first entries, open for writing.

    The file gets its final name only when it is complete. Raises InputError when the database
    named by ``storage`` holds a study already.
    """
    entries = {"schema": SCHEMA, **entries}
    if storage is not None:
        tables = Tables(folder, True, storage)
        tables.create()
        if Ledger(tables).get("schema") is not None:
            raise InputError(str(folder), "its storage holds a study already", "name an empty one")
        Ledger(tables).put(entries)
        return tables
    path, draft = folder / DATABASE, folder / f"{DATABASE}.new"
    new_database(draft)
    tables = Tables(draft, True)
    try:
        tables.create()
        Ledger(tables).put(entries)
    finally:
        tables.close()
    draft.rename(path)
    return Tables(path, True)


def check_layout(ledger: Ledger) -> None:
    """Refuse a database that is no study's, or one of another version's layout (InputError)."""
    where = str(ledger.tables.path)
    try:
        schema = ledger.get("schema")
    except EnvironmentFault as fault:
        if "no such table" not in str(fault):
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
