"""Points of the front measured again, on data that the search did not see."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ..objectives.evaluation import Artifact
from ..objectives.point import Point
from ..spaces.plan import CompressionPlan
from ..trackers.ask import BASELINE
from ..trackers.study import Study
from .jobs import Result, Workers


@dataclass(frozen=True)
class Unchanged:
    """The uncompressed network: the plan that changes nothing, and its file if one was kept."""

    plan: CompressionPlan
    artifact: Artifact | None


def confirm(
    front: Sequence[Point],
    near: Sequence[Point],
    unchanged: Unchanged,
    study: Study,
    pool: Workers,
    results: Callable[[int], Iterator[Result]],
    emit: Callable[..., None],
) -> None:
    """Measure points together, the uncompressed network first, and write them down.

    front: those of the front; near: those that an error may have kept off it. Nothing is measured
    where the uncompressed network fails. Some points may fall off the front by
    it, and let others on: those are the caller's next round. results, emit: the driver's.
    """

    def keep(result: Result) -> None:
        if not result.evaluation.failed:
            study.add(result.job_id, result.evaluation)
        emit("confirmed", result.job_id, result.evaluation, result.seconds)

    points = [*front, *near]
    beside = f" and {len(near)} that an error may have kept off it" if near else ""
    emit("confirming", note=f"{len(front)} points of the front{beside}")
    baseline = study.baseline_at("confirm")
    if baseline is None:
        pool.submit(BASELINE, unchanged.plan, "confirm", None, unchanged.artifact)
        (result,) = results(1)
        keep(result)
        baseline = study.baseline_at("confirm")
    if baseline is None:
        return
    for p in points:
        pool.submit(p.number, p.plan, "confirm", baseline, p.evaluation.artifact)
    for result in results(len(points)):
        keep(result)
