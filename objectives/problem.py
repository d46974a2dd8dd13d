"""A job made concrete: the task, the target, the search space and what counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import InputError, nearest
from ..spaces.choices import Choices
from ..spaces.discover import discover
from ..spaces.space import SearchSpace
from ..targets.catalogue import make_target, option_names
from ..targets.target import Target
from ..tasks.job import Job, load_job
from ..tasks.load import load_task
from ..tasks.sections import LEAST_CALIBRATION, Prune, Rank
from ..tasks.task import Task
from .expression import Expression
from .further import SHARED, target_suffix
from .objective import QUANTITIES, Objective, quantity_name
from .resources import RESOURCES, asked_resources, check_measurable

SHARED_OPTIONS = (
    *("format", "threads", "batch", "calibration_examples"),
    *("runtime", "token_file", "fingerprint", "ca", "boards", "patience"),
)
"""Options of a job's target section; a target that does not take one goes without."""


@dataclass(frozen=True)
class Problem:
    """Everything that a search, a worker and a delivery share, built from one job.

    constraints: what a point must satisfy to be on the front. further: targets beside the first.
    """

    job: Job
    task: Task
    target: Target
    space: SearchSpace
    objectives: tuple[Objective, ...]
    constraints: tuple[Expression, ...]
    further: tuple[Target, ...] = ()

    @classmethod
    def from_job(cls, job: Job, packed: Path | None = None) -> Problem:
        """Check the cheap things first, then load the network and the data, then find the space.

        packed: the task as :func:`.tasks.travel.pack_task` wrote it.

        Raises InputError naming the job's line.
        """
        job = load_job(job)
        objectives = parse_objectives(job)
        constraints = parse_constraints(job)
        target, *further = parse_targets(job)
        names = [o.name for o in objectives] + [n for c in constraints for n in c.names]
        if target.format != "onnx" and any(name.startswith("archive") for name in names):
            raise InputError(
                _target_place(job, target.name),
                f"the packed size of a {target.format} file is not measured",
                "leave out archive_bytes and archive_ratio, or use an ONNX Runtime target",
            )
        task = load_task(job, packed)
        if len(task.train) < LEAST_CALIBRATION:
            raise InputError(
                job.where("task.data"),
                f"'train' holds {len(task.train)} examples, too few to calibrate on",
                f"give at least {LEAST_CALIBRATION}",
            )
        space = find_space(job, task, target, further)
        return cls(job, task, target, space, objectives, constraints, tuple(further))

    @property
    def timed(self) -> bool:
        """Whether latency is asked for by an objective or a constraint."""
        return self.asks("latency") or self.asks("throughput")

    @property
    def resources(self) -> tuple[str, ...]:
        """Which of throughput, peak memory and energy are asked for."""
        return asked_resources([r for r in RESOURCES if self.asks(r)])

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
    """The job's objectives. Raises InputError on an unknown one, one that is listed twice, or one
    that the job's score or this machine does not measure."""
    found: list[Objective] = []
    for i, item in enumerate(job.objectives):
        where = job.where(f"objectives[{i}]")
        objective = _objective(job, item, where)
        if objective.name in [other.name for other in found]:
            raise InputError(where, f"{objective.name!r} is listed twice", "remove one")
        _check_scored(job, [objective.name], where)
        check_measurable([objective.name], where, target_names(job))
        found.append(objective)
    return tuple(found)


def _check_scored(job: Job, names: Sequence[str], where: str) -> None:
    """Raises InputError for a value of a score that is another than the job's."""
    known = {"accuracy": ("accuracy", "accuracy_drop", "loss")}
    known["fidelity"] = ("fidelity", "divergence", "accuracy_drop")
    measured = known.get(job.task.score, ("accuracy", "accuracy_drop"))
    for name in names:
        quantity = quantity_name(name)
        if quantity in {q for scored in known.values() for q in scored} - {*measured}:
            problem = f"{name!r} is not measured with score {job.task.score!r}"
            raise InputError(where, problem, "measured: " + ", ".join(measured))


def _objective(job: Job, item: Any, where: str) -> Objective:
    """An objective; with several targets under the name of its target's value."""
    if not job.target.also:
        return Objective.parse(item, where)
    known = value_names(job)
    if isinstance(item, str) and item in known and item not in QUANTITIES:
        (owner,) = [
            t for t in target_names(job) if item == f"{quantity_name(item)}_{target_suffix(t)}"
        ]
        return Objective(item, {"target": owner})
    objective = Objective.parse(item, where)
    if objective.name in SHARED:
        return objective
    if "target" not in objective.options:
        choices = [name for name in known if quantity_name(name) == objective.name]
        raise InputError(
            where,
            f"{objective.name!r} differs between the targets",
            "write one of: " + ", ".join(choices),
        )
    end = target_suffix(str(objective.options["target"]))
    return Objective(f"{objective.name}_{end}", objective.options)


def target_names(job: Job) -> list[str]:
    """The job's targets, the first one first."""
    return [str(job.target.name or "onnxruntime-cpu"), *job.target.also]


def value_names(job: Job) -> list[str]:
    """The names of values that a job's conditions may use."""
    if not job.target.also:
        return list(QUANTITIES)
    ends = [target_suffix(t) for t in target_names(job)]
    return [n for q in QUANTITIES for n in ([q] if q in SHARED else [f"{q}_{e}" for e in ends])]


def parse_constraints(job: Job) -> tuple[Expression, ...]:
    """The job's constraints. Raises InputError on bad syntax, on what nothing can meet (each alone
    or all together), and on a value that the job's score or this machine does not measure."""
    known, found = value_names(job), []
    for i, text in enumerate(job.constraints):
        where = job.where(f"constraints[{i}]")
        found.append(Expression.parse(text, where, known))
        _check_scored(job, found[-1].names, where)
        check_measurable(found[-1].names, where, target_names(job))
    if together := Expression.all_of(found):
        together.check(job.where("constraints"))
    return tuple(found)


def parse_target(job: Job) -> Target:
    """The job's (first) target, with its options."""
    return _target(job, target_names(job)[0])


def parse_targets(job: Job) -> list[Target]:
    """All of the job's targets, the first one first. Raises InputError on an unknown one."""
    for name in job.target.options:
        known = target_names(job)
        if name not in known:
            place = job.where(f"target.options.{name}")
            raise InputError(place, f"{name!r} is no target of this job", nearest(name, known))
    return [parse_target(job), *(_target(job, name) for name in job.target.also)]


def _target(job: Job, name: str) -> Target:
    where = _target_place(job, name)
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
    known = option_names(name, where)
    options = {
        key: value for key, value in options.items() if key in known or key not in SHARED_OPTIONS
    }
    own = job.target.options.get(name)
    place = job.where(f"target.options.{name}") if own else where
    return make_target(name, options | (own or {}), place)


def _target_place(job: Job, name: str) -> str:
    """Where the job names a target: at an objective, or in its target section."""
    for i, item in enumerate(job.objectives):
        for quantity, options in item.items() if isinstance(item, Mapping) else ():
            if (options or {}).get("target") == name:
                return job.where(f"objectives[{i}].{quantity}.target")
    return job.where("target.name" if name == job.target.name else "target.also")


def find_space(job: Job, task: Task, target: Target, further: Sequence[Target] = ()) -> SearchSpace:
    """The search space that the job allows on this target, at widths that all targets run."""
    spec = job.space
    offered = target.choices
    for other in further:
        common = tuple(pair for pair in offered.bits if pair in other.choices.bits)
        more = tuple(pair for pair in offered.more_bits if pair in other.choices.more_bits)
        offered = replace(offered, bits=common, more_bits=more)
    choices = _choices(job, offered)
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


def _bits(job: Job, offered: Choices) -> tuple[tuple[int, int], ...]:
    """The pairs of bits that the job names, or the target's own where it names none."""
    asked = job.space.bits
    if asked is None:
        return offered.bits
    pairs = (*offered.bits, *offered.more_bits)
    known = {f"w{weight}a{activation}": (weight, activation) for weight, activation in pairs}
    for pair in reversed(pairs):  # a number alone: the first pair of so many weight bits
        known[str(pair[0])] = pair
    named = [known.get(str(bits)) for bits in asked]
    for i, (bits, found) in enumerate(zip(asked, named, strict=True)):
        if found is None:
            reason = dict(offered.without).get(bits if isinstance(bits, int) else 0)
            raise InputError(
                job.where(f"space.bits[{i}]"),
                f"{bits} bits are not offered by this target" + (f" ({reason})" if reason else ""),
                "known: " + ", ".join(sorted(known, key=lambda k: (not k.isdigit(), len(k), k))),
            )
    chosen = sorted({pair for pair in named if pair is not None}, reverse=True)
    if offered.bits[0] not in chosen:  # else the first option would pass for the baseline
        problem = "every plan is compared with the unchanged network, and its 32 bits are missing"
        raise InputError(job.where("space.bits"), problem, "add 32; constraints can exclude it")
    return tuple(chosen)


def _choices(job: Job, offered: Choices) -> Choices:
    spec = job.space
    zeros = sorted((50, "2:4") if z == "2:4" else (int(z), "unstructured") for z in spec.zeros)
    choices = replace(offered, bits=_bits(job, offered), zeros=tuple(zeros))
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
