"""Uniform quantisation of weights: integers and scales, as ONNX's QuantizeLinear computes them."""

from __future__ import annotations

import numpy as np

from ..errors import CandidateError
from .clipping import clip_rows
from .target import Grid

LOW_BITS = 4
"""Up to so many bits the range is by default clipped to the least mean square error."""


def limits(bits: int, symmetric: bool = True, reduce_range: bool = False) -> tuple[int, int]:
    """The smallest and largest integer of a weight.

    Symmetric ones leave out -2**(bits - 1), so that a weight and its opposite are both on the
    grid (2 bits are -1, 0, 1). reduce_range: 8-bit weights lie between -64 and 64.

    >>> limits(4), limits(4, symmetric=False)
    ((-7, 7), (0, 15))
    """
    if not symmetric:
        return 0, 2**bits - 1
    most = 64 if reduce_range and bits == 8 else 2 ** (bits - 1) - 1
    return -most, most


def default_ranges(bits: int) -> str:
    """How the range of weights is chosen where nothing is said: least squares up to 4 bits."""
    return "mse" if bits <= LOW_BITS else "minmax"


def weight_grid(
    weight: np.ndarray,
    bits: int,
    *,
    ranges: str | None = None,
    symmetric: bool = True,
    per: str | int = "channel",
    reduce_range: bool = False,
    name: str = "weight",
) -> Grid:
    """The grid for ``weight``: scales (and zero points) of ``bits`` bits.

    weight: (out, ...) finite. per: ``"tensor"``, ``"channel"`` (axis 0), or a number: so many
    neighbouring weights of a channel share a scale (a channel's size that is not a multiple has
    one scale). ranges: see :func:`paretune.targets.clipping.clip_rows`; None = by the bits.

    Raises CandidateError naming the layer when a weight is not finite.
    """
    if not np.isfinite(weight).all():
        raise CandidateError(f"{name}: its weights are not finite (NaN or infinite)")
    shape = scale_shape(weight.shape, per)
    low, high = limits(bits, symmetric, reduce_range)
    rows = weight.reshape(int(np.prod(shape, dtype=int)), -1).astype(np.float64)
    least, most = clip_rows(rows, high - low, ranges or default_ranges(bits), symmetric)
    scale = ((most - least) / (high - low)).astype(np.float32)
    usual = np.median(scale[scale > 0]) if (scale > 0).any() else np.float32(1)
    scale = np.where(scale > np.finfo(np.float32).tiny, scale, np.float32(usual))
    zero = np.zeros_like(scale, dtype=np.int32)
    if not symmetric:
        zero = np.clip(np.rint(low - least / scale), low, high).astype(np.int32)
    return Grid(
        weight_scale=scale.astype(np.float32).reshape(shape),
        zero_point=None if symmetric else zero.reshape(shape),
    )


def scale_shape(weight: tuple[int, ...], per: str | int) -> tuple[int, ...]:
    """The shape of the scales of a weight of this shape: (), (out,) or (out, groups)."""
    if per == "tensor":
        return ()
    size = int(np.prod(weight[1:], dtype=int))
    if isinstance(per, int) and size > per and size % per == 0:
        return (weight[0], size // per)
    return (weight[0],)


def to_integers(weight: np.ndarray, grid: Grid, low: int = -128, high: int = 127) -> np.ndarray:
    """Integers (int32) nearest to ``weight`` on ``grid``, half to even, from ``low`` to ``high``.

    The same bits as ONNX's QuantizeLinear gives, which divides in float32 and then rounds.
    """
    scale, zero = grid.weight_scale, grid.zero_point
    rows = weight.astype(np.float32).reshape(*scale.shape, -1)
    integers = np.rint(rows / scale[..., None].astype(np.float32))
    if zero is not None:
        integers = integers + zero[..., None]
    return np.clip(integers, low, high).astype(np.int32).reshape(weight.shape)


def to_floats(integers: np.ndarray, grid: Grid) -> np.ndarray:
    """The weights (float32) that ``integers`` stand for: ONNX's DequantizeLinear."""
    scale, zero = grid.weight_scale, grid.zero_point
    rows = integers.reshape(*scale.shape, -1)
    if zero is not None:
        rows = rows - zero[..., None]
    real = rows.astype(np.float32) * scale[..., None].astype(np.float32)
    return np.asarray(real.reshape(integers.shape))
