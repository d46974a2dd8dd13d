"""What a bundle says about itself, for machines (manifest.json) and for people (the model card)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from .. import __version__
from ..objectives.objective import QUANTITIES
from ..objectives.point import Point
from ..objectives.wording import legible, summary
from .bundle import VERSION
from .check import Checked
from .formats import load_lines
from .source import Source

_SHOWN = ("accuracy", "fidelity", "size_bytes", "latency_ratio")


def make_manifest(source: Source, point: Point, checked: Checked) -> dict[str, Any]:
    """The manifest: sha256, plan, measured values, baseline, versions, processor, how to load.

    Plain JSON. ``values`` and ``errors`` (one standard error) are those of ``rung``; ``relative``
    to ``baseline``, the uncompressed network under the same conditions.
    """
    evaluation = checked.evaluation
    artifact = evaluation.artifact
    if artifact is None:
        raise ValueError("an evaluation without a file has no manifest")
    baseline = source.baseline.get(evaluation.rung)
    file = f"model.{artifact.format}"
    return {
        "version": VERSION,
        "paretune": __version__,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "study": {"name": source.name, "id": source.study_id, "trial": point.number},
        "model": {
            "file": file,
            "sha256": artifact.sha256,
            "size_bytes": artifact.size_bytes,
            "format": artifact.format,
        },
        "plan": evaluation.plan.to_json(),
        "plan_fingerprint": evaluation.plan.fingerprint,
        "summary": summary(evaluation.plan, baseline.plan if baseline else None),
        "rung": evaluation.rung,
        "examples": evaluation.notes.get("examples"),
        "values": dict(evaluation.values),
        "errors": dict(evaluation.errors),
        "baseline": dict(baseline.values) if baseline else {},
        "environment": dict(evaluation.notes.get("environment", {})),
        "remeasured": checked.remeasured,
        "checked_score": checked.score,
        "task": {k: source.job["task"].get(k) for k in ("model", "model_args", "score")},
        "input": _input(source.job, checked),
        "load": load_lines(str(source.job["target"].get("name") or ""), file),
    }


def _input(job: Mapping[str, Any], checked: Checked) -> dict[str, Any]:
    data = job["task"]["data"]
    shape: Sequence[int] | None = None
    if checked.examples is not None:
        shape = ["batch", *checked.examples[0].shape[1:]]  # type: ignore[list-item]
    return {
        "name": "input",
        "dtype": "float32",
        "shape": shape,
        "pixels": "value / 255, then minus mean, divided by std, per channel",
        "mean": data.get("mean"),
        "std": data.get("std"),
    }


def _runtime(environment: Mapping[str, Any]) -> str:
    known = [k for k in ("onnxruntime", "openvino", "executorch") if k in environment]
    return ", ".join(f"{k} {environment[k]}" for k in known) or "an unknown runtime"


def _further(formats: Sequence[Mapping[str, Any]]) -> list[str]:
    """The bundle's files for other runtimes: their numbers, and how to load each."""
    lines: list[str] = []
    for one in formats:
        shown = [f"{n} {legible(n, one['values'].get(n))}" for n in _SHOWN if n in one["values"]]
        lines += ["", f"`{one['file']}` on {_runtime(one['environment'])}: {', '.join(shown)}", ""]
        lines += ["```python", *one["load"], "```"]
    return lines


def model_card(manifest: Mapping[str, Any]) -> str:
    """The model card as Markdown: what was compressed how, and measured on what."""
    values, errors, base = manifest["values"], manifest["errors"], manifest["baseline"]
    rows = []
    for name in QUANTITIES:
        if name not in values:
            continue
        shown = legible(name, values[name])
        if name in errors:
            shown += f" ± {legible(name, errors[name])}"
        rows.append(f"| {name} | {shown} | {legible(name, base.get(name))} |")
    cpu = manifest["environment"].get("cpu", {})
    rung = {"confirm": "the evaluate split, which the search never saw"}.get(
        manifest["rung"], "the search split, which chose this point (optimistic)"
    )
    lines = [
        f"# {manifest['study']['name']}, trial {manifest['study']['trial']}",
        "",
        f"Compressed by paretune {manifest['paretune']}: {manifest['summary']}.",
        "",
        f"- Network: `{manifest['task']['model']}` {manifest['task']['model_args'] or ''}",
        f"- File: `{manifest['model']['file']}`, {manifest['model']['size_bytes']:,} bytes, "
        f"sha256 `{manifest['model']['sha256']}`",
        f"- Scored on {manifest['examples']} examples of {rung}",
        f"- Timed on {cpu.get('model', 'an unknown processor')}, "
        f"{_runtime(manifest['environment'])}, "
        f"{manifest['environment'].get('threads', '?')} thread(s), beside the baseline",
        *([f"- {manifest['remeasured']}"] if manifest["remeasured"] else []),
        "",
        "| value | this model (± one standard error) | uncompressed |",
        "|---|---|---|",
        *rows,
        "",
        "## How to load",
        "",
        "```python",
        *manifest["load"],
        "```",
        *_further(manifest.get("formats", ())),
        "",
        "## To be filled in",
        "",
        "- Licence of the weights and of the data:",
        "- Intended use, and what it must not be used for:",
        "",
    ]
    return "\n".join(lines)
