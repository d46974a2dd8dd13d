"""How the learning rate goes through a training."""

from __future__ import annotations

import math

SCHEDULES = ("cosine", "constant", "step")
STEPS = ((0.5, 0.1), (0.75, 0.01))  # He et al. 2015, section 4.2: a tenth at half, then again


def rate_factor(kind: str, progress: float, warmup: float = 0.0) -> float:
    """The share of the learning rate at ``progress`` (0 to 1 of the training, warm-up included).

    During the first ``warmup`` of the training it rises linearly to 1. Then ``cosine``:
    (1 + cos(pi p)) / 2, p = progress after the warm-up (Loshchilov and Hutter 2017, equation 5);
    ``step``: a tenth after half of the training and again after three quarters; ``constant``: 1.
    """
    progress = min(1.0, max(0.0, progress))
    if progress < warmup:
        return progress / warmup
    if kind == "cosine":
        after = (progress - warmup) / (1.0 - warmup)
        return (1.0 + math.cos(math.pi * after)) / 2.0
    if kind == "step":
        return next((factor for start, factor in reversed(STEPS) if progress >= start), 1.0)
    return 1.0
