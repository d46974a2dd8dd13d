"""MLflow's empty tables, kept: a new local database is a copy instead of seconds of migrations."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from contextlib import closing
from importlib.metadata import version
from pathlib import Path

from ..tasks.image_cache import cache_folder


def lay_tables(file: Path) -> None:
    """Put the tables of the installed MLflow where no database is yet, if they are kept.

    MLflow makes a new database by running every migration since its first version (1.6 s of
    processor time, 3 s with the disk). A file that appears meanwhile is left as it is. Best
    effort: where this fails MLflow makes its tables itself.
    """
    kept = _kept()
    if kept is None or not kept.is_file() or file.exists():
        return
    try:
        with tempfile.TemporaryDirectory(dir=file.parent, prefix=".") as folder:
            copy = Path(shutil.copyfile(kept, Path(folder) / "mlflow.db"))
            if _sound(copy):
                with copy.open("rb+") as written:
                    os.fsync(written.fileno())
                os.link(copy, file)  # refuses where a file is: nothing is ever replaced
            else:
                kept.unlink()
    except OSError:
        return


def keep_tables(file: Path) -> None:
    """Keep the tables of a database that MLflow has just made, without what lies in them.

    Not of one that holds a run or an experiment: it is somebody's.
    """
    kept = _kept()
    if kept is None or kept.exists():
        return
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent, prefix=".") as folder:
            copy = Path(folder) / "mlflow.db"
            with closing(sqlite3.connect(file)) as source, closing(sqlite3.connect(copy)) as target:
                source.backup(target)
                used = "SELECT (SELECT count(*) FROM runs) + (SELECT count(*) FROM experiments)"
                if target.execute(used).fetchone()[0] > 1:  # MLflow's default experiment
                    return
                target.execute("DELETE FROM experiments")  # it names a folder of this place
                target.commit()
            copy.replace(kept)
    except (OSError, sqlite3.Error):
        return


def _kept() -> Path | None:
    """Where the tables of the installed version are kept; a version in the making has none."""
    installed = version("mlflow")
    return None if "dev" in installed else cache_folder() / f"mlflow-{installed}.db"


def _sound(file: Path) -> bool:
    """Whether the copy is whole, has its version and no runs."""
    try:
        with closing(sqlite3.connect(file)) as database:
            whole = database.execute("PRAGMA quick_check").fetchone()[0] == "ok"
            (versions,) = database.execute("SELECT count(*) FROM alembic_version").fetchone()
            (runs,) = database.execute("SELECT count(*) FROM runs").fetchone()
    except sqlite3.Error:
        return False
    return bool(whole and versions == 1 and runs == 0)
