"""A compression task: the network, its data and how it is scored."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

Predict = Callable[[Tensor], Tensor]
"""batch (n, ...) float32 -> outputs (n, ...): the torch network or an exported file."""


Loss = Callable[[Tensor, Tensor], Any]
"""(outputs, targets) -> scalar: a batch's mean."""


class Examples(Protocol):
    """Examples in a fixed order: what a score reads."""

    name: str  # of a split: "train", "search" or "evaluate"
    labelled: bool

    def __len__(self) -> int: ...

    def batches(
        self, size: int, limit: int | None = None
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        """(inputs, targets) in order: inputs (n, ...) float32, ready for the network; targets as
        the data gives them (class numbers: int64 (n,)) or None. At most ``limit`` examples."""
        ...


class Split(Examples, Protocol):
    """A fixed, ordered set of examples, and what training and checks need of it."""

    black: Tensor | None  # a black pixel (C,) as the network gets it, where inputs are images

    def take(self, rows: np.ndarray) -> tuple[Tensor, Tensor | None]:
        """(inputs, targets) of the examples at ``rows`` (int64 (n,), any order), as in batches."""
        ...

    def part(self, name: str, rows: np.ndarray) -> Split:
        """The examples at ``rows``, in that order, as a split of their own."""
        ...

    def digests(self) -> list[bytes]:
        """A 16-byte digest of each example's content, in order (overlap is found by them)."""
        ...


@dataclass(frozen=True)
class ScoreResult:
    """What a score gives on one split.

    values: e.g. ``{"accuracy": 0.91, "loss": 0.3}``, or ``fidelity`` and ``divergence`` without
    labels. errors: one standard error for the values that have one. count: examples used.
    right: whether each example was answered rightly, (count,) bool, where that is what is scored.
    """

    values: dict[str, float]
    errors: dict[str, float]
    count: int
    right: Tensor | None = field(default=None, compare=False)


class Score(Protocol):
    """Scores predictions, so that one function serves the torch network and the exported file."""

    name: str  # the value that a search maximises: "accuracy" or "fidelity"

    def measure(self, predict: Predict, split: Examples, batch: int = 100) -> ScoreResult:
        """Score ``predict`` on every example of ``split``."""
        ...


@dataclass(frozen=True)
class Task:
    """Everything about WHAT is compressed.

    network: eval mode, CPU, float32; never modified by paretune.
    example: one input (1, ...) float32, ready for the network.
    train: calibration and recovery; search: scores during the search; evaluate: final figures.
    fingerprint: digest over the weights and the three splits.
    loss: the user's (outputs, targets) -> scalar, divergence: (original, candidate) -> scalar;
        None: cross-entropy, KL.
    """

    name: str
    network: nn.Module
    example: Tensor
    train: Split
    search: Split
    evaluate: Split
    score: Score
    fingerprint: str
    description: dict[str, Any] = field(default_factory=dict)  # model, data, counts: for people
    loss: Loss | None = None
    divergence: Loss | None = None

    def calibration(self, count: int = 256, batch: int = 64) -> list[Tensor]:
        """The first ``count`` training inputs as float32 batches."""
        return [inputs for inputs, _ in self.train.batches(batch, limit=count)]

    def network_predict(self, inputs: Tensor) -> Tensor:
        """Outputs of the uncompressed network."""
        with torch.inference_mode():
            return self.network(inputs)  # type: ignore[no-any-return]
