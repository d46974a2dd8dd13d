"""The password of a PostgreSQL role, from where PostgreSQL's own tools take it."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path


def password_for(host: str, port: int, database: str, user: str) -> str | None:
    """PGPASSWORD, else the first line that fits in ``~/.pgpass`` (or PGPASSFILE); None if neither.

    Lines are ``host:port:database:user:password`` with ``*`` for anything and ``\\:`` for a colon.
    As with PostgreSQL's own tools, a file that others can read is passed over.
    """
    if "PGPASSWORD" in os.environ:
        return os.environ["PGPASSWORD"]
    path = Path(os.environ.get("PGPASSFILE") or Path.home() / ".pgpass")
    try:
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            return None
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    wanted = (host, str(port), database, user)
    for line in lines:
        fields = [re.sub(r"\\(.)", r"\1", f) for f in re.split(r"(?<!\\):", line)]
        fits = all(f in ("*", w) for f, w in zip(fields, wanted, strict=False))
        if len(fields) == 5 and fits and not line.startswith("#"):
            return fields[4]
    return None
