"""What of a job travels to a cluster: the job file, the code it names and its weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..tasks.job import Job, load_job
from ..tasks.yaml_source import read_yaml

JOB = "job.yaml"
MOST_BYTES = 400 << 20  # Ray takes packages of 500 MB
_CODE = ("task.model", "task.score", "task.loss", "task.divergence", "task.data.kind")
_PATHS = (
    *("task.data.train", "task.data.search", "task.data.evaluate", "task.data.root"),
    *("target.remote.token_file", "target.remote.ca"),
)


def pack(path: Path, folder: Path) -> dict[str, str]:
    """Put into ``folder`` what travels of the job file at ``path``.

    Code (``file.py:callable``) travels with all Python files beside it, and weights do, where the
    job names them by a path within its own folder. Everything else must be seen by the cluster.
    Returns those paths, absolute: the job's key -> path. Raises InputError for code elsewhere, and
    for an MLflow store that is a file of this machine.
    """
    job, (raw, _) = load_job(path), read_yaml(path)
    home, stays = job.folder, dict[str, str]()
    shutil.copyfile(path, folder / JOB)
    for key in (*_CODE, "recover.augment"):
        file, colon, _ = str(_dig(raw, key) or "").rpartition(":")
        if not colon or not file.endswith(".py"):
            continue
        inside = _inside(file, home)
        if inside is None:
            stays[key] = file
            continue
        _copy_code(home, inside, folder, job.where(key))
    weights = _dig(raw, "task.weights")
    if isinstance(weights, str) and not weights.startswith("torchvision:"):
        inside = _inside(weights, home)
        if inside is not None and (home / inside).is_file():
            _copy(home / inside, folder / inside)
        else:
            stays["task.weights"] = weights
    for key in _PATHS:
        named = _dig(raw, key)
        if isinstance(named, str):
            stays[key] = named
    _check(job, stays, raw, folder)
    return {key: _resolved(job, key, named) for key, named in stays.items()}


def pack_code(job: Job, folder: Path) -> dict[str, str]:
    """Put the code that ``job`` names into ``folder``: the folder it comes from -> its place."""
    places = {job.folder: None}
    data = job.to_json()
    for key in (*_CODE, "recover.augment"):
        file, colon, _ = str(_dig(data, key) or "").rpartition(":")
        if colon and file.endswith(".py"):
            places.setdefault(Path(file).parent)
    found = {}
    for number, place in enumerate(places):
        (folder / f"code{number}").mkdir()
        for path in _modules(place):
            _copy(path, folder / f"code{number}" / path.relative_to(place))
        found[str(place)] = f"code{number}"
    return found


def unpacked(job: Mapping[str, Any], code: Mapping[str, str], root: Path) -> dict[str, Any]:
    """A resolved job as plain JSON, its code looked for below ``root``. code: as packed."""

    def moved(text: Any) -> Any:
        for place in sorted(code, key=len, reverse=True):
            if isinstance(text, str) and (text == place or text.startswith(f"{place}/")):
                return str(root / code[place]) + text[len(place) :]
        return text

    out: dict[str, Any] = json.loads(json.dumps(job))
    for key in ("folder", *_CODE, "recover.augment"):
        parent, _, name = key.rpartition(".")
        section = _dig(out, parent) if parent else out
        if isinstance(section, dict) and name in section:
            section[name] = moved(section[name])
    return out


def _check(job: Job, stays: dict[str, str], raw: Any, folder: Path) -> None:
    for key, named in stays.items():
        if not named.startswith(("/", "${")):
            raise InputError(
                job.where(key),
                f"{named!r} does not travel with the job",
                "name an absolute path that the cluster's nodes see",
            )
    store = job.tracker.mlflow.uri if job.tracker and job.tracker.mlflow else ""
    if store and not store.startswith(("http://", "https://", "databricks", "postgresql")):
        raise InputError(
            job.where("tracker.mlflow.uri"),
            f"{store!r} is a file of one machine",
            "name the MLflow server that the cluster and you see, e.g. https://mlflow.lan",
        )
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if size > MOST_BYTES:
        raise InputError(
            job.where("task.weights"),
            f"{size:,} bytes would travel with the job, {MOST_BYTES:,} are allowed",
            "keep the weights where the cluster's nodes see them, and name that path",
        )


def _copy_code(home: Path, inside: Path, folder: Path, where: str) -> None:
    """A code file, what lies beside it, and the packages there."""
    if not (home / inside).is_file():
        raise InputError(where, f"no such file {str(home / inside)!r}", "correct the path")
    for path in _modules((home / inside).parent):
        _copy(path, folder / path.relative_to(home))


def _modules(place: Path) -> Iterator[Path]:
    yield from sorted(place.glob("*.py"))
    for package in sorted(p.parent for p in place.glob("*/__init__.py")):
        yield from _modules(package)


def _copy(source: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, to)


def _inside(named: str, home: Path) -> Path | None:
    """A path relative to the job's folder, if it stays within it."""
    path = Path(named)
    if path.is_absolute() or named.startswith("${"):
        return None
    return path if (home / path).resolve().is_relative_to(home.resolve()) else None


def _resolved(job: Job, key: str, named: str) -> str:
    """The absolute path as the job resolves it."""
    text = str(_dig(job.to_json(), key) or named)
    return text.rpartition(":")[0] if text.partition(":")[0].endswith(".py") else text


def _dig(value: Any, key: str) -> Any:
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value
