"""A candidate tried cheaply and truthfully: in torch, rounded as its exported file would be.

Nothing is exported; see :mod:`paretune.operators.rounded_network` for what is kept and shared.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
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
from ..tasks.task import Task
from .costs import CostModel
from .divergence import divergence
from .latency_model import stored_model
from .problem import Problem

UNSURE, SURE = 48, 16
"""Search examples a candidate is scored on: of those that the original network is least sure of,
and of the others."""
UNSURE_SHARE = 0.2
"""Share of the search examples that are its least sure ones: what changes, changes there first."""
CALIBRATION = 32
"""Training examples for BatchNorm and ranges of a cut or factorised candidate."""


@dataclass(frozen=True)
class Screened:
    """A screened plan: an estimate, never shown as a measurement.

    values: the score ("accuracy": the original network's on all search examples minus what was
    lost on the slice), divergence (mean KL from the original's outputs, nats; mean squared error
    where the outputs are no classes), and the costs. seconds: of this thread's time.
    """

    plan: CompressionPlan
    values: dict[str, float]
    seconds: float


@dataclass
class _Slice:
    """Some examples of a split, in one batch, that stand for a share of it."""

    name: str
    share: float
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
    them. examples: search examples to score on, (unsure, sure) ones, see :func:`_strata`;
    calibration: training examples for BatchNorm and ranges.
    """

    def __init__(
        self,
        task: Task,
        target: Target,
        compressor: Compressor,
        costs: CostModel,
        calibration_inputs: Tensor,
        *,
        examples: tuple[int, int] = (UNSURE, SURE),
        calibration: int = CALIBRATION,
    ) -> None:
        self.task, self.target, self.compressor, self.costs = task, target, compressor, costs
        self.space = compressor.space
        self.calibration_inputs = calibration_inputs
        reduced = bool(getattr(target, "reduce_range", False))
        self.networks = RoundedNetworks(
            compressor, task.example, calibration_inputs, calibration, reduced
        )
        self._whole, self._slices = self._score_original(*examples)
        self._inputs = torch.cat([slice_.inputs for slice_, _, _ in self._slices])

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
        values = self._score(self.outputs(plan, self._inputs)) | self.costs.costs(plan)
        return Screened(plan, values, time.thread_time() - begin)

    def outputs(self, plan: CompressionPlan, inputs: Tensor) -> Tensor:
        """Outputs of the rounded torch candidate for inputs (n, ...) float32."""
        with self.networks.rounded(plan) as network, torch.no_grad():
            return network(inputs)  # type: ignore[no-any-return]

    def _score(self, outputs: Tensor) -> dict[str, float]:
        name = self.task.score.name
        lost = total = 0.0
        for slice_, base, want in self._slices:
            own, outputs = outputs[: len(slice_)], outputs[len(slice_) :]
            value = self.task.score.measure(_given(own), slice_).values[name]
            lost += (base - value) * slice_.share
            total += divergence(want, own) * slice_.share
        return {name: self._whole - lost, "divergence": total}

    def _score_original(
        self, unsure: int, sure: int
    ) -> tuple[float, list[tuple[_Slice, float, Tensor]]]:
        task, name = self.task, self.task.score.name
        margins: list[Tensor] = []

        def predict(inputs: Tensor) -> Tensor:
            outputs = task.network_predict(inputs)
            margins.append(_margin(outputs))
            return outputs

        whole = task.score.measure(predict, task.search).values[name]
        margin = torch.cat(margins)
        if len(margin) != len(task.search):  # a score that does not look at each example once
            margin = torch.zeros(len(task.search))
        out = []
        for number, (places, share) in enumerate(_strata(margin, unsure, sure)):
            slice_ = _Slice(f"screen {number}", share, *task.search.take(places.numpy()))
            want = task.network_predict(slice_.inputs).clone()
            value = task.score.measure(_given(want), slice_).values[name]
            out.append((slice_, value, want))
        return whole, out


def _given(outputs: Tensor) -> Callable[[Tensor], Tensor]:
    """Predictions that are known already."""
    return lambda _: outputs


def _margin(outputs: Tensor) -> Tensor:
    """How sure a network is of each example: by how much its likeliest class is likelier than the
    next; 0 where outputs (n, ...) are no classes."""
    if outputs.ndim != 2 or outputs.shape[1] < 2:
        return torch.zeros(len(outputs), dtype=torch.float64)
    likeliest = outputs.double().softmax(1).topk(2).values
    return likeliest[:, 0] - likeliest[:, 1]


def _strata(margin: Tensor, unsure: int, sure: int) -> list[tuple[Tensor, float]]:
    """Examples that stand for all, and the share of all that each part of them stands for.

    margin: of the original network, (n,). ``unsure`` of the examples with the smallest and ``sure``
    of the others: nearly all that a mild compression changes is among the first (stratified
    sampling: Cochran, "Sampling Techniques", chapter 5). Each part is evenly spread, so that what
    is found is unbiased. Where all margins are equal, as many from everywhere.
    """
    count = len(margin)
    every = torch.arange(count)
    if count <= unsure + sure:
        return [(every, 1.0)]
    if margin.min() == margin.max():
        return [(_spread(every, unsure + sure), 1.0)]
    order = margin.argsort(stable=True)
    first = max(unsure, round(UNSURE_SHARE * count))
    parts = (order[:first].sort().values, unsure), (order[first:].sort().values, sure)
    return [(_spread(part, wanted), len(part) / count) for part, wanted in parts]


def _spread(places: Tensor, wanted: int) -> Tensor:
    """``wanted`` of the places, evenly."""
    at = (torch.arange(wanted, dtype=torch.float64) + 0.5) * len(places) / wanted
    return places[at.long()]
