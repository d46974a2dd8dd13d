"""What is remembered of a trial: the proposal, before it is tried, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..objectives.evaluation import Evaluation
from ..spaces.plan import CompressionPlan

BASELINE = -1  # the number of the identity plan, which is no trial


@dataclass(frozen=True)
class Ask:
    """One proposal, recorded before it is tried.

    number: 0, 1, 2 ...: the only identity of a trial.
    params: the sampler's genotype, option index per parameter.
    system_attrs: the sampler's notes on this trial; study_attrs: its notes on the whole search
        that changed with this proposal. Both are needed to go on after an interruption as if
        there had been none.
    burnt: proposals dropped as duplicates just before this one (params and notes).
    parent: number of the trial that this one recovers, else None.
    """

    number: int
    plan: CompressionPlan
    params: Mapping[str, int]
    system_attrs: Mapping[str, Any]
    study_attrs: Mapping[str, Any]
    burnt: tuple[Mapping[str, Any], ...] = ()
    parent: int | None = None


@dataclass(frozen=True)
class Row:
    """One evaluation in the study. finished_at: seconds since 1970."""

    number: int
    evaluation: Evaluation
    parent: int | None
    finished_at: float
