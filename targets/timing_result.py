"""What a timing gives: a candidate's time in units of the baseline, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Timing:
    """Latency of a candidate beside the baseline, measured interleaved in one process.

    ratio: candidate over baseline, median over rounds of one speed state.
    ratio_error: one standard error of ``ratio``.
    baseline_ms: the baseline's level in that state, milliseconds for one batch.
    state: which of the speed states learned at the start the rounds belong to; share: of all.
    rounds: rounds used. unstable: too few rounds of one state; then the numbers are not to be used.
    notes: diagnostics (minimum, quantiles, threads, pinned core).
    """

    ratio: float
    ratio_error: float
    baseline_ms: float
    rounds: int
    state: int = 0
    share: float = 1.0
    unstable: bool = False
    notes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def latency_ms(self) -> float:
        """Milliseconds for one batch: the ratio times the baseline's level."""
        return self.ratio * self.baseline_ms
