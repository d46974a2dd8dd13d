"""One point in several file formats: each for its runtime, measured there, in the same bundle."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import InputError, ParetuneError, nearest
from ..objectives.evaluate import Evaluator
from ..objectives.evaluation import Evaluation
from ..objectives.further import seen_from
from ..objectives.point import Point
from ..objectives.problem import Problem
from ..targets.target import Target
from ..tasks.job import load_job
from .source import Source

FORMATS = {
    "onnx": "onnxruntime-cpu",
    "openvino": "openvino-cpu",
    "executorch": "executorch-xnnpack",
    "litert": "litert",
}
"""What ``--format`` takes -> the target that writes and runs it."""

_LOAD = {
    "onnxruntime": (
        "import numpy, onnxruntime",
        'session = onnxruntime.InferenceSession("{file}")',
        'outputs = session.run(None, {{"input": batch}})[0]  # batch: numpy float32',
    ),
    "openvino": (
        "import zipfile, openvino",
        'packed = zipfile.ZipFile("{file}")',
        "core = openvino.Core()",
        'model = core.read_model(packed.read("model.xml"), packed.read("model.bin"))',
        'compiled = core.compile_model(model, "CPU", {{"INFERENCE_PRECISION_HINT": "f32"}})',
        "outputs = compiled(batch)[0]  # batch: numpy float32",
    ),
    "executorch": (
        "import torch",
        "from executorch.runtime import Runtime",
        'program = Runtime.get().load_program("{file}")',
        'method = program.load_method("forward")',
        "outputs = method.execute([torch.from_numpy(batch)])[0].numpy()  # the batch of the export",
    ),
    "litert": (
        "from ai_edge_litert.interpreter import Interpreter",
        'interpreter = Interpreter(model_path="{file}")',
        "interpreter.allocate_tensors()",
        "(given,), (gives,) = interpreter.get_input_details(), interpreter.get_output_details()",
        "# tensors of int8: value = (integer - zero) * scale, with scale, zero = X['quantization']",
        'interpreter.set_tensor(given["index"], batch)  # the batch of the export',
        "interpreter.invoke()",
        'outputs = interpreter.get_tensor(gives["index"])',
    ),
}


def load_lines(target: str, file: str) -> list[str]:
    """Python that runs a delivered file with its runtime alone."""
    lines = _LOAD.get(target.partition("-")[0], _LOAD["onnxruntime"])
    return [line.format(file=file) for line in lines]


@dataclass(frozen=True)
class Delivered:
    """One file of a bundle beside the model. ``entry``: what the manifest says about it."""

    path: Path
    entry: Mapping[str, Any]


def check_formats(formats: Sequence[str]) -> None:
    """Raises InputError on an unknown format, with the nearest one."""
    for name in formats:
        if name not in FORMATS:
            raise InputError("--format", f"unknown format {name!r}", nearest(name, FORMATS))


def deliver(source: Source, point: Point, format: str, scratch: Path) -> Delivered:
    """The point's file for one runtime, run here on the data it was (or is now) measured on.

    A target of the search: the very file that was measured. Another one: the plan is carried out
    and exported for it now, and scored and timed beside the uncompressed network on it.
    Raises InputError when the score is not the recorded one or the runtime is missing.
    """
    job = load_job(source.job)
    name, folder = FORMATS[format], scratch / format
    (folder / "artifacts").mkdir(parents=True)
    targets = [str(job.target.name), *job.target.also]
    recorded = point.evaluation
    searched = name in targets
    alone = job.to_json()
    alone["target"] |= {"name": name, "also": [], "remote": None}
    if not searched:
        alone["target"]["options"] = {}
    score = "fidelity" if job.task.score == "fidelity" else "accuracy"
    alone |= {"objectives": [score, "size_bytes", "latency_ms"], "constraints": []}
    problem = Problem.from_job(load_job(alone))
    if searched:
        evaluation = seen_from(recorded, name) if job.target.also else recorded
        path = source.fetch(evaluation.artifact, folder) if evaluation.artifact else None
        if path is not None:
            examples = _checked(problem, evaluation, path)
            base = source.baseline.get(recorded.rung)
            beside = None if base is None else seen_from(base, name) if job.target.also else base
            return _entry(format, problem.target, evaluation, beside, path, None, examples)
    evaluator = Evaluator.for_problem(problem, folder)
    baseline = evaluator.evaluate(problem.space.identity, recorded.rung)
    evaluation = evaluator.evaluate(recorded.plan, recorded.rung, baseline)
    for found in (baseline, evaluation):
        if found.failed:
            raise ParetuneError(f"--format {format}: the plan cannot be exported: {found.cause}")
    if evaluation.artifact is None:
        raise ParetuneError(f"--format {format}: the plan gave no file")
    path = folder / "artifacts" / evaluation.artifact.file_name
    examples = _checked(problem, evaluation, path)
    why = "exported for this runtime at the delivery and measured then"
    return _entry(format, problem.target, evaluation, baseline, path, why, examples)


def _checked(problem: Problem, evaluation: Evaluation, path: Path) -> float:
    """The score found by running the file now, which must be the recorded one."""
    runtime, task = problem.target.load(path), problem.task

    def predict(inputs: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(runtime.predict(inputs.numpy())))

    split = task.evaluate if evaluation.rung == "confirm" else task.search
    result = task.score.measure(predict, split)
    name = task.score.name
    expected, found = evaluation.values[name], result.values[name]
    if abs(expected - found) > 1.5 / result.count:
        raise InputError(
            path.name,
            f"its {name} is {found:.4f} where {expected:.4f} was recorded",
            "the data, the weights or the runtime changed since; search again",
        )
    return found


def _entry(
    format: str,
    target: Target,
    evaluation: Evaluation,
    baseline: Evaluation | None,
    path: Path,
    remeasured: str | None,
    score: float,
) -> Delivered:
    artifact = evaluation.artifact
    if artifact is None:
        raise ParetuneError(f"--format {format}: the point has no file")
    file = f"model_{format}.{artifact.format}"
    entry = {
        "format": format,
        "target": target.name,
        "file": file,
        "sha256": artifact.sha256,
        "size_bytes": artifact.size_bytes,
        "rung": evaluation.rung,
        "values": dict(evaluation.values),
        "errors": dict(evaluation.errors),
        "baseline": dict(baseline.values) if baseline else {},
        "environment": dict(evaluation.notes.get("environment", {})),
        "remeasured": remeasured,
        "checked_score": score,
        "load": load_lines(target.name, file),
    }
    kept = path.parent / file
    shutil.copyfile(path, kept)
    return Delivered(kept, entry)
