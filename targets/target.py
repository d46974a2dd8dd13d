"""The contract of a place where models run: export to it, run there, time it there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ..spaces.choices import Choices
from .speed_states import SpeedStates
from .timing_result import Timing as Timing

if TYPE_CHECKING:  # the front is read where torch need not be loaded
    import torch
    from torch import nn


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
