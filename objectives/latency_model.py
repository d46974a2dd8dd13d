"""Latency of any plan from a few measured ones: a sum over layers, fitted on the target itself.

A layer's time is taken as linear in its multiply-accumulates (channels filled up to the runtime's
vector width), its outputs and a fixed cost, apart for float32 and for int8, and what passes from
one to the other is converted; the factors are fitted
to real candidates of the space that are exported and timed beside the baseline. So what the
runtime does well or badly (a factorised int8 layer can be slower than a whole one) is learned on
the machine that counts, and no multiply-accumulate is taken for a microsecond. Measured values
never come from here: it only tells a search what is worth measuring.
"""

from __future__ import annotations

import copy
import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import nnls
from scipy.stats import spearmanr
from torch import Tensor

from ..errors import CandidateError
from ..operators.compress import Compressor
from ..spaces.plan import CompressionPlan
from ..spaces.space import SearchSpace
from ..targets.target import Target
from .layer_shapes import LayerShapes, ShapeTable

VERSION = 2
FILE = ".latency_model.json"
PRESETS, RANDOM = 6, 14  # plans that are measured
_CHANGED = 0.3  # of the options of a random plan
_WIDTHS = (8, 16)  # channels that are computed together, in float32 and in int8
_SECONDS = 0.3, 1.0  # of one timing: a small network's needs less for as many rounds
_ROUNDS = 500
_ENOUGH = 10  # plans that are measured although the time is up
_LEAST = 6  # measured plans without which nothing is fitted
_TRIED = 2  # plans that tell how long all will take


def features(shapes: LayerShapes) -> np.ndarray:
    """What the time of a plan is a sum of, (14,): millions of multiply-accumulates with filled-up
    channels, millions of outputs, and layers; for float32 and then for int8, each for k x k
    kernels and then for 1 x 1 and linear layers; at last millions of outputs that are converted
    from one to the other on their way to the next layer, and how often."""
    out = np.zeros((2, 2, 3))
    converted = times = before = passed = 0
    for name, factors in shapes.layers.items():
        rounded = int(shapes.bits[name][1] < 16)
        if rounded != before:
            converted, times, before = converted + passed, times + 1, rounded
        for factor in factors:
            made, read = factor.shape[:2]
            pointwise = int(prod(factor.shape[2:]) == 1)
            fill = _fill(made, rounded) * _fill(read, rounded)
            outputs = made * factor.positions
            out[rounded, pointwise] += (factor.macs * fill / 1e6, outputs / 1e6, 1.0)
        passed = outputs
    return np.append(out, (converted / 1e6, times))


def _fill(channels: int, rounded: int) -> float:
    """How many times the channels are computed that there are."""
    width = _WIDTHS[rounded]
    return -(-channels // width) * width / channels


@dataclass(frozen=True, eq=False)
class LatencyModel:
    """Predicted milliseconds of a plan. factors: (14,), of :func:`features`, none below zero; a
    last one for the rest of the network. error: relative, of plans left out of the fit;
    correlation: their ranks' (Spearman). plans: how many were measured; seconds: what that took.
    """

    factors: np.ndarray
    error: float
    correlation: float
    plans: int
    seconds: float
    key: str = ""

    def latency_ms(self, plan: CompressionPlan, shapes: LayerShapes) -> float:
        """Milliseconds for one batch, a prediction."""
        return float(self.factors[:-1] @ features(shapes) + self.factors[-1])

    @classmethod
    def fit(cls, rows: np.ndarray, measured_ms: np.ndarray) -> LatencyModel:
        """From features (n, 14) and their measured milliseconds (n,): non-negative least squares of
        the relative error; each row is also predicted from the others."""
        relative = _design(rows) / measured_ms[:, None]
        scale = np.maximum(np.abs(relative).max(axis=0), 1e-12)  # of all rows, for all fits
        left_out = measured_ms * [
            relative[i] @ _solve(np.delete(relative, i, 0), scale) for i in range(len(rows))
        ]
        error = float(np.mean(np.abs(left_out / measured_ms - 1)))
        varied = np.ptp(left_out) > 0 and np.ptp(measured_ms) > 0
        correlation = float(spearmanr(left_out, measured_ms).statistic) if varied else 0.0
        return cls(_solve(relative, scale), error, correlation, len(rows), 0.0)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; :meth:`from_json` reads it back equal."""
        return {**vars(self), "factors": self.factors.tolist(), "version": VERSION}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> LatencyModel:
        """Read it back; KeyError, TypeError or ValueError where it is none of this version."""
        if data["version"] != VERSION:
            raise ValueError("another version")
        values = {k: v for k, v in data.items() if k != "version"}
        return cls(**{**values, "factors": np.asarray(data["factors"], dtype=np.float64)})


def _design(rows: np.ndarray) -> np.ndarray:
    return np.hstack([rows, np.ones((len(rows), 1))])


def _solve(relative: np.ndarray, scale: np.ndarray) -> np.ndarray:
    ridge = 1e-2 * np.eye(len(scale))  # twins among the columns share
    found, _ = nnls(
        np.vstack([relative / scale, ridge]),
        np.concatenate([np.ones(len(relative)), np.zeros(len(scale))]),
    )
    return np.asarray(found / scale, dtype=np.float64)


def stored_model(folder: Path, space: SearchSpace, target: Target) -> LatencyModel | None:
    """The model that was fitted in this study folder, if it is of this space and target."""
    try:
        model = LatencyModel.from_json(json.loads((folder / FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return model if model.key == _key(space, target) else None


def fit_latency(
    folder: Path,
    target: Target,
    compressor: Compressor,
    table: ShapeTable,
    example: Tensor,
    calibration: Sequence[np.ndarray],
    inputs: np.ndarray,
    say: Callable[[str], None],
    check: Callable[[], None] = lambda: None,
    seconds: float = np.inf,
) -> LatencyModel | None:
    """Measure some plans of the space on the target, fit, and keep the model in ``folder``.

    example: one input (1, ...). calibration: float32 batches for activation ranges; inputs: the
    batch that is timed. check: is called before every plan and may end it all by an exception.
    seconds: after which no more plans are measured, if there are ten. Raises TimeoutError where ten
    would take more than twice that.
    The files hold quickly made weights: how long they take does not depend on their values.
    None, and said, where too few plans can be timed.
    """
    space = compressor.space
    if (known := stored_model(folder, space, target)) is not None:
        return known
    begin = time.perf_counter()
    watch: Any = copy.copy(target)
    timed = hasattr(watch, "seconds")
    if timed:
        watch.seconds = most = min(watch.seconds, _SECONDS[1])
    rows: list[np.ndarray] = []
    measured, base_ms = [], 0.0
    with tempfile.TemporaryDirectory() as scratch:
        plans = [space.identity, *calibration_plans(space)]
        paths = [Path(scratch) / f"{i}.{target.format}" for i in range(len(plans))]
        for i, (plan, path) in enumerate(zip(plans, paths, strict=True)):
            check()
            took = time.perf_counter() - begin
            if len(rows) >= _ENOUGH and took > seconds:
                break
            if len(rows) == _TRIED and took * _ENOUGH / _TRIED > 2 * seconds:
                raise TimeoutError(
                    f"timing {_ENOUGH} plans to predict latency from would take "
                    f"{took * _ENOUGH / _TRIED:.0f} s, too much of the time limit"
                )
            if i % 6 == 0:
                say(f"latency of {len(plans)} plans, to predict others: {i} measured")
            try:
                made = compressor.shape(plan, quantised=True)
                watch.export(
                    made.network, example, made.bits, iter(calibration), path, grids=made.grids
                )
                timing = watch.time(path, paths[0], inputs)
            except CandidateError:
                if plan is space.identity:
                    break
                continue
            if plan is space.identity:
                base_ms = timing.baseline_ms
                if timed:
                    needed = _ROUNDS * 2 * base_ms / 1000
                    watch.seconds = min(most, max(_SECONDS[0], needed))
            if not timing.unstable:
                rows.append(features(table.shapes(plan)))
                measured.append(timing.ratio)
    if len(rows) < _LEAST:
        say(f"only {len(rows)} plans could be timed: latency is not predicted")
        return None
    fitted = LatencyModel.fit(np.array(rows), base_ms * np.array(measured))
    took = time.perf_counter() - begin
    model = LatencyModel(
        fitted.factors, fitted.error, fitted.correlation, fitted.plans, took, _key(space, target)
    )
    (folder / FILE).write_text(json.dumps(model.to_json()), encoding="utf-8")
    return model


def calibration_plans(space: SearchSpace) -> list[CompressionPlan]:
    """Real candidates from mild to strong: some presets, and plans with a third of all options."""
    presets = sorted(space.presets(), key=lambda genotype: sum(genotype.values()))
    places = np.unique(np.linspace(0, len(presets) - 1, PRESETS).round().astype(int))
    genotypes = [presets[i] for i in places] if presets else []
    rng = np.random.default_rng(0)
    for _ in range(RANDOM):
        genotypes.append(
            {
                name: int(rng.integers(1, count))
                for name, count in space.parameters.items()
                if rng.random() < (0.8 if name.startswith("bits:") else _CHANGED)
            }
        )
    plans = {plan.fingerprint: plan for plan in map(space.plan, genotypes)}
    plans.pop(space.identity.fingerprint, None)
    return list(plans.values())


def _key(space: SearchSpace, target: Target) -> str:
    data = json.dumps([VERSION, space.fingerprint, target.description], sort_keys=True, default=str)
    return hashlib.sha256(data.encode()).hexdigest()[:16]
