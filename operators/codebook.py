"""Weights that take few free values: a k-means codebook, or sums of powers of two."""

from __future__ import annotations

import itertools

import numpy as np

from ..targets.target import Grid
from ..targets.uniform import to_floats, to_integers

_SWEEPS = 100
_BINS = 400
_SHARES = np.linspace(0.3, 1.2, 91)


def kmeans_1d(values: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """``count`` means of ``values`` and the index of the nearest for each: (k,), (n,).

    Lloyd's iteration on sorted values (a cluster is a run of them, so sums come from one running
    total), begun at the optimum for the values in 400 bins of equal width (dynamic programming,
    Wang & Song, "Ckmeans.1d.dp", R Journal 2011). Fewer means where there are fewer values.
    """
    flat = np.sort(values.reshape(-1).astype(np.float64))
    distinct = np.unique(flat)
    means = distinct if len(distinct) <= count else _lloyd(flat, _binned_optimum(flat, count))
    place = np.searchsorted((means[1:] + means[:-1]) / 2, values.reshape(-1).astype(np.float64))
    return means, place


def _binned_optimum(flat: np.ndarray, count: int) -> np.ndarray:
    """The best ``count`` means of bins of sorted values, each with its size and its mean."""
    place = ((flat - flat[0]) / (flat[-1] - flat[0]) * (_BINS - 1)).astype(int)
    sizes = np.bincount(place, minlength=_BINS).astype(np.float64)
    sums = np.bincount(place, flat, minlength=_BINS)
    squares = np.bincount(place, flat * flat, minlength=_BINS)
    if (sizes > 0).sum() <= count:  # a few far values hold the bins: even quantiles instead
        even: np.ndarray = np.quantile(flat, (np.arange(count) + 0.5) / count)
        return even
    n, s, q = (np.concatenate([[0.0], np.cumsum(x)]) for x in (sizes, sums, squares))
    held = n[None, :] - n[:, None]
    mean = np.divide(s[None, :] - s[:, None], held, out=np.zeros_like(held), where=held > 0)
    cost = np.where(held > 0, q[None, :] - q[:, None] - held * mean**2, 0.0)
    cost[np.tril_indices(len(n), -1)] = np.inf  # [i, j]: bins i to j - 1 in one cluster
    least, cuts = cost[0], []
    for _ in range(count - 1):
        tried = least[:, None] + cost
        cuts.append(tried.argmin(axis=0))
        least = tried.min(axis=0)
    ends = [len(n) - 1]
    for cut in reversed(cuts):
        ends.append(int(cut[ends[-1]]))
    edges = [0, *reversed(ends)]
    return np.sort([mean[i, j] for i, j in zip(edges[:-1], edges[1:], strict=True)])


def _lloyd(flat: np.ndarray, means: np.ndarray) -> np.ndarray:
    """The means that no further step improves, from these."""
    total = np.concatenate([[0.0], np.cumsum(flat)])
    ends = np.zeros(0, dtype=int)
    for _ in range(_SWEEPS):
        cuts = np.searchsorted(flat, (means[1:] + means[:-1]) / 2)
        found = np.concatenate([[0], cuts, [len(flat)]])
        if np.array_equal(found, ends):
            break
        ends = found
        sizes = np.diff(ends)
        sums = total[ends[1:]] - total[ends[:-1]]
        means = np.where(sizes > 0, sums / np.maximum(sizes, 1), means)
    return means


def to_codebook(weight: np.ndarray, bits: int) -> np.ndarray:
    """``weight`` with each value replaced by the nearest of ``2**bits`` means of the layer.

    Weight clustering without retraining (Han et al., "Deep Compression", ICLR 2016, section 3).
    Where weights are zero, one of the means is.
    """
    means, place = kmeans_1d(weight, 2**bits)
    if not weight.all():
        means[np.abs(means).argmin()] = 0
    nearest: np.ndarray = means[place].reshape(weight.shape).astype(np.float32)
    return nearest


def apot_levels(bits: int) -> np.ndarray:
    """The non-negative levels of ``bits``-bit additive powers of two, ascending from 0 to 1.

    Li et al., "Additive Powers-of-Two Quantization" (ICLR 2020), section 2.2, equation 5: of the
    bits, one is the sign; the others are spent two at a time, each pair on one term out of
    {0, 2^-i, 2^-(i+n), 2^-(i+2n)} (n terms, i the term's number from 0), a last single bit on a
    term {0, 2^-i}; the levels are all their sums, over the largest.
    """
    pairs, single = divmod(bits - 1, 2)
    count = pairs + single
    terms = []
    for term in range(count):
        depth = 3 if term < pairs else 1
        terms.append([0.0, *(2.0 ** -(term + count * k) for k in range(depth))])
    sums = np.unique([sum(choice) for choice in itertools.product(*terms)])
    return np.asarray(sums / sums[-1])


def apot_unit(bits: int) -> int:
    """How many units of the finest power the largest level is: levels times this are integers."""
    levels = apot_levels(bits)
    for unit in range(1, 4096):
        if np.allclose(levels * unit, np.rint(levels * unit), atol=1e-9):
            return unit
    raise ValueError(bits)


def to_apot(weight: np.ndarray, bits: int) -> tuple[np.ndarray, Grid | None]:
    """``weight`` on additive powers of two, scaled per output channel, and its grid.

    weight: (out, ...). The largest level of each channel is the one with the least squared error
    of 91 between 0.3 and 1.2 of its largest weight. The levels are integers times a step, so up
    to 4 bits they are stored exactly as INT8; the grid is None where they need more.
    """
    rows = weight.reshape(len(weight), -1).astype(np.float64)
    levels, unit = apot_levels(bits), apot_unit(bits)
    largest = np.abs(rows).max(axis=1)
    largest = np.where(largest > 0, largest, 1.0)
    errors = np.stack([_apot_error(rows, largest * share, levels) for share in _SHARES])
    scale = (largest * _SHARES[errors.argmin(axis=0)] / unit).astype(np.float32)
    units = _nearest(rows / (scale[:, None] * unit), levels) * unit
    integers = np.rint(units).astype(np.int32).reshape(weight.shape)
    grid = Grid(scale)
    real = to_floats(integers, grid)
    exact = unit <= 127 and np.array_equal(to_integers(real, grid, -unit, unit), integers)
    return real, grid if exact else None


def _nearest(values: np.ndarray, levels: np.ndarray) -> np.ndarray:
    place = np.searchsorted((levels[1:] + levels[:-1]) / 2, np.abs(values))
    return np.asarray(np.sign(values) * levels[place])


def _apot_error(rows: np.ndarray, largest: np.ndarray, levels: np.ndarray) -> np.ndarray:
    rounded = _nearest(rows / largest[:, None], levels) * largest[:, None]
    return np.asarray(np.square(rounded - rows).sum(axis=1))
