"""The job that a study was started with: its copy in the folder, and what makes it another job."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..tasks.yaml_source import dump_yaml
from .durable_file import write_durably

if TYPE_CHECKING:
    from .study import Study

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


def check_task(study: Study, fingerprint: str) -> None:
    """Refuse to go on with other weights or data than the study began with.

    fingerprint: of the task as it is loaded now, which a study keeps that has measured nothing yet.
    """
    if study.baseline is not None and study.get("task", fingerprint) != fingerprint:
        raise InputError(
            str(study.folder),
            "the weights or the data are no longer those that the search began with",
            "name another folder, or put the old ones back",
        )
    study.put("task", fingerprint)


def _dig(job: Mapping[str, Any], key: str) -> Any:
    value: Any = job
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value
