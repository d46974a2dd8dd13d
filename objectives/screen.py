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
from torch import Tensor, nn

from ..operators.compress import Compressor
from ..operators.rounded_network import RoundedNetworks
from ..spaces.plan import CompressionPlan
from ..targets.target import Target
from ..tasks.job import load_job
from ..tasks.task import Task
from .costs import CostModel
from .divergence import divergence
from .latency_model import stored_model
from .problem import Problem

EXAMPLES, FIRST = 96, 32
"""Search examples a candidate is scored on, and those after which it may be dropped."""
CALIBRATION = 32
"""Training examples for BatchNorm and ranges of a cut or factorised candidate."""


@dataclass(frozen=True)
class Screened:
    """A screened plan: an estimate, never shown as a measurement.

    values: the score ("accuracy": the original network's on all search examples minus what was
    lost on the slice), divergence (mean KL from the original's outputs, nats; mean squared error
    where the outputs are no classes), and the costs. seconds: of this thread's time.
    examples: how many were scored before it was dropped or done.
    """

    plan: CompressionPlan
    values: dict[str, float]
    seconds: float
    examples: int


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
    them. examples: search examples to score on, spread over the split; calibration: training
    examples for BatchNorm and ranges.
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
        self._whole, self._slices = self._score_original(examples)

    @classmethod
    def from_job(cls, job: Mapping[str, Any], folder: str) -> Screen:
        """A screen for a resolved job: what a worker starts with. folder: the study folder."""
        return cls.for_problem(Problem.from_job(load_job(job)), Path(folder))

    @classmethod
    def for_problem(
        cls, problem: Problem, folder: Path, compressor: Compressor | None = None, **counts: int
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

    def screen(self, plan: CompressionPlan, stop_below: float | None = None) -> Screened:
        """The estimate for ``plan``. stop_below: give up after the first examples when the score
        is below this, even if it were two standard errors better.

        Raises CandidateError when the plan cannot be carried out.
        """
        begin = time.thread_time()
        with self.networks.rounded(plan) as network, torch.no_grad():
            values, examples = self._score(network, stop_below)
        values |= self.costs.costs(plan)
        return Screened(plan, values, time.thread_time() - begin, examples)

    def outputs(self, plan: CompressionPlan, inputs: Tensor) -> Tensor:
        """Outputs of the rounded torch candidate for inputs (n, ...) float32."""
        with self.networks.rounded(plan) as network, torch.no_grad():
            return network(inputs)  # type: ignore[no-any-return]

    def _score(self, network: nn.Module, stop_below: float | None) -> tuple[dict[str, float], int]:
        name = self.task.score.name
        lost = total = count = 0.0
        for slice_, base, want in self._slices:
            outputs: list[Tensor] = []

            def predict(inputs: Tensor, outputs: list[Tensor] = outputs) -> Tensor:
                outputs.append(network(inputs))
                return outputs[-1]

            value = self.task.score.measure(predict, slice_).values[name]
            lost += (base - value) * len(slice_)
            total += divergence(want, torch.cat(outputs)) * len(slice_)
            count += len(slice_)
            error = 2 * (0.25 / count) ** 0.5
            if stop_below is not None and self._whole - lost / count + error < stop_below:
                break
        return {name: self._whole - lost / count, "divergence": total / count}, int(count)

    def _score_original(self, examples: int) -> tuple[float, list[tuple[_Slice, float, Tensor]]]:
        task, name = self.task, self.task.score.name
        whole = task.score.measure(task.network_predict, task.search).values[name]
        order = _spread(len(task.search), min(examples, len(task.search)))
        out = []
        for number, places in enumerate((order[:FIRST], order[FIRST:])):
            if not len(places):
                continue
            slice_ = _Slice(f"screen {number}", *task.search.take(places.numpy()))
            want = task.network_predict(slice_.inputs).clone()
            value = task.score.measure(task.network_predict, slice_).values[name]
            out.append((slice_, value, want))
        return whole, out


def _spread(count: int, wanted: int) -> Tensor:
    """``wanted`` places evenly over ``count``; the first of them are evenly spread as well."""
    places = (torch.arange(wanted, dtype=torch.float64) + 0.5) * count / wanted
    stride = max(1, wanted // FIRST)
    order = torch.cat([torch.arange(s, wanted, stride) for s in range(stride)])
    return places.long()[order]
