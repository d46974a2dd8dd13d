"""What a timing gives: a candidate's time in units of the baseline, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

LOOP_NEAR = 0.2
"""How much longer than at its best the reference loop may take on a core of its own (relative)."""


@dataclass(frozen=True)
class Timing:
    """Latency of a candidate beside the baseline, measured interleaved in one process.

    ratio: candidate over baseline, each left alone by its neighbours (see timing.py).
    ratio_error: one standard error of ``ratio``.
    baseline_ms: the baseline's undisturbed time, milliseconds for one batch.
    state: which of the known speed states that is; share: of the baseline's groups that were in it.
    rounds: rounds made. unstable: no known state, or no clear answer; then the numbers are not to
        be used. loop_ms: the reference loop's undisturbed time meanwhile, milliseconds (0: not
        timed); loop_ratio: over its best on this machine (see timing.py).
    notes: diagnostics (minimum, quantiles, threads, pinned core).
    """

    ratio: float
    ratio_error: float
    baseline_ms: float
    rounds: int
    state: int = 0
    share: float = 1.0
    unstable: bool = False
    loop_ms: float = 0.0
    loop_ratio: float = 1.0
    notes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def own_core(self) -> bool:
        """Whether nothing else computed on the same core, as far as the reference loop tells."""
        return self.loop_ratio <= 1 + LOOP_NEAR

    @property
    def latency_ms(self) -> float:
        """Milliseconds for one batch: the ratio times the baseline's level."""
        return self.ratio * self.baseline_ms
