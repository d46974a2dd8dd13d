"""What a search sets out with: its sampler, what guides it, and who screens for it."""

from __future__ import annotations

from collections.abc import Callable

from ..errors import EnvironmentFault
from ..objectives.problem import Problem
from ..tasks.job import Job
from ..trackers.study import Study
from .guidance import Guidance
from .guide import Guide
from .preparation import EACH, prepare
from .proposer import Proposer
from .samplers import default_population, make_sampler
from .scout import Scout

FALLBACK = "nsga2"
"""The sampler where no sensitivity table can be had."""
UNGUIDED = "unguided"
"""What a study keeps of why there is none."""
_LEAST_PASS = 24  # screened candidates that the sensitivity pass may always cost


def make_proposer(
    job: Job,
    study: Study,
    problem: Problem,
    width: int,
    say: Callable[[str], None],
    check: Callable[[], None] = lambda: None,
    timed: Callable[[], None] = lambda: None,
) -> Proposer:
    """The proposer that the job asks for.

    width: asks open at a time. say: hears what its preparation does; check: is called between two
    steps of it and may end it by an exception; timed: when nothing more is timed in it.
    """
    search, space = job.search, problem.space
    population = search.population or study.get("population")
    population = population or default_population(search.trials)
    study.put("population", population)  # a resume with another budget keeps it
    name, guidance = search.sampler, None
    each = search.screen if search.screen is not None else (EACH if name == "guided" else 0)
    if name == "guided":
        guidance = _guidance(job, study, problem, each, say, check, timed)
        name = name if guidance is not None else FALLBACK
    objectives, constraints = problem.objectives, problem.constraints
    sampler = make_sampler(
        name,
        space.parameters,
        seed=search.seed,
        population=population,
        guidance=guidance,
        objectives=objectives,
        constraints=constraints,
        where=job.where("search.sampler"),
    )
    if guidance is None:
        presets = space.presets()
        return Proposer(space, objectives, constraints, sampler, search.seed, presets)
    if not Guide(guidance, objectives, constraints, search.seed).feasible:
        say("no values within reach meet the constraints: the whole front is searched")
    scout = None
    if each:
        scout = Scout(guidance, objectives, constraints, space.plan, each, search.seed, width=width)
    return Proposer(space, objectives, constraints, sampler, search.seed, (), scout)


def plain_proposer(job: Job, problem: Problem) -> Proposer:
    """A proposer for a search that is over: nothing is prepared for it."""
    sampler = make_sampler("random", problem.space.parameters, seed=job.search.seed)
    objectives, constraints = problem.objectives, problem.constraints
    return Proposer(problem.space, objectives, constraints, sampler, job.search.seed, ())


def _guidance(
    job: Job,
    study: Study,
    problem: Problem,
    each: int,
    say: Callable[[str], None],
    check: Callable[[], None],
    timed: Callable[[], None],
) -> Guidance | None:
    """What the guided sampler starts from, or None where it cannot be had; that is said."""
    if study.get(UNGUIDED) is not None:
        return None  # as it began
    budget = max(_LEAST_PASS, job.search.trials * (1 + each) / 4)
    budget = study.get("sensitivity_budget") or budget
    study.put("sensitivity_budget", budget)  # a resume with another budget keeps it
    minutes = job.search.timeout
    seconds = study.get("sensitivity_seconds", 60 * minutes / 4 if minutes else None)
    study.put("sensitivity_seconds", seconds)
    try:
        return prepare(problem, study.folder, budget, say, check, timed, seconds)
    except EnvironmentFault:
        raise
    except Exception as error:
        if study.asks():
            raise
        reason = " ".join(f"{error}".split())[:300]
        study.put(UNGUIDED, reason)
        say(f"no sensitivity table can be had ({reason}): {FALLBACK} is used instead")
        return None
