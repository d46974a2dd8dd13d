"""How sure a difference of two shares is when both were counted on the same examples."""

from __future__ import annotations

import base64
import math

import numpy as np
from torch import Tensor


def packed(right: Tensor) -> str:
    """Answers (n,) bool as text, for the notes of an evaluation: a bit an example."""
    return base64.b64encode(np.packbits(right.numpy()).tobytes()).decode()


def paired_error(right: Tensor, other: object) -> float | None:
    """One standard error of the difference of two shares, or None if they cannot be compared.

    right: answers (n,) bool. other: :func:`packed` answers to the same examples. Two networks err
    on mostly the same examples, so their difference is far surer than either share: with b and c
    examples that only one of them answers rightly, sqrt(b + c - (b - c)^2 / n) / n (McNemar 1947;
    Agresti, "Categorical Data Analysis", section 11.1). Where they never differ, as if once.
    """
    count = len(right)
    if not isinstance(other, str):
        return None
    bits = np.frombuffer(base64.b64decode(other), dtype=np.uint8)
    if len(bits) != -(-count // 8):
        return None
    theirs = np.unpackbits(bits, count=count).astype(bool)
    mine = right.numpy()
    gained, lost = int((mine & ~theirs).sum()), int((theirs & ~mine).sum())
    return math.sqrt(max(1.0, gained + lost - (gained - lost) ** 2 / count)) / count
