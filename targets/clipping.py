"""Where to clip values before they are rounded: min-max, percentile, least squares, entropy."""

from __future__ import annotations

import numpy as np

from ..errors import InputError, nearest

RANGES = ("minmax", "percentile", "mse", "entropy")
PERCENTILE = 99.9
"""Of the weights of a row; activations have many more values (see onnx_calibrate)."""
_SHARES = np.linspace(1.0, 0.2, 41)
_BINS = 2048


def clip_rows(rows: np.ndarray, levels: int, ranges: str, symmetric: bool) -> np.ndarray:
    """The range each row is clipped to: (2, rows), lower ends and upper ends, zero between them.

    rows: (r, n) finite values. levels: how many steps the range is divided into later.
    ranges: ``"minmax"`` clips nothing; ``"percentile"`` keeps the middle 99.9 %; ``"mse"`` takes
    the share of the min-max range whose rounded values are nearest to the row in the mean square
    (41 shares from 1 to 0.2; Banner et al., "Post Training 4-bit Quantization of Convolutional
    Networks", NeurIPS 2019, section 3, searched instead of solved); ``"entropy"`` the share whose
    histogram loses the least information (Migacz, "8-bit Inference with TensorRT", GTC 2017),
    found for all rows together, each over its largest value.
    symmetric: the upper end is minus the lower one.

    Raises InputError on an unknown name.
    """
    low, high = np.minimum(rows.min(axis=1), 0), np.maximum(rows.max(axis=1), 0)
    if symmetric:
        high = np.maximum(high, -low)
        low = -high
    if ranges == "minmax":
        return np.stack([low, high])
    if ranges == "percentile":
        if symmetric:
            high = np.percentile(np.abs(rows), PERCENTILE, axis=1)
            return np.stack([-high, high])
        ends = np.percentile(rows, [(100 - PERCENTILE) / 2, (100 + PERCENTILE) / 2], axis=1)
        return np.stack([np.minimum(ends[0], 0), np.maximum(ends[1], 0)])
    if ranges == "mse":
        errors = np.stack([_error(rows, low * s, high * s, levels) for s in _SHARES])
        share = _SHARES[errors.argmin(axis=0)]
        return np.stack([low * share, high * share])
    if ranges == "entropy":
        largest = np.maximum(high, -low)
        alive = largest > 0
        if not alive.any():
            return np.stack([low, high])
        part = np.abs(rows[alive]) / largest[alive, None]
        histogram, _ = np.histogram(part, bins=_BINS, range=(0, 1))
        limit = entropy_limit(histogram, max(levels // 2, 2)) / _BINS * largest
        return np.stack([np.maximum(low, -limit), np.minimum(high, limit)])
    raise InputError("ranges", f"unknown {ranges!r}", nearest(ranges, RANGES))


def entropy_limit(histogram: np.ndarray, levels: int) -> int:
    """How many of the first bins to keep so that rounding to ``levels`` loses least information.

    The divergence of Kullback and Leibler between the clipped histogram (what lies beyond is
    added to its last bin) and the same one rounded to ``levels`` values.
    """
    counts = histogram.astype(np.float64)
    best, least = len(counts), np.inf
    for end in range(max(levels, 16), len(counts) + 1, max(1, len(counts) // 128)):
        clipped = counts[:end].copy()
        clipped[-1] += counts[end:].sum()
        place = np.arange(end) * levels // end
        filled = counts[:end] > 0
        mass = np.bincount(place, counts[:end], levels)
        width = np.bincount(place, filled, levels)
        rounded = np.where(filled, mass[place] / np.maximum(width[place], 1), 0)
        p, q = clipped / max(clipped.sum(), 1), rounded / max(rounded.sum(), 1)
        held = p > 0
        loss = float(np.sum(p[held] * np.log(p[held] / np.maximum(q[held], 1e-12))))
        if loss < least:
            best, least = end, loss
    return best


def _error(rows: np.ndarray, low: np.ndarray, high: np.ndarray, levels: int) -> np.ndarray:
    step = np.maximum((high - low) / levels, np.finfo(np.float32).tiny)[:, None]
    first, last = np.rint(low[:, None] / step), np.rint(high[:, None] / step)
    rounded = np.clip(np.rint(rows / step), first, last) * step
    return np.asarray(np.square(rounded - rows).sum(axis=1))
