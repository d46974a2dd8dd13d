"""The ``compress`` section of a job file: how plans are carried out."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from .section import Section


class CompressSection(Section):
    """HOW a plan is carried out, for all layers alike.

    importance: which channels stay: activation (what they contribute to their readers), l1, l2,
        bn_scale, fpgm, taylor, activation_mean, weight_activation, obs (which the others can stand
        in for once layers are refitted; see reconstruct) or random.
    importance_mix: weight_activation: from weights alone (0) to activations alone (1).
    importance_seed: random: the draw.
    zeros: which weights become zero: the smallest (magnitude), or the smallest weight times
        gradient (gradient).
    normalise: how BatchNorm statistics are re-estimated after a cut: differential, plain or none.
    whiten: low-rank factors that change a layer's outputs on the calibration inputs least, instead
        of its weights.
    reconstruct: layers that were factorised or read cut channels are refitted to the original's
        outputs.
    refine: gradient steps after that, which draw the answers to the original's on the calibration
        inputs (`target.calibration` of them, unlabelled); 0 = none.
    ranges: how the range of rounded weights is chosen: minmax, percentile, mse (least squared
        error) or entropy; absent: mse up to 4 bits, else minmax. activation_ranges: the same for
        8-bit activations. rounding: weights go to the nearest value, or to the one learned against
        the layer's results (seconds a layer). bias_correction: layers of low bits get the mean
        results of the float network back. symmetric: weights whose activations stay float32 have
        no zero point. scales: of such weights, one for the ``tensor``, a ``channel``, or so many
        neighbouring weights. linears: ``blocks`` leaves a transformer's low-bit linear
        layers to ONNX Runtime's own rounding, stored as MatMulNBits.
    """

    importance: Literal[
        "activation",
        "l1",
        "l2",
        "bn_scale",
        "fpgm",
        "taylor",
        "activation_mean",
        "weight_activation",
        "obs",
        "random",
    ] = "obs"
    importance_mix: Annotated[float, Field(ge=0, le=1)] = 0.5
    importance_seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 0
    zeros: Literal["magnitude", "gradient"] = "magnitude"
    normalise: Literal["differential", "plain", "none"] = "differential"
    whiten: bool = True
    reconstruct: bool = True
    refine: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    ranges: Literal["minmax", "percentile", "mse", "entropy"] | None = None
    activation_ranges: Literal["minmax", "percentile", "mse", "entropy"] = "minmax"
    rounding: Literal["nearest", "learned"] = "nearest"
    bias_correction: bool = True
    symmetric: bool = True
    linears: Literal["packed", "blocks"] = "packed"
    scales: Literal["channel", "tensor"] | Annotated[int, Field(ge=2, le=65536)] = "channel"
