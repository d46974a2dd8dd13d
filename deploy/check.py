"""The last check before a file goes to production: does it still do what was recorded?"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import InputError, ParetuneError
from ..objectives.evaluate import Evaluator
from ..objectives.evaluation import Artifact, Evaluation
from ..objectives.problem import Problem, parse_target
from ..operators.apply import apply
from ..operators.export import export
from ..tasks.job import load_job
from ..tasks.load import load_task
from ..trackers.artifact_store import sha256_of
from ..trackers.progress import progress_bar
from .source import Source

EXAMPLES = 16
"""Example inputs and outputs that go into a bundle."""


@dataclass(frozen=True)
class Checked:
    """What a check found.

    evaluation: the numbers to write into the manifest. remeasured: they were measured anew, and
    why. examples: inputs (n, ...) and the file's outputs on them, or None when not re-run.
    score: the score found by running the file now, or None. task: its description (counts of
    examples, classes), empty when it was not loaded.
    """

    evaluation: Evaluation
    remeasured: str | None
    examples: tuple[np.ndarray, np.ndarray] | None
    score: float | None
    task: Mapping[str, Any] = field(default_factory=dict)


def check(
    source: Source,
    recorded: Evaluation,
    model: Path | None,
    scratch: Path,
    weights: Path | None = None,
) -> Checked:
    """Run the file on the data it was measured on and compare; measure anew where that is needed.

    model: the exported file, or None when it was not kept: then the plan is carried out again, with
    the trained ``weights`` of a recovered point. On another instruction set or runtime version
    than the recorded one, everything is measured again.
    Raises InputError when the score is not the recorded one, or the task cannot be loaded here.
    """
    job = load_job(source.job)
    environment = recorded.notes.get("environment", {})
    here = parse_target(job).description
    moved = _difference(environment, here)
    if model is None or moved:
        why = f"measured again: {moved}" if moved else "rebuilt and measured: its file was not kept"
        return _measured_again(source, recorded, model, scratch, why, weights)
    task = load_task(job)
    split = task.evaluate if recorded.rung == "confirm" else task.search
    runtime = parse_target(job).load(model)

    done = 0

    def predict(inputs: torch.Tensor) -> torch.Tensor:
        nonlocal done
        outputs = torch.from_numpy(np.ascontiguousarray(runtime.predict(inputs.numpy())))
        done += len(inputs)
        advance(done, max(len(split), done))
        return outputs

    with progress_bar("running the file again", len(split)) as advance:
        result = task.score.measure(predict, split)
    name = task.score.name
    expected, found = recorded.values[name], result.values[name]
    if abs(expected - found) > 1.5 / result.count:
        raise InputError(
            model.name,
            f"its {name} is {found:.4f} where {expected:.4f} was recorded",
            "the data or the weights changed since the search; search again",
        )
    inputs, _ = next(iter(split.batches(EXAMPLES, limit=EXAMPLES)))
    examples = (inputs.numpy(), runtime.predict(inputs.numpy()))
    return Checked(recorded, None, examples, found, task.description)


def _measured_again(
    source: Source,
    recorded: Evaluation,
    model: Path | None,
    scratch: Path,
    why: str,
    weights: Path | None,
) -> Checked:
    problem = Problem.from_job(load_job(source.job))
    evaluator = Evaluator.for_problem(problem, scratch)
    artifact = recorded.artifact if model is not None else None
    if model is not None and artifact is not None:
        shutil.copyfile(model, scratch / "artifacts" / artifact.file_name)
    elif weights is not None and not problem.further:
        artifact = _exported_again(problem, recorded, weights, scratch / "artifacts")
    old = source.baseline.get(recorded.rung)
    kept = old.artifact if old is not None else None
    if kept is not None:
        source.fetch(kept, scratch / "artifacts")
    baseline = evaluator.evaluate(problem.space.identity, recorded.rung, None, kept)
    fresh = evaluator.evaluate(recorded.plan, recorded.rung, baseline, artifact)
    for evaluation in (baseline, fresh):
        if evaluation.failed:
            raise ParetuneError(f"the plan cannot be measured here: {evaluation.cause}")
    name = problem.task.score.name
    error = 3 * max(fresh.errors.get(name, 0.0), recorded.errors.get(name, 0.0))
    if abs(fresh.values[name] - recorded.values[name]) > error + 1e-9:
        raise InputError(
            "pull",
            f"measured again, its {name} is {fresh.values[name]:.4f}, far from the recorded "
            f"{recorded.values[name]:.4f}",
            "the data or the weights changed since the search; search again",
        )
    if fresh.artifact is None:
        raise ParetuneError("the plan gave no file")
    runtime = problem.target.load(scratch / "artifacts" / fresh.artifact.file_name)
    split = problem.task.evaluate if recorded.rung == "confirm" else problem.task.search
    inputs, _ = next(iter(split.batches(EXAMPLES, limit=EXAMPLES)))
    examples = (inputs.numpy(), runtime.predict(inputs.numpy()))
    return Checked(fresh, why, examples, fresh.values[name], problem.task.description)


def _exported_again(
    problem: Problem, recorded: Evaluation, weights: Path, folder: Path
) -> Artifact:
    """The file of a recovered point, from the tensors that were kept of its training."""
    task, options = problem.task, problem.job.compress
    inputs = torch.cat(task.calibration(problem.job.target.calibration))
    network = apply(task.network, recorded.plan, task.example, inputs, options, weights)
    made = export(
        network,
        task.example,
        recorded.plan,
        problem.target,
        folder / "rebuilt",
        inputs,
        options=options,
        checkpoint=weights,
    )
    artifact = Artifact(sha256_of(made), made.stat().st_size, problem.target.format)
    os.replace(made, folder / artifact.file_name)
    return artifact


def _difference(then: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """What of the conditions of a measurement is different here, in words, or None."""
    runtimes = ("onnxruntime", "openvino", "executorch", "litert", "tensorrt")
    for key in (*runtimes, "gpu", "precision", "reduce_range"):
        if key in then and then[key] != now.get(key):
            return f"{key} is {now.get(key)!r} here, it was {then[key]!r}"
    before, here = then.get("cpu", {}), now.get("cpu", {})
    if before.get("flags") != here.get("flags"):
        return f"another instruction set ({here.get('model')}, it was {before.get('model')})"
    return None
