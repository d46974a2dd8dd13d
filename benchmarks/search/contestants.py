"""Who takes part: Optuna's samplers, plain and given presets, ours, and ours without parts."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import optuna
from evaluations import Evaluations
from optuna.samplers import BaseSampler
from optuna.trial import TrialState

from paretune.search.guidance import Guidance
from paretune.search.guide import Focus
from paretune.search.guided import VALUES, GuidedSampler
from paretune.search.samplers import make_sampler

PLAIN = ("nsga2", "tpe", "nsga3", "tpe-multivariate", "random", "qmc", "gp")
GP_CAP_S = 240.0  # of its own time; then its run ends
OURS: dict[str, Focus] = {
    "guided": Focus(),
    "guided, more focus": Focus(useful=0.8),
    "guided, no seeds": Focus(seeds=False),
    "guided, no surrogate": Focus(surrogate=False),
    "guided, no focus": Focus(useful=0.0),
    "guided, swaps within families": Focus(across=False),
}


@dataclass(frozen=True)
class Contestant:
    """A sampler. presets: its first trials are uniform presets. focus: it is ours."""

    name: str
    sampler: str = ""
    presets: bool = False
    focus: Focus | None = None


def contestants() -> list[Contestant]:
    """All, the most interesting first."""
    ours = [Contestant(name, focus=focus) for name, focus in OURS.items()]
    seeded = [Contestant(f"{name} + presets", name, True) for name in PLAIN]
    plain = [Contestant(name, name) for name in PLAIN]
    return [*ours[:2], *seeded[:-1], *ours[2:], *plain[:-1], seeded[-1], plain[-1]]


def compete(
    contestant: Contestant,
    evaluations: Evaluations,
    guidance: Callable[[], tuple[Guidance, float]],
    trials: int,
    seed: int,
) -> Iterator[dict[str, Any]]:
    """The evaluations of one run in order: number (the sensitivity pass counts), plan, values,
    seconds of the sampler and of the evaluation."""
    parameters = evaluations.space.parameters
    start, sampler = 0, _sampler(contestant, parameters, trials, seed)
    objectives = evaluations.problem.objectives
    if contestant.focus is not None:
        knowledge, charge = guidance()
        start = -int(-charge // 1)
        sampler = GuidedSampler(knowledge, objectives, (), seed, contestant.focus)
    study = optuna.create_study(directions=[o.direction for o in objectives], sampler=sampler)
    if contestant.presets:
        for preset in evaluations.space.presets()[:trials]:
            study.enqueue_trial({n: preset.get(n, 0) for n in parameters})
    number, spent = start, 0.0
    while number < trials:
        begin = time.thread_time()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trial = study.ask()
            _ = trial.relative_params  # without it enqueued trials never become parents
            genotype = {n: trial.suggest_int(n, 0, k - 1) for n, k in parameters.items()}
        asked = time.thread_time() - begin
        spent += asked
        if contestant.sampler == "gp" and spent > GP_CAP_S:
            return
        row = evaluations(evaluations.space.plan(genotype))
        values = row["values"]
        if values is None:
            study.tell(trial, state=TrialState.FAIL)
        else:
            trial.set_user_attr(VALUES, values)
            study.tell(trial, [values[o.name] for o in objectives])
        number += 1
        yield {
            "number": number,
            "genotype": genotype,
            "values": values,
            "ask_s": asked,
            "evaluate_s": row["seconds"],
        }


def _sampler(
    contestant: Contestant, parameters: Mapping[str, int], trials: int, seed: int
) -> BaseSampler | None:
    if contestant.focus is not None:
        return None
    if contestant.sampler == "tpe-multivariate":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return optuna.samplers.TPESampler(multivariate=True, seed=seed)
    return make_sampler(contestant.sampler, parameters, seed=seed, trials=trials)
