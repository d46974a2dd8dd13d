"""Which points of a front are worth training, and the trials that they become."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from ..errors import InputError
from ..objectives.evaluation import Evaluation
from ..objectives.front import ParetoFront
from ..objectives.point import Point
from ..objectives.trained import state_path
from ..trackers.ask import Ask
from ..trackers.study import Study
from .display import duration
from .jobs import Result, Workers

STRIDE = 100_000
"""A recovered trial's number is its parent's plus a multiple of this (trials of a search are
fewer): 100017 is the first recovery of trial 17, 200017 its second."""
RECOVERABLE = 0.10
"""The loss of score that a short training can be hoped to win back."""
_SCORES = ("accuracy", "accuracy_drop", "fidelity", "divergence", "loss")


def recovery_asks(study: Study, top: int) -> list[Ask]:
    """The trials that recovery is to run now: begun ones without a result, or newly chosen ones.

    The choice is recorded with the number of trials it was made from; the same search resumed
    gives the same points. Points that were recovered before are not trained again.
    """
    rows = study.rows("measure")
    asks = {ask.number: ask for ask in study.asks()}
    searched = [row for row in rows if row.parent is None]
    known: Mapping[str, Any] = study.get("recover") or {}
    if known.get("trials") != len(searched) or known.get("top") != top:
        chosen = [point.number for point in promising(study, top)]
        known = {"trials": len(searched), "top": top, "points": chosen}
        study.put("recover", known)
    done = {row.number for row in study.rows("recover")}
    wanted = [_ask(asks[number], STRIDE) for number in known["points"]]
    begun = [asks[n] for n in study.in_flight() if asks[n].parent is not None]
    fresh = [ask for ask in wanted if ask.number not in asks]
    return [ask for ask in (*begun, *fresh) if ask.number not in done]


def recovery_of(study: Study, number: int) -> Ask:
    """The next recovery of one finished trial.

    Raises InputError for a number that is no finished trial of the search.
    """
    asks = {ask.number: ask for ask in study.asks()}
    finished = {row.number for row in study.rows("measure") if not row.evaluation.failed}
    if number not in finished or asks[number].parent is not None:
        raise InputError(
            f"trial {number}", "is no finished trial of the search", "see `paretune front`"
        )
    waiting = [n for n in study.in_flight() if asks[n].parent == number]
    if waiting:
        return asks[waiting[0]]
    place = number + STRIDE
    while place in asks:
        place += STRIDE
    return _ask(asks[number], place - number)


def promising(study: Study, top: int) -> list[Point]:
    """Up to ``top`` points of the search, spread along its front.

    Taken from the front that disregards constraints on the score (training may meet them), within
    ten points of the baseline's score where there are any; values are those of the search split.
    First comes the cheapest; then, each time, the one farthest from those chosen, in the
    logarithms of its costs relative to the baseline.
    """
    rows = [r for r in study.rows("measure") if r.parent is None]
    kept = [c for c in study.job.get("constraints") or () if not _about_score(str(c))]
    front = ParetoFront(
        [(row.number, row.evaluation) for row in rows], study.objectives, kept, study.baseline
    )
    base = study.baseline.plan.fingerprint if study.baseline else ""
    points = [p for p in front.front if p.plan.fingerprint != base and _trainable(p)]
    near = [p for p in points if 0.0 < front.drop(p) <= RECOVERABLE] or points
    names = [o.name for o in study.objectives if not o.maximize]
    places = {p.number: _place(p, names, front.baseline) for p in near}
    left = sorted(near, key=lambda p: (sum(places[p.number]), p.number))
    chosen: list[Point] = left[:1]
    left = left[1:]
    while left and len(chosen) < top:
        far = max(left, key=lambda p: (_nearest(places, p, chosen), -p.number))
        chosen.append(far)
        left.remove(far)
    return chosen


def training(
    asks: Sequence[Ask],
    study: Study,
    pool: Workers,
    baseline: Evaluation,
    results: Callable[..., Iterator[Result]],
    emit: Callable[..., None],
) -> None:
    """Train the points of ``asks`` on the pool's workers and acknowledge each as it is measured.

    results, emit: the driver's. A training's state is removed once its result is on the disk, so
    that it is neither lost nor run twice.
    """
    parents = ", ".join(str(ask.parent) for ask in asks)
    emit("recovering", note=f"{len(asks)} points are trained: {parents}")
    for ask in asks:
        pool.submit(ask.number, ask.plan, "recover", baseline)

    def meanwhile() -> None:
        for number, told in pool.progress().items():
            share, note = _in_words(told)
            emit("training", number, note=note, share=share)

    for result in results(len(asks), meanwhile):
        study.finish(result.job_id, result.evaluation)
        state_path(study.folder, result.job_id).unlink(missing_ok=True)
        emit("recovered", result.job_id, result.evaluation, result.seconds)


def _in_words(told: Mapping[str, Any]) -> tuple[float | None, str]:
    """(share done, ``epoch 2/3, loss 0.412, held out 91.20 %, about 3 min left``)."""
    epochs, left, seconds = told["epochs"], told["seconds_left"], told["seconds"]
    words = [f"epoch {told['epoch']}" + (f"/{epochs}" if epochs else "")]
    words.append(f"loss {told['loss']:.3f}")
    if told["score"] is not None:
        words.append(f"held out {100 * told['score']:.2f} %")
    if left is None:
        return None, ", ".join(words)
    words.append(f"about {duration(left)} left")
    return seconds / (seconds + left) if seconds + left else None, ", ".join(words)


def _ask(parent: Ask, stride: int) -> Ask:
    return Ask(parent.number + stride, parent.plan, parent.params, {}, {}, (), parent.number)


def _trainable(point: Point) -> bool:
    """Codebooks and sums of powers of two would not survive training."""
    return all(choice.quantizer == "uniform" for choice in point.plan.layers.values())


def _about_score(constraint: str) -> bool:
    return any(name in _SCORES for name in re.findall(r"[a-z_]+", constraint))


def _place(point: Point, names: Sequence[str], baseline: Any) -> list[float]:
    base = baseline.values if baseline is not None else {}
    return [
        math.log(max(point.values[n], 1e-12) / base[n]) if base.get(n) else point.values[n]
        for n in names
    ]


def _nearest(places: Mapping[int, list[float]], point: Point, chosen: Iterable[Point]) -> float:
    return min(math.dist(places[point.number], places[c.number]) for c in chosen)
