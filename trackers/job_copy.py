"""The job that a study was started with: its copy in the folder, and what makes it another job."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..tasks.yaml_source import dump_yaml
from .durable_file import write_durably

FILE_NAME = "job.yaml"
MATTERS = (
    "task",
    "space",
    "objectives",
    "constraints",
    "compress",
    "target",
    "search.seed",
    "search.sampler",
    "search.screen",
)


def plain(job: Mapping[str, Any]) -> dict[str, Any]:
    """The job as it reads back from JSON (tuples become lists, keys strings)."""
    out: dict[str, Any] = json.loads(json.dumps(job))
    return out


def differing_keys(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Those of ``MATTERS`` in which two plain jobs differ (budgets and workers do not count)."""
    return [key for key in MATTERS if _dig(old, key) != _dig(new, key)]


def write_job(folder: Path, job: Mapping[str, Any]) -> None:
    """Write ``folder/job.yaml`` in one step, so that a job file's reader takes it."""
    text = dump_yaml(job)

    def fill(path: Path) -> None:
        path.write_text(text, encoding="utf-8")

    write_durably(folder / FILE_NAME, fill)


def _dig(job: Mapping[str, Any], key: str) -> Any:
    value: Any = job
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value
