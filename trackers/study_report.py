"""A report to hand to a colleague: one HTML file with all that the study knows, and no secrets."""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping
from html import escape
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import yaml

from ..objectives.evaluation import Evaluation
from ..objectives.point import Point
from ..objectives.wording import legible, points, summary
from .study import Study
from .study_page import study_page

_SECRET = re.compile(r"token|password|secret|credential|api_?key", re.IGNORECASE)
_PATH = re.compile(r"(?<![\w.:/…])(?:~|[A-Za-z]:)?(?:[/\\][\w.+@ -]+)+")
_USER = re.compile(r"//[^/@\s]*@")
_PACKAGES = (
    "paretune",
    "torch",
    "onnx",
    "onnxruntime",
    "optuna",
    "openvino",
    "executorch",
    "tensorrt",
)
_ROWS = 400


def study_report(study: Study, chosen: Point | None = None) -> str:
    """The report as text: the front's page, and below it the chosen plan, what it was measured on,
    every trial, and the job file.

    chosen: a point to print the plan of, layer by layer (default: the knee). Absolute paths are
    cut to their last part, passwords and tokens are left out.
    """
    front = study.front()
    if chosen is None and len(front):
        chosen = front.knee()
    sections = [_chosen(study, chosen) if chosen else "", _conditions(study), _trials(study)]
    job = yaml.safe_dump(without_secrets(study.job), sort_keys=False, allow_unicode=True)
    sections.append(_folded("The job", f"<pre>{escape(job)}</pre>"))
    return study_page(study, profile=True, more="\n".join(sections))


def without_secrets(value: Any) -> Any:
    """Plain JSON without passwords and tokens; absolute paths are cut to ``…/`` and the last part.

    >>> without_secrets({"weights": "/home/me/resnet.safetensors", "token": "x"})
    {'weights': '…/resnet.safetensors', 'token': '(left out)'}
    """
    if isinstance(value, Mapping):
        return {
            key: "(left out)" if _SECRET.search(str(key)) and inner else without_secrets(inner)
            for key, inner in value.items()
            if key != "folder"
        }
    if isinstance(value, list | tuple):
        return [without_secrets(inner) for inner in value]
    return plain_text(value) if isinstance(value, str) else value


def plain_text(text: str) -> str:
    """A line without absolute paths, and without users and passwords in addresses."""
    text = _USER.sub("//", text)
    text = re.sub(r"^(\w+):/{3,}.*/", r"\1:///…/", text)  # sqlite:////home/me/mlflow.db
    return _PATH.sub(lambda found: "…/" + re.split(r"[/\\]", found[0])[-1], text)


def _chosen(study: Study, point: Point) -> str:
    values = ", ".join(
        f"{name} {legible(name, point.values[name])}"
        for name in ("accuracy", "fidelity", "size_bytes", "latency_ms", "macs", "params")
        if name in point.values
    )
    artifact = point.evaluation.artifact
    file = f"<p>File: sha256 <code>{artifact.sha256}</code></p>" if artifact else ""
    plan = f"<pre>{escape(str(point.plan))}</pre>"
    title = f"The plan of trial {point.number}: {point.summary}"
    return _folded(title, f"<p>{values}</p>{file}{plan}")


def _conditions(study: Study) -> str:
    """What it was measured on, as the evaluations recorded it."""
    base = study.baseline_at("confirm") or study.baseline
    rows: list[tuple[str, str]] = []
    if base is not None:
        for key, value in base.notes.get("environment", {}).items():
            if isinstance(value, Mapping):
                value = ", ".join(
                    f"{k} {' '.join(v) if isinstance(v, list) else v}" for k, v in value.items()
                )
            rows.append((key, str(value)))
        for key, value in base.notes.get("timing", {}).items():
            rows.append((f"timing: {key}", str(value)))
        if "examples" in base.notes:
            rows.append(("examples scored", str(base.notes["examples"])))
    installed = ", ".join(f"{name} {found}" for name in _PACKAGES if (found := _version(name)))
    rows.append(("report written with", f"{installed}, Python {platform.python_version()}"))
    cells = "".join(
        f"<tr><td>{escape(key)}</td><td class=plan>{escape(plain_text(value))}</td></tr>"
        for key, value in rows
    )
    return f"<section><h2>Measured on</h2><div class=scroll><table>{cells}</table></div></section>"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _trials(study: Study) -> str:
    """Every trial in the order of its number, failed ones with their cause."""
    base = study.baseline
    rows = study.rows("measure")
    names = [o.name for o in study.objectives]
    head = "".join(f"<th class=n>{escape(n)}</th>" for n in ("trial", *names, "points", "s"))
    body = [_trial(row.number, row.evaluation, names, base) for row in rows[:_ROWS]]
    failed = sum(row.evaluation.failed for row in rows)
    left = f"<p class=note>{len(rows) - _ROWS} more are left out.</p>" * (len(rows) > _ROWS)
    return _folded(
        f"All {len(rows)} trials, {failed} failed",
        f"<div class=scroll><table><tr>{head}<th>what was changed, or why it failed</th></tr>"
        f"{''.join(body)}</table></div>{left}",
    )


def _trial(number: int, e: Evaluation, names: list[str], base: Evaluation | None) -> str:
    cells = [str(number), *(legible(n, e.values.get(n)) for n in names)]
    drop = e.values.get("accuracy_drop")
    cells += ["" if drop is None else points(drop), f"{sum(e.seconds.values()):.1f}"]
    inner = "".join(f"<td class=n>{escape(cell)}</td>" for cell in cells)
    words = plain_text(e.cause) if e.cause else summary(e.plan, base.plan if base else None)
    return f"<tr>{inner}<td class=plan>{escape(words)}</td></tr>"


def _folded(title: str, inner: str) -> str:
    return f"<section><details><summary>{escape(title)}</summary>{inner}</details></section>"
