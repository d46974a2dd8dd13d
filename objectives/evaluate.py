"""Trying one plan for real: compress, export, run the exported file, time it, write it all down."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import CandidateError, EnvironmentFault
from ..operators.compress import Compressed, Compressor
from ..spaces.plan import CompressionPlan
from ..spaces.space import SearchSpace
from ..targets.archive import encode
from ..targets.target import Target
from ..tasks.compress_section import CompressSection
from ..tasks.job import load_job
from ..tasks.recover_section import RecoverSection
from ..tasks.task import Examples, Predict, Task
from .counts import count_macs, count_params
from .evaluation import Artifact, Evaluation
from .further import FurtherTarget, measured_on, relate, target_suffix
from .latency import LatencyMeter
from .problem import Problem
from .resources import measure_resources
from .trained import Trained, TrainingPlace


class Evaluator:
    """Evaluates plans of one task on one target; loads what they share once.

    folder: the study folder; exported files go to ``artifacts/<sha256>.<format>`` in it.
    calibration: number of training inputs for activation ranges, importance and BatchNorm.
    batch: examples in a timed batch. timed: measure latency at all. packed: measure the packed
        container of every plan, not only of those that need one. options: how plans are carried
        out. training: how and where plans are trained by :meth:`recover`.
    """

    def __init__(
        self,
        task: Task,
        space: SearchSpace,
        target: Target,
        folder: Path,
        *,
        calibration: int = 256,
        batch: int = 1,
        timed: bool = True,
        packed: bool = False,
        options: CompressSection | None = None,
        further: Sequence[Target] = (),
        resources: Sequence[str] = (),
        training: TrainingPlace | None = None,
    ) -> None:
        self.task, self.space, self.target = task, space, target
        self._training = training or TrainingPlace(RecoverSection(), folder)
        self.folder, self.timed, self.packed = folder, timed, packed
        self._calibration = task.calibration(calibration)
        if not self._calibration:
            raise CandidateError("the training split holds no calibration examples")
        self.compressor = Compressor(
            task.network, task.example, space, torch.cat(self._calibration), options
        )
        inputs, _ = next(iter(task.search.batches(batch, limit=batch)))
        self._inputs, self.resources = inputs.numpy(), tuple(resources)
        self._meter = LatencyMeter(target, folder, self._inputs)
        (folder / "artifacts").mkdir(parents=True, exist_ok=True)
        self._further = tuple(FurtherTarget(self, t, folder, self._inputs) for t in further)

    @classmethod
    def from_job(cls, job: Mapping[str, Any], folder: str) -> Evaluator:
        """An evaluator for a resolved job and its study folder: what a worker starts with."""
        problem = Problem.from_job(load_job(job))
        return cls.for_problem(problem, Path(folder))

    @classmethod
    def for_problem(cls, problem: Problem, folder: Path, threads: int | None = None) -> Evaluator:
        """An evaluator for a job made concrete. threads: for a training on the processor."""
        options = problem.job.target
        return cls(
            problem.task,
            problem.space,
            problem.target,
            folder,
            calibration=options.calibration,
            batch=options.batch,
            timed=problem.timed,
            packed=problem.packed,
            options=problem.job.compress,
            further=problem.further,
            resources=problem.resources,
            training=TrainingPlace.of(problem.job, folder, threads),
        )

    def evaluate(
        self,
        plan: CompressionPlan,
        rung: str = "measure",
        baseline: Evaluation | None = None,
        artifact: Artifact | None = None,
    ) -> Evaluation:
        """The numbers of ``plan``; a failure is an Evaluation with its cause, not an exception
        (but EnvironmentFault, when the disk refuses).

        rung: ``"measure"`` scores on the search split, ``"confirm"`` on the evaluate split.
        baseline: the identity plan's evaluation at the same rung; None: this *is* the baseline.
        artifact: a file that this plan was exported to before, measured again instead of exporting
            anew, so that what is confirmed is what was measured.
        """
        return self._caught(plan, rung, lambda: self._evaluate(plan, rung, baseline, artifact))

    def recover(
        self,
        plan: CompressionPlan,
        number: int,
        baseline: Evaluation | None = None,
        tell: Callable[[dict[str, Any]], None] | None = None,
    ) -> Evaluation:
        """The numbers of ``plan`` after training, at the rung ``"recover"``; failures as above.

        number: of the trial; a training of that number that was interrupted in this study folder
        goes on. tell: hears of the progress as plain JSON.
        """
        trained = Trained(self._training, number, tell)
        return self._caught(
            plan, "recover", lambda: self._evaluate(plan, "recover", baseline, None, trained)
        )

    def _caught(
        self, plan: CompressionPlan, rung: str, evaluate: Callable[[], Evaluation]
    ) -> Evaluation:
        try:
            return evaluate()
        except CandidateError as error:
            return Evaluation.failure(plan, str(error), rung, traceback.format_exc())
        except EnvironmentFault:
            raise
        except MemoryError as error:
            return Evaluation.failure(plan, f"out of memory: {error}", rung)
        except Exception as error:
            cause = f"{type(error).__name__}: {error}"
            return Evaluation.failure(plan, cause, rung, traceback.format_exc())

    def _evaluate(
        self,
        plan: CompressionPlan,
        rung: str,
        baseline: Evaluation | None,
        artifact: Artifact | None,
        trained: Trained | None = None,
    ) -> Evaluation:
        seconds: dict[str, float] = {}
        with self._meter.working(rung):
            with _clocked(seconds, "compress"):
                made = self.compressor.compress(plan)
            if trained is not None:
                with _clocked(seconds, "recover"):
                    made = trained.train(made, plan, self.task)
            with _clocked(seconds, "export"):
                known = artifact
                if artifact is None or not self._path(artifact).exists():
                    artifact = self.export(self.target, made)
            path = self._path(artifact)
            with _clocked(seconds, "score"):
                result = self.task.score.measure(self.predict(self.target, path), self.split(rung))
        values = dict(result.values)
        errors = dict(result.errors)
        values |= {
            "size_bytes": float(artifact.size_bytes),
            "params": float(count_params(made.network)),
            "macs": float(count_macs(made.network, self.task.example)),
        }
        if (self.packed or plan.needs_archive) and artifact.format == "onnx":
            with _clocked(seconds, "pack"):
                values["archive_bytes"] = float(len(encode(path)))
        notes: dict[str, Any] = {"examples": result.count, "environment": self.target.description}
        if trained is not None:
            notes["recovery"] = trained.notes
        if self.timed:
            with _clocked(seconds, "time"):
                reference = self._baseline_path(baseline) or path
                timed = self._meter.measure(path, reference, rung, baseline)
                values |= timed.values
                errors |= timed.errors
                notes["timing"] = timed.conditions
        if self.resources:
            with _clocked(seconds, "resources"):
                values |= measure_resources(self.resources, self.target, path, self._inputs, values)
        notes |= relate(values, errors, baseline, self.task.score.name, result.right)
        if self._further:
            artifact = replace(artifact, beside={})
            own = measured_on(self.target.name, values, errors)
            values, errors = values | own[0], errors | own[1]
        for other in self._further:
            found = other.measure(made, rung, baseline, known, seconds)
            artifact = replace(artifact, beside={**artifact.beside, other.name: found.artifact})
            values, errors = values | found.values, errors | found.errors
            notes[target_suffix(other.name)] = found.notes
        return Evaluation(
            plan=plan,
            rung=rung,
            values=values,
            errors=errors,
            artifact=artifact,
            seconds=seconds,
            notes=notes,
        )

    def split(self, rung: str) -> Examples:
        """The examples that score this rung: the search's own until points are confirmed."""
        return self.task.evaluate if rung == "confirm" else self.task.search

    def export(self, target: Target, made: Compressed) -> Artifact:
        """The exported file under its content's name; the write is atomic and durable."""
        folder = self.folder / "artifacts"
        with tempfile.TemporaryDirectory(dir=folder, prefix=".export-") as scratch:
            path = Path(scratch) / f"model.{target.format}"
            batches = (b.numpy() for b in self._calibration)
            target.export(
                made.network, self.task.example, made.bits, batches, path, grids=made.grids
            )
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            artifact = Artifact(digest, path.stat().st_size, target.format)
            with path.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(path, folder / artifact.file_name)
        return artifact

    def _path(self, artifact: Artifact) -> Path:
        return self.folder / "artifacts" / artifact.file_name

    def _baseline_path(self, baseline: Evaluation | None) -> Path | None:
        if baseline is None or baseline.artifact is None:
            return None
        return self._path(baseline.artifact)

    def predict(self, target: Target, path: Path) -> Predict:
        """Outputs of an exported file, as a score wants them."""
        runtime = target.load(path)

        def predict(inputs: Tensor) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(runtime.predict(inputs.numpy())))

        return predict


@contextmanager
def _clocked(seconds: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds[stage] = time.perf_counter() - start
