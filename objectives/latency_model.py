"""Latency of any plan from a few measured ones: a sum over layers, fitted on the target itself.

A layer's time is taken as linear in its multiply-accumulates (channels filled up to the runtime's
vector width), its outputs, its weights (which come from memory) and a fixed cost, apart for float32
and for int8, and what passes from one to the other is converted. The factors are fitted to real
candidates of the space that are exported and timed beside the baseline; then each layer's time in
float32 and in int8 is corrected by a factor of its own, as far as these timings bear it out (ridge
regression towards one). So what the runtime does well or badly (a factorised int8 layer can be
slower than a whole one, a stem of few channels slower than its arithmetic) is learned on the
machine that counts. Measured values never come from here: it only tells a search what is worth
measuring.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

import numpy as np
from scipy.optimize import nnls
from scipy.stats import spearmanr

from ..spaces.plan import CompressionPlan
from .layer_shapes import LayerShapes

VERSION = 4
WIDTHS = ((1, 1), (1, 16), (4, 16), (8, 16))
"""Channels that may be computed together in float32 and in int8: the fit takes what fits best."""
_RIDGES = (np.inf, 0.1, 0.03, 0.01, 0.003, 0.001)  # of the layers' own factors, towards one
_COUNTED = 16  # features of the layers themselves
_OWN = 0.3, 3.0  # a layer's own factor lies between these

Widths = tuple[int, int]
Floats = np.ndarray[Any, np.dtype[np.float64]]


def features(shapes: LayerShapes, widths: Widths) -> Floats:
    """What the time of each layer is a sum of, (layers, 18): millions of multiply-accumulates with
    filled-up channels, millions of outputs, millions of weights, and layers; for float32 and then
    for int8, each for k x k kernels and then for 1 x 1 and linear layers; at last millions of
    values that are converted from one to the other on their way to this layer, and how often."""
    out = np.zeros((len(shapes.layers), _COUNTED + 2))
    before = passed = 0
    for row, (name, factors) in zip(out, shapes.layers.items(), strict=True):
        rounded = int(shapes.bits[name][1] < 16)
        if rounded != before:
            row[_COUNTED:], before = (passed / 1e6, 1.0), rounded
        for factor in factors:
            made, read = factor.shape[:2]
            pointwise = int(prod(factor.shape[2:]) == 1)
            fill = _fill(made, widths[rounded]) * _fill(read, widths[rounded])
            outputs = made * factor.positions
            at = 8 * rounded + 4 * pointwise
            weights = prod(factor.shape)
            row[at : at + 4] += (factor.macs * fill / 1e6, outputs / 1e6, weights / 1e6, 1.0)
        passed = outputs
    return out


def _fill(channels: int, width: int) -> float:
    """How many times the channels are computed that there are."""
    return -(-channels // width) * width / channels


@dataclass(frozen=True, eq=False)
class LatencyModel:
    """Predicted milliseconds of a plan. widths: see :func:`features`. factors: (19,), of the
    features, none below zero; the last is the rest of the network. own: (layers, 2), each layer's
    own factor in float32 and in int8. error: relative, mean over plans left out of the fit (widths
    and ridge were chosen by it); correlation: their ranks' (Spearman). plans: how many were
    measured; seconds: what that took.
    """

    widths: Widths
    factors: Floats
    own: Floats
    error: float
    correlation: float
    plans: int
    seconds: float = 0.0
    key: str = ""

    def latency_ms(self, plan: CompressionPlan, shapes: LayerShapes) -> float:
        """Milliseconds for one batch, a prediction."""
        rows = features(shapes, self.widths)[None]
        return float(_parts(rows, self.factors)[0] @ np.append(self.own.ravel(), 1.0))

    @classmethod
    def fit(cls, rows: Mapping[Widths, Floats], measured_ms: Floats) -> LatencyModel:
        """From the features (n, layers, 18) of n plans at some widths, and their milliseconds (n,).

        Non-negative least squares of the relative error. Each plan is also predicted from the
        others, and what predicts these best is taken.
        """
        best: tuple[float, Widths, float, Floats] | None = None
        for widths, ridge in product(rows, _RIDGES):
            left_out = _left_out(rows[widths], measured_ms, ridge)
            error = float(np.mean(np.abs(left_out / measured_ms - 1)))
            if best is None or error < best[0]:
                best = error, widths, ridge, left_out
        assert best is not None
        error, widths, ridge, left_out = best
        varied = np.ptp(left_out) > 0 and np.ptp(measured_ms) > 0
        correlation = float(spearmanr(left_out, measured_ms).statistic) if varied else 0.0
        scale = _scale(rows[widths], measured_ms)
        factors, own = _solve(rows[widths], measured_ms, ridge, scale)
        return cls(widths, factors, own, error, correlation, len(measured_ms))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; :meth:`from_json` reads it back equal."""
        arrays = {"factors": self.factors.tolist(), "own": self.own.tolist()}
        return {**vars(self), **arrays, "widths": list(self.widths), "version": VERSION}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> LatencyModel:
        """Read it back; KeyError, TypeError or ValueError where it is none of this version."""
        if data["version"] != VERSION:
            raise ValueError("another version")
        values = {k: v for k, v in data.items() if k != "version"}
        for name in ("factors", "own"):
            values[name] = np.asarray(data[name], dtype=np.float64)
        return cls(**{**values, "widths": tuple(data["widths"])})


def _parts(rows: Floats, factors: Floats) -> Floats:
    """Milliseconds (n, 2 layers + 1): of each layer in float32 and in int8, then of the rest."""
    n, layers, _ = rows.shape
    kinds = rows[:, :, :_COUNTED].reshape(n, layers, 2, -1)
    each = np.einsum("nlkc,kc->nlk", kinds, factors[:_COUNTED].reshape(2, -1)).reshape(n, -1)
    rest = rows[:, :, _COUNTED:].sum(axis=1) @ factors[_COUNTED:-1] + factors[-1]
    return np.hstack([each, rest[:, None]])


def _design(rows: Floats, measured_ms: Floats) -> Floats:
    whole = np.hstack([rows.sum(axis=1), np.ones((len(rows), 1))])
    return np.asarray(whole / measured_ms[:, None])


def _scale(rows: Floats, measured_ms: Floats) -> Floats:
    return np.asarray(np.maximum(np.abs(_design(rows, measured_ms)).max(axis=0), 1e-12))


def _solve(rows: Floats, measured_ms: Floats, ridge: float, scale: Floats) -> tuple[Floats, Floats]:
    """Factors (19,) and each layer's own (layers, 2)."""
    weak = 1e-2 * np.eye(len(scale))  # twins among the columns share
    found, _ = nnls(
        np.vstack([_design(rows, measured_ms) / scale, weak]),
        np.concatenate([np.ones(len(rows)), np.zeros(len(scale))]),
    )
    factors = np.asarray(found / scale, dtype=np.float64)
    own = np.ones((rows.shape[1], 2))
    if np.isfinite(ridge):
        parts = _parts(rows, factors) / measured_ms[:, None]
        each = parts[:, :-1]
        matrix = np.vstack([each, np.sqrt(ridge) * np.eye(each.shape[1])])
        wanted = np.concatenate([1 - parts.sum(axis=1), np.zeros(each.shape[1])])
        more = np.linalg.lstsq(matrix, wanted, rcond=None)[0]
        own = np.clip(1 + more, *_OWN).reshape(own.shape)
    return factors, own


def _left_out(rows: Floats, measured_ms: Floats, ridge: float) -> Floats:
    """Each plan's milliseconds (n,), predicted from the others."""
    scale = _scale(rows, measured_ms)  # of all rows, for all fits
    out = np.empty(len(rows))
    for i in range(len(rows)):
        others = np.delete(rows, i, 0)
        factors, own = _solve(others, np.delete(measured_ms, i), ridge, scale)
        out[i] = _parts(rows[i : i + 1], factors)[0] @ np.append(own.ravel(), 1.0)
    return out
