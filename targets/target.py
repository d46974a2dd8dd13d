"""The contract of a place where models run: export to it, run there, time it there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from ..spaces.choices import Choices
from .speed_states import SpeedStates


@dataclass(frozen=True)
class Bits:
    """Bit-widths of one layer in the exported file (32 = float32)."""

    weight: int = 32
    activation: int = 32


@dataclass(frozen=True, eq=False)
class Grid:
    """The values that one layer's weights lie on, and the ranges of its activations.

    weight = (integer - zero_point) * weight_scale; the weights handed over lie on it already.
    weight_scale: float32, (), (out,) or (out, groups): of all weights, of an output channel, of a
        run of neighbouring weights of a channel. zero_point: None (zero) or integers like it; then
        integers start at 0. Both belong to the module's own weights: an exporter that folds a
        BatchNorm into them scales them alike.
    input_range: the smallest and largest value of its 8-bit input (zero between them); None = by
        the exporter's own calibration. output_range: the same of its result, behind a BatchNorm.
    """

    weight_scale: np.ndarray
    input_range: tuple[float, float] | None = None
    output_range: tuple[float, float] | None = None
    zero_point: np.ndarray | None = None


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


class Runtime(Protocol):
    """An exported file loaded in its runtime."""

    def predict(self, inputs: np.ndarray) -> np.ndarray:
        """Outputs for a float32 batch, first axis = examples."""
        ...


class Target(Protocol):
    """A runtime on some hardware. Implementations live one per file and are listed in TARGETS.

    format: extension of the exported file, e.g. "onnx". states: speed states that timings are
    compared within; None = learned at the next timing.
    """

    name: str
    choices: Choices
    format: str
    states: SpeedStates | None

    @property
    def description(self) -> dict[str, Any]:
        """Versions, options and hardware as plain JSON: the conditions of a measurement."""
        ...

    def export(
        self,
        network: nn.Module,
        example: torch.Tensor,
        bits: Mapping[str, Bits],
        calibration: Iterable[np.ndarray],
        path: Path,
        grids: Mapping[str, Grid] | None = None,
    ) -> None:
        """Write ``network`` as the file that this runtime loads.

        network: in eval mode, on the CPU; not modified. example: (1, ...) float32.
        bits: module name in ``network`` -> Bits, for its convolutions and linear layers; a layer
            not named stays float32. calibration: float32 batches for activation ranges (used only
            when some activation has fewer than 32 bits). grids: layer -> the steps it was
            trained or rounded with, used instead of the exporter's own.
        Raises CandidateError naming the layer or operator that cannot be exported.
        """
        ...

    def load(self, path: Path, threads: int = 1) -> Runtime:
        """The exported file, ready to run. Raises CandidateError when the runtime refuses it."""
        ...

    def time(self, path: Path, baseline: Path, inputs: np.ndarray) -> Timing:
        """Latency of ``path`` beside ``baseline`` for the batch ``inputs`` (float32)."""
        ...
