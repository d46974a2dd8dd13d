"""The job file: what to compress, what may change, what counts and how long to search."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import PrivateAttr, ValidationError

from ..errors import InputError, nearest
from .job_errors import explain
from .sections import JobSections, TargetSection
from .yaml_source import MOST_DEPTH, Lines, dump_yaml, read_yaml

DEFAULT_TARGET = "onnxruntime-cpu"
_VARIABLE = re.compile(r"\$\{([^}]*)\}")
_OPTIONS = ("target", "batch", "threads")  # of an objective
_Keys = tuple[str | int, ...]
_Options = Mapping[str, str] | None
_STEP = re.compile(r"\[(\d+)\]|([^.\[\]]+)")


class Job(JobSections):
    """A checked job: every section with its defaults, every path absolute. Frozen.

    ``job.task.model``, ``job.search.trials`` ... as in :mod:`.sections`; ``job.folder`` is the
    folder that relative paths started from.
    """

    _source: str = PrivateAttr("job")
    _lines: Lines | None = PrivateAttr(None)
    _written: tuple[int, ...] = PrivateAttr(())  # of each objective: which entry of the file it is
    _options: _Options = PrivateAttr(None)  # what gave the values that are not the file's

    def where(self, section: str) -> str:
        """Where a value stands, for messages: ``"job.yaml:12: search.sampler"``, or the option that
        gave it, ``"--sampler"``."""
        path = _path(section)
        if path[:1] == ("objectives",) and path[1:2] and path[1] in range(len(self._written)):
            path = ("objectives", self._written[int(path[1])], *path[2:])
        return _where(self._source, self._lines, path, self._options)

    def replaced(self, given: Mapping[str, tuple[str, Any]]) -> Job:
        """The same job with other values for some keys of its sections, checked as the file is.

        given: ``{"search.sampler": ("--sampler", "tpe")}``: the key, the option that gives the
        value (errors blame it), the value. Raises InputError.
        """
        if not given:
            return self
        data = self.to_json()
        for key, (_, value) in given.items():
            section, _, name = key.partition(".")
            data[section] = {**(data[section] or {}), name: value}
        options = {**(self._options or {}), **{key: option for key, (option, _) in given.items()}}
        job = _validated(data, self._source, self._lines, options)
        job._written = self._written
        return job

    def to_json(self) -> dict[str, Any]:
        """The resolved job as plain JSON; :func:`load_job` reads it back equal."""
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        """The resolved job as a file that :func:`load_job` reads back equal."""
        return dump_yaml(self.to_json())

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that two jobs share exactly if they say the same."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Job) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash(self.fingerprint)


def load_job(source: Path | str | Mapping[str, Any] | Job) -> Job:
    """Read and check a job: a YAML file, or the same as a mapping (e.g. ``Job.to_json()``).

    Relative paths start from the file's folder (for a mapping: its ``folder`` key, else the working
    directory); ``${NAME}`` in paths and arguments is replaced from the environment.

    Raises InputError: ``job.yaml:12: search.trails: unknown key 'trails'; did you mean 'trials'?``
    """
    if isinstance(source, Job):
        return source
    name, lines, base = "job", None, Path.cwd()
    if isinstance(source, Mapping):
        data = _plain(source, "job", None)
    else:
        name, base = str(source), Path(source).absolute().parent
        data, lines = read_yaml(source)
        data = _plain(data, name, lines)
    job = _validated(data, name, lines)
    folder = _absolute(str(job.folder), base, job.where("folder"))
    written = [i for i, item in enumerate(job.objectives) for _ in _one_target_each(item)]
    resolved = _settle_target(job, _resolve(job, Path(folder)))
    settled = _validated(resolved, name, lines)
    settled._written = tuple(written)
    return settled


def job_schema() -> dict[str, Any]:
    """The JSON Schema of job files, for editors."""
    return JobSections.model_json_schema()


def _validated(
    data: dict[str, Any], name: str, lines: Lines | None, options: _Options = None
) -> Job:
    try:
        job = Job.model_validate(data)
    except ValidationError as error:
        raise explain(error, data, Job, lambda path: _where(name, lines, path, options)) from None
    job._source, job._lines, job._options = name, lines, options
    return job


def _plain(value: Any, name: str, lines: Lines | None, path: _Keys = ()) -> Any:
    """A copy made of plain finite JSON values; anything else is refused with its place."""
    if len(path) > MOST_DEPTH:
        raise InputError(_where(name, lines, path[:4]), f"nesting deeper than {MOST_DEPTH}", "")
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise InputError(_where(name, lines, path), f"key {key!r:.80} is not text", "")
        return {str(k): _plain(v, name, lines, (*path, str(k))) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v, name, lines, (*path, i)) for i, v in enumerate(value)]
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, int) and value.bit_length() > 64:
        raise InputError(_where(name, lines, path), "a whole number over 64 bits", "shorten it")
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(
            _where(name, lines, path), f"expected a finite number, got {value!r}", "correct it"
        )
    if value is None or isinstance(value, bool | int | float | str):
        return value
    kind = type(value).__name__
    raise InputError(
        _where(name, lines, path), f"a {kind} is no plain value", "use text or numbers"
    )


def _path(section: str) -> _Keys:
    """``"objectives[1].latency_ms"`` -> ``("objectives", 1, "latency_ms")``."""
    return tuple(int(i) if i else key for i, key in _STEP.findall(section))


def _where(name: str, lines: Lines | None, path: _Keys, options: _Options = None) -> str:
    if option := (options or {}).get(".".join(str(part) for part in path[:2])):
        return option
    spot = name
    if lines is not None and path and path[:1] in lines.numbers:
        spot = f"{name}:{lines(path)}"
    dotted = ""
    for part in path:
        key = part if isinstance(part, int) or part.isprintable() else repr(part)
        dotted += f"[{key}]" if isinstance(key, int) else f".{key[:60]}"
    return f"{spot}: {dotted.lstrip('.')}" if dotted else spot


def _resolve(job: Job, folder: Path) -> dict[str, Any]:
    """The job as plain JSON with variables replaced and every path absolute."""
    data = job.to_json()
    data["folder"] = str(folder)
    task, source = data["task"], data["task"]["data"]
    if task["weights"] and not task["weights"].startswith("torchvision:"):
        task["weights"] = _absolute(task["weights"], folder, job.where("task.weights"))
    for key in ("train", "search", "evaluate", "root"):
        if isinstance(source[key], str):
            source[key] = _absolute(source[key], folder, job.where(f"task.data.{key}"))
    for key in ("model", "score", "loss", "divergence"):
        task[key] = _code(task[key], folder, job.where(f"task.{key}"))
    source["kind"] = _code(source["kind"], folder, job.where("task.data.kind"))
    task["model_args"] = _expanded(task["model_args"], job.where("task.model_args"))
    source["args"] = _expanded(source["args"], job.where("task.data.args"))
    if data["recover"]:
        spot = job.where("recover.augment")
        data["recover"]["augment"] = _code(data["recover"]["augment"], folder, spot)
    remote = data["target"]["remote"] or {}
    for key in ("token_file", "ca"):
        if remote.get(key):
            remote[key] = _absolute(remote[key], folder, job.where(f"target.remote.{key}"))
    mlflow = (data["tracker"] or {}).get("mlflow")
    if mlflow:
        spot = job.where("tracker.mlflow.uri")
        mlflow["uri"] = _expanded(mlflow["uri"], spot)
        start, _, path = mlflow["uri"].partition("sqlite:///")
        if start == "" and path and not path.startswith(("/", ":")):
            mlflow["uri"] = "sqlite:///" + _absolute(path, folder, spot)
        named = mlflow["experiment"] or os.environ.get("MLFLOW_EXPERIMENT_NAME")
        mlflow["experiment"] = named or job.name
    return data


def _code(spec: str | None, folder: Path, where: str) -> str | None:
    """``file.py:callable`` with the file's absolute path; other specs as they are."""
    if spec is None:
        return None
    file, colon, name = spec.rpartition(":")
    if not colon or not file.endswith(".py"):
        return spec
    return f"{_absolute(file, folder, where)}:{name}"


def _absolute(text: str, folder: Path, where: str) -> str:
    text = _expanded(text, where)
    if any(ord(c) < 32 or ord(c) == 127 for c in text):
        raise InputError(where, f"the path {text!r:.100} has a control character", "remove it")
    if text.startswith("~"):
        raise InputError(where, f"'~' in {text!r:.100} is not expanded", "write ${HOME} instead")
    return os.path.abspath(os.path.join(folder, text))


def _expanded(value: Any, where: str) -> Any:
    """``${NAME}`` replaced from the environment, in text and inside containers."""
    if isinstance(value, dict):
        return {k: _expanded(v, where) for k, v in value.items()}
    if isinstance(value, list):
        return [_expanded(v, where) for v in value]
    if not isinstance(value, str):
        return value

    def known(match: re.Match[str]) -> str:
        found = os.environ.get(match[1]) if match[1] else None
        if not found:
            raise InputError(
                where,
                f"the environment variable {match[1]!r:.80} is not set",
                "set it, or write the path itself",
            )
        return found

    return _VARIABLE.sub(known, value)


def _settle_target(job: Job, data: dict[str, Any]) -> dict[str, Any]:
    """Take the targets, the batch and the threads from the objectives that name them."""
    target = data["target"]
    stated = {k: target[k] for k in job.target.model_fields_set if target[k] is not None}
    named: list[str] = []
    for index, item in enumerate(data["objectives"]):
        name, options = next(iter(item.items())) if isinstance(item, dict) else ("", None)
        for option, value in (options or {}).items():
            spot = job.where(f"objectives[{index}].{name}.{option}")
            if option not in _OPTIONS:
                remedy = nearest(option, _OPTIONS)
                raise InputError(spot, f"unknown key {option!r:.80}", remedy)
            if value is None:
                continue
            if option == "target":
                each = value if isinstance(value, list) and value else [value]
                for one in each:
                    if not isinstance(one, str):
                        raise InputError(spot, f"expected a target's name, got {one!r:.80}", "")
                named += each
                continue
            _check_target(option, value, spot)
            if stated.setdefault(option, value) != value:
                raise InputError(
                    spot,
                    f"{value!r:.80} differs from {stated[option]!r:.80} named before",
                    "a job is measured with one batch size and thread count",
                )
    data["objectives"] = [each for item in data["objectives"] for each in _one_target_each(item)]
    first = stated.get("name") or next(iter(named), DEFAULT_TARGET)
    targets = list(dict.fromkeys([first, *target["also"], *named]))
    data["target"] = target | stated | {"name": targets[0], "also": targets[1:]}
    return data


def _check_target(key: str, value: Any, spot: str) -> None:
    """Refuse, where an objective says it, what the target section would refuse."""
    try:
        TargetSection.model_validate({key: value})
    except ValidationError as error:
        raise explain(error, {key: value}, TargetSection, lambda _: spot) from None


def _one_target_each(item: Any) -> list[Any]:
    """``{latency_ms: {target: [a, b]}}`` as one objective for a and one for b."""
    name, options = next(iter(item.items())) if isinstance(item, dict) and item else ("", None)
    named = options.get("target") if isinstance(options, dict) else None
    if not isinstance(options, dict) or not isinstance(named, list) or not named:
        return [item]
    return [{name: options | {"target": target}} for target in named]
