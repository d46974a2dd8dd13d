"""One measured plan and where it stands among the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..spaces.plan import CompressionPlan
from .evaluation import Evaluation


@dataclass(frozen=True)
class Point:
    """One measured plan and where it stands.

    number: of its trial. parent: the trial it was recovered from. evaluation: the numbers shown,
    those of the ``confirm`` rung where there are any.
    front: nothing measured beats it. feasible: it meets the constraints. trusted: it has every
    objective (only such points can be on the front).
    tie: the number of the point that leads its tie group, None when it ties with nothing.
    summary: what the plan does, in one line.
    """

    number: int
    evaluation: Evaluation
    parent: int | None = None
    front: bool = False
    feasible: bool = True
    trusted: bool = True
    tie: int | None = None
    summary: str = ""

    @property
    def plan(self) -> CompressionPlan:
        return self.evaluation.plan

    @property
    def values(self) -> Mapping[str, float]:
        return self.evaluation.values

    @property
    def errors(self) -> Mapping[str, float]:
        return self.evaluation.errors

    @property
    def rung(self) -> str:
        return self.evaluation.rung
