"""The JSON Schema of job files as editors read it: checks, explanations and completions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..objectives.objective import QUANTITIES
from ..targets.catalogue import TARGETS
from ..tasks.data import KINDS
from ..tasks.job import job_schema
from ..tasks.published import TORCHVISION

DIALECT = "https://json-schema.org/draft/2020-12/schema"
MODELINE = "# yaml-language-server: $schema={}"


def editor_schema() -> dict[str, Any]:
    """The schema of :func:`paretune.tasks.job.job_schema`, with known names to choose from.

    Names that may also be others (a callable, a board's address) are offered, not demanded.
    """
    from .samplers import SAMPLERS

    schema = {"$schema": DIALECT, "title": "paretune job", **job_schema()}
    parts = schema["$defs"]
    _offer(parts["SearchSection"], "sampler", list(SAMPLERS), closed=True)
    _offer(parts["TargetSection"], "name", list(TARGETS))
    _offer(parts["DataSection"], "kind", list(KINDS))
    _offer(parts["DataSection"], "dataset", list(TORCHVISION), closed=True)
    _offer(parts["TaskSection"], "score", ["accuracy", "fidelity"])
    items = schema["properties"]["objectives"]["items"]
    known = [
        {"const": name, "description": f"{quantity.meaning} ({quantity.unit or 'number'})"}
        for name, quantity in QUANTITIES.items()
    ]
    schema["properties"]["objectives"]["items"] = {"anyOf": [*known, *items["anyOf"]]}
    return schema


def write_schema(path: Path) -> None:
    """Write it to a file, where a job's first line can name it. Raises InputError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(editor_schema(), indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(str(path), f"cannot be written ({error.strerror})", "") from None


def _offer(section: dict[str, Any], key: str, names: list[str], closed: bool = False) -> None:
    """Offer ``names`` for a key; closed: nothing else is right (but null, where it may be)."""
    entry = section["properties"][key]
    old = {k: entry.pop(k) for k in [*entry] if k not in ("description", "default")}
    kinds = old.get("anyOf", [old])
    rest = [kind for kind in kinds if not closed or kind.get("type") == "null"]
    entry["anyOf"] = [{"enum": names}, *rest]
