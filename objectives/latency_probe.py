"""Times some plans of a search space on its target, and fits the latency model to them."""

from __future__ import annotations

import copy
import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..errors import CandidateError
from ..operators.compress import Compressor
from ..spaces.plan import CompressionPlan
from ..spaces.space import SearchSpace
from ..targets.target import Target, Timing
from .latency import Undisturbed
from .latency_model import VERSION, WIDTHS, LatencyModel, features
from .layer_shapes import LayerShapes, ShapeTable

FILE = ".latency_model.json"
PLANS = 10, 30
"""At least and at most so many plans are measured."""
_PRESETS = 6  # of these at most
_CHANGED = 0.1, 0.9  # of the channels and ranks of a random plan, from the mildest to the strongest
_ROUNDED = 1.0, 0.5, 1.0, 0.0  # of its layers, in turn
_SECONDS = 0.3, 1.0  # of one timing: a small network's needs less for as many rounds
_ROUNDS = 500
_LEAST = 6  # measured plans without which nothing is fitted
_TRIED = 3  # plans, the last of which tells how long others will take: the first do more


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
    most: int = PLANS[1],
) -> LatencyModel | None:
    """Measure some plans of the space on the target, fit, and keep the model in ``folder``.

    example: one input (1, ...). calibration: float32 batches for activation ranges; inputs: the
    batch that is timed. check: is called before every plan and may end it all by an exception.
    seconds: after which no more plans are measured, if there are ten; most: how many are in any
    case. Raises TimeoutError where ten would take more than twice those seconds.
    The files hold quickly made weights: how long they take does not depend on their values. Plans
    that could only be timed while a neighbour slowed the baseline down are left out, if ten others
    remain.
    None, and said, where too few plans can be timed.
    """
    space = compressor.space
    if (known := stored_model(folder, space, target)) is not None:
        return known
    begin = time.perf_counter()
    watch: Any = copy.copy(target)
    timed = hasattr(watch, "seconds")
    if timed:
        watch.seconds = longest = min(watch.seconds, _SECONDS[1])
    enough = PLANS[0]
    timed_shapes: list[LayerShapes] = []
    measured: list[Timing] = []
    undisturbed, last = list[bool](), begin
    level = Undisturbed()
    with tempfile.TemporaryDirectory() as scratch:
        plans = [space.identity, *calibration_plans(space, most)]
        paths = [Path(scratch) / f"{i}.{target.format}" for i in range(len(plans))]
        for i, (plan, path) in enumerate(zip(plans, paths, strict=True)):
            check()
            now = time.perf_counter()
            took, each, last = now - begin, now - last, now
            if len(timed_shapes) >= enough and took > seconds:
                break
            whole = took + each * (enough - len(timed_shapes))
            if len(timed_shapes) == _TRIED and whole > 2 * seconds:
                raise TimeoutError(
                    f"timing {enough} plans to predict latency from would take "
                    f"{whole:.0f} s, too much of the time limit"
                )
            if i % 6 == 0:
                say(f"latency of {len(plans)} plans, to predict others: {i} measured")
            try:
                made = compressor.shape(plan, quantised=True)
                watch.export(
                    made.network, example, made.bits, iter(calibration), path, grids=made.grids
                )
                timing, alone = level.timing(partial(watch.time, path, paths[0], inputs))
            except CandidateError:
                if plan is space.identity:
                    break
                continue
            if plan is space.identity and timed:
                needed = _ROUNDS * 2 * timing.baseline_ms / 1000
                watch.seconds = min(longest, max(_SECONDS[0], needed))
            if not timing.unstable:
                timed_shapes.append(table.shapes(plan))
                measured.append(timing)
                undisturbed.append(alone)
    if len(timed_shapes) < _LEAST:
        say(f"only {len(timed_shapes)} plans could be timed: latency is not predicted")
        return None
    used = np.flatnonzero(undisturbed)
    if len(used) < enough:
        used = np.arange(len(measured))
    rows = {w: np.array([features(timed_shapes[i], w) for i in used]) for w in WIDTHS}
    baseline_ms = np.median([measured[i].baseline_ms for i in used])
    fitted = LatencyModel.fit(rows, baseline_ms * np.array([measured[i].ratio for i in used]))
    model = replace(fitted, seconds=time.perf_counter() - begin, key=_key(space, target))
    (folder / FILE).write_text(json.dumps(model.to_json()), encoding="utf-8")
    return model


def calibration_plans(space: SearchSpace, most: int = PLANS[1]) -> list[CompressionPlan]:
    """At most so many real candidates: presets from mild to strong, and random plans that change
    few layers or nearly all; every other one in 8 bits throughout, the others in float32, or here
    and there."""
    presets = sorted(space.presets(), key=lambda genotype: sum(genotype.values()))
    places = np.unique(
        np.linspace(0, len(presets) - 1, min(_PRESETS, most // 3)).round().astype(int)
    )
    genotypes = [presets[i] for i in places] if presets else []
    rng = np.random.default_rng(0)
    for i, changed in enumerate(rng.permutation(np.linspace(*_CHANGED, most - len(genotypes)))):
        rounded = _ROUNDED[i % len(_ROUNDED)]
        genotypes.append(
            {
                name: int(rng.integers(1, count))
                for name, count in space.parameters.items()
                if rng.random() < (rounded if name.startswith("bits:") else changed)
            }
        )
    plans = {plan.fingerprint: plan for plan in map(space.plan, genotypes)}
    plans.pop(space.identity.fingerprint, None)
    return list(plans.values())


def _key(space: SearchSpace, target: Target) -> str:
    data = json.dumps([VERSION, space.fingerprint, target.description], sort_keys=True, default=str)
    return hashlib.sha256(data.encode()).hexdigest()[:16]
