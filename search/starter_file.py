"""``paretune init``: a commented job file, checked by loading it."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.markup import escape

from ..errors import InputError
from ..objectives.wording import legible
from ..targets.catalogue import make_target
from ..tasks.job import load_job
from ..tasks.load import load_task
from ..tasks.starter import Found, look, relative
from .job_schema import MODELINE, write_schema

SCHEMA = ".paretune/job.schema.json"
_SCORED = 500


def start_job(
    model: str,
    data: str,
    weights: str | None,
    target: str,
    out: Path,
    model_args: Mapping[str, Any],
    force: bool = False,
) -> None:
    """Write a job file, load everything it names, and say what was found and what comes next.

    Relative paths are those of the working directory. Raises InputError naming the option that is
    wrong; when the job itself cannot be loaded the file stays, to be corrected.
    """
    if out.exists() and not force:
        raise InputError(str(out), "is there already", "name another --out, or give --force")
    make_target(target, where="--target")
    console, here = Console(highlight=False, soft_wrap=True), Path.cwd()
    found = look(model, data, weights, model_args, here)
    for line in found.lines:
        console.print(line, markup=False)
    folder = out.absolute().parent
    write_schema(folder / SCHEMA)
    text = job_text(model, weights, target, model_args, found, here, folder)
    out.write_text(text, encoding="utf-8")
    task = load_task(load_job(out))
    value = task.score.measure(task.network_predict, _some(task.search)).values[task.score.name]
    console.print(
        f"score     {task.score.name} {legible(task.score.name, value)} on "
        f"{min(_SCORED, len(task.search))} of the search's examples, in torch",
    )
    warnings = list(found.warnings)
    if weights is None:
        warnings.append(f"no --weights: the network is as {escape(model)} makes it")
    for warning in warnings:
        console.print(f"[yellow]look at this:[/] {warning}")
    console.print(f"\nWrote {out}, which loads. Next:")
    console.print(f"  paretune discover {out}     what may change, layer by layer")
    console.print(f"  paretune search {out}       try plans, and see the front")


def _some(split: Any) -> Any:
    import numpy as np

    return split if len(split) <= _SCORED else split.part(split.name, np.arange(_SCORED))


def job_text(
    model: str,
    weights: str | None,
    target: str,
    model_args: Mapping[str, Any],
    found: Found,
    here: Path,
    folder: Path,
) -> str:
    """The job file's text. here: what the given paths start from; folder: where it will lie."""
    lines = [
        MODELINE.format(f"./{SCHEMA}"),
        "# What `paretune search` does, and on what. Every key that is left out has a default;",
        "# editors that read the schema above explain and complete all of them.",
        f"name: {model.rpartition(':')[2]}-{_data_name(found)}",
        "task:",
        f"  model: {_spec(model, here, folder)}",
        f"  model_args: {_flow(dict(model_args))}" if model_args else "  # model_args: {width: 16}",
    ]
    if weights is None:
        lines.append("  # weights: weights.safetensors     # or a .pt file with a state_dict")
    else:
        published = weights.startswith("torchvision:")
        lines.append(f"  weights: {weights if published else _path(weights, here, folder)}")
    lines.append("  data:")
    for key, value in found.data.items():
        lines += [f"    # {line}" for line in textwrap.wrap(found.notes.get(key, ""), 92)]
        if key == "kind":
            shown = _spec(str(value), here, folder)
        else:
            shown = relative(value, folder) if isinstance(value, Path) else _flow(value)
        lines.append(f"    {key}: {shown}")
    if found.score != "accuracy":
        lines.append(f"  score: {found.score}")
    rest = _REST.format(
        score=found.score,
        constraint="fidelity >= 0.9" if found.score == "fidelity" else "accuracy_drop <= 0.1",
        target=target,
        workers=_workers(),
    )
    return "\n".join(lines) + "\n" + rest


_REST = """\
space:
  prune: true                      # cut whole channels
  bits: [8, 32]                    # bits of weights; 4 makes files smaller, not faster
  rank: true                       # factorise layers
  # freeze: [head]                 # modules to leave alone (default: the classifier)
objectives: [{score}, size_bytes, latency_ms]   # traded against each other
constraints: ["{constraint}"]   # what a point must meet to be on the front
target:
  name: {target}
  batch: 1                         # examples in a timed call
  threads: 1
search:
  trials: 60                       # plans that are measured; each takes seconds
  workers: {workers}                       # processes that measure
  seed: 0
# recover: {{method: distil, epochs: 3, top: 3}}  # train the best points afterwards
# tracker: {{mlflow: {{}}}}          # log to MLFLOW_TRACKING_URI, else to ./mlflow.db
"""


def _workers() -> int:
    return max(1, min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1))


def _data_name(found: Found) -> str:
    train = found.data.get("train")
    if not isinstance(train, Path):
        return str(found.data["kind"]).rpartition(":")[2]
    folder = train.parent if found.data.get("evaluate") and train.name == "train" else train
    return folder.resolve().name


def _spec(spec: str, here: Path, folder: Path) -> str:
    file, colon, name = spec.rpartition(":")
    if not colon or not file.endswith(".py"):
        return _flow(spec)
    return f"{_path(file, here, folder)}:{name}"


def _path(text: str, here: Path, folder: Path) -> str:
    return relative(here / text, folder)


def _flow(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000).strip()
    return text.removesuffix("...").strip()
