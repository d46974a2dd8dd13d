"""A target whose files are timed by one actor of a cluster, and run and scored where we are."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CandidateError, EnvironmentFault
from ..objectives.evaluate import Evaluator
from ..objectives.evaluation import Artifact, Evaluation
from ..objectives.problem import Problem
from ..objectives.screen import Screen
from ..spaces.plan import CompressionPlan
from ..targets.target import Target, Timing
from ..tasks.job import load_job
from .preparation import ScreeningEvaluator

Ask = Callable[[dict[str, Any]], dict[str, Any]]
"""A question to the latency device, as plain JSON, and its answer: ``timing`` or ``error``."""


class OnDevice:
    """``target`` in all but its timing, which ``ask`` answers.

    Where a target does its timing elsewhere itself (a device agent), it needs none of this.
    """

    device = None
    """Nothing here needs to wait for a timing: the device does one at a time."""

    def __init__(self, target: Target, folder: Path, ask: Ask | None = None) -> None:
        self._target, self._folder, self.ask = target, folder, ask
        self.states = None  # the device keeps its own

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # also while a copy of this is being made
            raise AttributeError(name)
        return getattr(self._target, name)

    def time(self, path: Path, baseline: Path, inputs: np.ndarray) -> Timing:
        """Latency of ``path`` beside ``baseline`` on the device.

        Raises CandidateError where the device refuses the file, EnvironmentFault where it is gone.
        """
        digest = hashlib.sha256(np.ascontiguousarray(inputs).tobytes()).hexdigest()[:16]
        stored = self._folder / f".inputs-{digest}.npy"
        if not stored.exists():
            np.save(stored, inputs)
        asked = {"target": self._target.name, "path": str(path), "baseline": str(baseline)}
        if self.ask is None:
            raise EnvironmentFault("the latency device is not connected")
        answer = self.ask({**asked, "inputs": str(stored)})
        if "fault" in answer:
            raise EnvironmentFault(answer["fault"])
        if "error" in answer:
            raise CandidateError(answer["error"])
        return Timing(**answer["timing"])


def needs_device(problem: Problem) -> bool:
    """Whether latency is to be timed, and by no agent."""
    return problem.timed and any(_local(t) for t in (problem.target, *problem.further))


def on_device(problem: Problem, folder: Path, ask: Ask | None = None) -> Problem:
    """The problem with its targets timed on the device."""

    def moved(target: Target) -> Any:
        return OnDevice(target, folder, ask) if _local(target) else target

    further = tuple(moved(target) for target in problem.further)
    return replace(problem, target=moved(problem.target), further=further)


def _local(target: Any) -> bool:
    return getattr(target, "device", target.name) is not None


class ClusterEvaluator:
    """What a worker on a cluster evaluates with; latency is asked of the device."""

    def __init__(self, evaluator: Any, targets: list[OnDevice]) -> None:
        self._evaluator, self._targets = evaluator, targets

    @classmethod
    def from_job(
        cls,
        job: Mapping[str, Any],
        folder: str,
        shared: str | None = None,
        screening: bool = False,
        device: bool = False,
        threads: int = 1,
    ) -> ClusterEvaluator:
        """For a resolved job and a worker's own folder.

        shared: the packed task. screening: candidates are screened too. device: there is one that
        times. threads: for a training on the processor.
        """
        place = Path(folder)
        problem = Problem.from_job(load_job(job), Path(shared) if shared else None)
        if device:
            problem = on_device(problem, place)
        made = Evaluator.for_problem(problem, place, threads)
        both: list[Any] = [problem.target, *problem.further]
        targets = [target for target in both if isinstance(target, OnDevice)]
        if not screening:
            return cls(made, targets)
        compressor = made.compressor
        screener = ScreeningEvaluator(made, lambda: Screen.for_problem(problem, place, compressor))
        return cls(screener, targets)

    def connect(self, ask: Ask) -> None:
        """Have ``ask`` answer what is asked of the device."""
        for target in self._targets:
            target.ask = ask

    def evaluate(
        self,
        plan: CompressionPlan,
        rung: str = "measure",
        baseline: Evaluation | None = None,
        artifact: Artifact | None = None,
    ) -> Evaluation:
        """As :meth:`Evaluator.evaluate`."""
        found: Evaluation = self._evaluator.evaluate(plan, rung, baseline, artifact)
        return found

    def recover(
        self,
        plan: CompressionPlan,
        number: int,
        baseline: Evaluation | None = None,
        tell: Callable[[dict[str, Any]], None] | None = None,
    ) -> Evaluation:
        """As :meth:`Evaluator.recover`."""
        found: Evaluation = self._evaluator.recover(plan, number, baseline, tell)
        return found
