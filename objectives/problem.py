"""A job made concrete: the task, the target, the search space and what counts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ..errors import InputError
from ..spaces.choices import Choices
from ..spaces.discover import discover
from ..spaces.space import SearchSpace
from ..targets.catalogue import make_target
from ..targets.target import Target
from ..tasks.job import Job, load_job
from ..tasks.load import load_task
from ..tasks.sections import Prune, Rank
from ..tasks.task import Task
from .expression import Expression
from .objective import Objective

LEAST_CALIBRATION = 8  # examples: fewer give no usable activation ranges


@dataclass(frozen=True)
class Problem:
    """Everything that a search, a worker and a delivery share, built from one job.

    constraints: what a point must satisfy to be on the front.
    """

    job: Job
    task: Task
    target: Target
    space: SearchSpace
    objectives: tuple[Objective, ...]
    constraints: tuple[Expression, ...]

    @classmethod
    def from_job(cls, job: Job) -> Problem:
        """Check the cheap things first, then load the network and the data, then find the space.

        Raises InputError naming the job's line.
        """
        job = load_job(job)
        objectives = parse_objectives(job)
        constraints = parse_constraints(job)
        target = parse_target(job)
        task = load_task(job)
        if len(task.train) < LEAST_CALIBRATION:
            raise InputError(
                job.where("task.data"),
                f"'train' holds {len(task.train)} examples, too few to calibrate on",
                f"give at least {LEAST_CALIBRATION}",
            )
        return cls(job, task, target, find_space(job, task, target), objectives, constraints)

    @property
    def timed(self) -> bool:
        """Whether latency is asked for by an objective or a constraint."""
        return self.asks("latency")

    @property
    def packed(self) -> bool:
        """Whether the size of the packed container is asked for, of every plan."""
        return self.asks("archive")

    def asks(self, quantity: str) -> bool:
        """Whether an objective or a constraint names something that begins so."""
        names = {o.name for o in self.objectives}
        for constraint in self.constraints:
            names |= set(constraint.names)
        return any(name.startswith(quantity) for name in names)


def parse_objectives(job: Job) -> tuple[Objective, ...]:
    """The job's objectives. Raises InputError on an unknown one, or none for the score."""
    found = tuple(
        Objective.parse(item, job.where(f"objectives[{i}]"))
        for i, item in enumerate(job.objectives)
    )
    score = "fidelity" if job.task.score == "fidelity" else "accuracy"
    other = "accuracy" if score == "fidelity" else "fidelity"
    for i, objective in enumerate(found):
        if objective.name in (other, "divergence") and objective.name != score:
            raise InputError(
                job.where(f"objectives[{i}]"),
                f"{objective.name!r} is not measured with score {job.task.score!r}",
                f"use {score!r}",
            )
    return found


def parse_constraints(job: Job) -> tuple[Expression, ...]:
    """The job's constraints. Raises InputError on bad syntax or one that nothing can meet."""
    return tuple(
        Expression.parse(text, job.where(f"constraints[{i}]"))
        for i, text in enumerate(job.constraints)
    )


def parse_target(job: Job) -> Target:
    """The job's target, with its options."""
    options: dict[str, Any] = {
        "format": job.target.format,
        "threads": job.target.threads,
        "batch": job.target.batch,
        "calibration_examples": job.target.calibration,
    }
    if job.target.remote is not None:
        options |= job.target.remote.model_dump()
    if job.compress.activation_ranges != "minmax":
        options["ranges"] = job.compress.activation_ranges
    if job.compress.linears != "packed":
        options["linears"] = job.compress.linears
    name = job.target.name or "onnxruntime-cpu"
    return make_target(name, options, job.where("target.name"))


def find_space(job: Job, task: Task, target: Target) -> SearchSpace:
    """The search space that the job allows on this target."""
    spec = job.space
    choices = _choices(job, target.choices)
    try:
        return discover(
            task.network,
            task.example,
            choices,
            prune=spec.prune is not False,
            factorise=spec.rank is not False,
            freeze=spec.freeze,
        )
    except InputError as error:
        place = job.where(error.where) if error.where.startswith(("task", "space")) else error.where
        raise InputError(place, error.problem, error.remedy) from error


def _choices(job: Job, offered: Choices) -> Choices:
    spec = job.space
    pairs = (*offered.bits, *offered.more_bits)
    known = {f"w{weight}a{activation}": (weight, activation) for weight, activation in pairs}
    for pair in reversed(pairs):  # a number alone: the first pair of so many weight bits
        known[str(pair[0])] = pair
    named = [known.get(str(bits)) for bits in spec.bits]
    for i, (bits, found) in enumerate(zip(spec.bits, named, strict=True)):
        if found is None:
            raise InputError(
                job.where(f"space.bits[{i}]"),
                f"{bits} bits are not offered by this target",
                "known: " + ", ".join(sorted(known, key=lambda k: (not k.isdigit(), len(k), k))),
            )
    chosen = sorted({pair for pair in named if pair is not None}, reverse=True)
    low = tuple(sorted({weight for weight, _ in chosen if weight < 8}))
    zeros = sorted((50, "2:4") if z == "2:4" else (int(z), "unstructured") for z in spec.zeros)
    choices = replace(offered, bits=tuple(chosen), size_only_bits=low, zeros=tuple(zeros))
    if isinstance(spec.prune, Prune):
        choices = replace(choices, smallest_keep=spec.prune.smallest_keep)
        if spec.prune.step is not None:
            step = spec.prune.step
            choices = replace(choices, channel_step=step, wide_step=step)
    if isinstance(spec.rank, Rank):
        rank = spec.rank
        ratios = offered.rank_ratios if rank.ratios is None and not rank.energy else rank.ratios
        choices = replace(
            choices,
            rank_ratios=ratios or (),
            rank_energies=rank.energy,
            rank_methods=rank.methods,
        )
    return choices
