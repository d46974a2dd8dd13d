"""A candidate tried cheaply and truthfully: in torch, rounded as its exported file would be.

Nothing is exported; see :mod:`paretune.operators.rounded_network` for what is kept and shared.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..operators.compress import Compressor
from ..operators.rounded_network import RoundedNetworks
from ..spaces.plan import CompressionPlan
from ..targets.target import Target
from ..tasks.job import load_job
from ..tasks.score import Fidelity, Top1
from ..tasks.task import Task
from .costs import CostModel
from .divergence import divergence
from .latency_probe import stored_model
from .margins import Margins, evenly
from .problem import Problem

EXAMPLES = 64
"""Search examples that a candidate is run on."""
CALIBRATION = 32
"""Training examples for BatchNorm and ranges of a cut or factorised candidate."""


@dataclass(frozen=True)
class Screened:
    """A screened plan: an estimate, never shown as a measurement.

    values: the score ("accuracy": the original network's on all search examples minus what was
    lost, see :class:`.margins.Margins`), divergence (mean KL from the original's outputs, nats;
    mean squared error where the outputs are no classes), and the costs. seconds: of this thread's
    time.
    """

    plan: CompressionPlan
    values: dict[str, float]
    seconds: float


@dataclass
class _Slice:
    """Some examples of a split, in one batch."""

    name: str
    inputs: Tensor
    targets: Tensor | None
    labelled: bool = field(default=True)

    def __len__(self) -> int:
        return len(self.inputs)

    def batches(
        self, size: int, limit: int | None = None
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        yield self.inputs, self.targets


class Screen:
    """Screens plans of one task on one target; what they share is computed once.

    compressor: carries plans out, with its calibration inputs (training examples). costs: prices
    them. examples: search examples to score on; calibration: training examples for BatchNorm and
    ranges.
    """

    def __init__(
        self,
        task: Task,
        target: Target,
        compressor: Compressor,
        costs: CostModel,
        calibration_inputs: Tensor,
        *,
        examples: int = EXAMPLES,
        calibration: int = CALIBRATION,
    ) -> None:
        self.task, self.target, self.compressor, self.costs = task, target, compressor, costs
        self.space = compressor.space
        self.calibration_inputs = calibration_inputs
        reduced = bool(getattr(target, "reduce_range", False))
        self.networks = RoundedNetworks(
            compressor, task.example, calibration_inputs, calibration, reduced
        )
        self._score_original(examples)

    @classmethod
    def from_job(cls, job: Mapping[str, Any], folder: str) -> Screen:
        """A screen for a resolved job: what a worker starts with. folder: the study folder."""
        return cls.for_problem(Problem.from_job(load_job(job)), Path(folder))

    @classmethod
    def for_problem(
        cls, problem: Problem, folder: Path, compressor: Compressor | None = None, **counts: Any
    ) -> Screen:
        """A screen for a job made concrete; compressor: an evaluator's, to share it."""
        task = problem.task
        inputs = torch.cat(task.calibration(problem.job.target.calibration))
        compressor = compressor or Compressor(
            task.network, task.example, problem.space, inputs, problem.job.compress
        )
        latency = stored_model(folder, problem.space, problem.target) if problem.timed else None
        costs = CostModel(problem.space, task.network, task.example, problem.target, latency)
        return cls(task, problem.target, compressor, costs, inputs, **counts)

    def screen(self, plan: CompressionPlan) -> Screened:
        """The estimate for ``plan``. Raises CandidateError when it cannot be carried out."""
        begin = time.thread_time()
        values = self._score(self.outputs(plan, self._slice.inputs)) | self.costs.costs(plan)
        return Screened(plan, values, time.thread_time() - begin)

    def outputs(self, plan: CompressionPlan, inputs: Tensor) -> Tensor:
        """Outputs of the rounded torch candidate for inputs (n, ...) float32."""
        with self.networks.rounded(plan) as network, torch.no_grad():
            return network(inputs)  # type: ignore[no-any-return]

    def _score(self, outputs: Tensor) -> dict[str, float]:
        name = self.task.score.name
        if self._margins is not None:
            lost = self._margins.lost(outputs, self._places)
        else:
            lost = self._known - self._measured(outputs)
        return {name: self._whole - lost, "divergence": divergence(self._want, outputs)}

    def _measured(self, outputs: Tensor) -> float:
        """The task's own score of outputs for the slice."""
        return self.task.score.measure(lambda _: outputs, self._slice).values[self.task.score.name]

    def _score_original(self, examples: int) -> None:
        """What the original network answers, on all search examples and on the slice."""
        task = self.task
        answers: list[Tensor] = []

        def predict(inputs: Tensor) -> Tensor:
            answers.append(task.network_predict(inputs).clone())
            return answers[-1]

        self._whole = task.score.measure(predict, task.search).values[task.score.name]
        outputs = torch.cat(answers)
        self._margins = _margins_of(task, outputs)
        if self._margins is None:
            self._places = evenly(torch.arange(len(task.search)), examples)
        else:
            self._places = self._margins.spread(examples)
        self._slice = _Slice("screen", *task.search.take(self._places.numpy()))
        self._want = task.network_predict(self._slice.inputs).clone()
        self._known = self._measured(self._want)


def _margins_of(task: Task, outputs: Tensor) -> Margins | None:
    """The original's margins, where the score counts examples whose class is right or unchanged;
    outputs: as they came, (n, classes) there."""
    if outputs.ndim != 2 or outputs.shape[1] < 2 or len(outputs) != len(task.search):
        return None
    if isinstance(task.score, Fidelity) and outputs.shape[1] > 2:
        return Margins(outputs, outputs.argmax(1))
    if isinstance(task.score, Top1):
        targets = [targets for _, targets in task.search.batches(100)]
        return Margins(outputs, torch.cat([t for t in targets if t is not None]))
    return None
