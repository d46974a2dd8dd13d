"""Which knobs matter: found where they do, and not claimed where nothing can be told."""

import json
from pathlib import Path

import numpy as np

from paretune.objectives.evaluation import Evaluation
from paretune.objectives.front import ParetoFront
from paretune.objectives.knobs import from_sensitivity, from_trials
from paretune.objectives.objective import Objective
from paretune.spaces.plan import CompressionPlan, LayerChoice

OBJECTIVES = [Objective("accuracy", {}), Objective("size_bytes", {})]
NAMES = [f"l{i}" for i in range(6)]


def front(trials: int, weights: dict[str, float], noise: float) -> ParetoFront:
    """Accuracy lost = sum of weights[layer] * channels cut there, plus noise."""
    rng = np.random.default_rng(3)
    full = CompressionPlan(dict.fromkeys(NAMES, 16), {n: LayerChoice() for n in NAMES})
    base = Evaluation(full, "measure", {"accuracy": 0.9, "size_bytes": 1e6})
    rows = []
    for number in range(trials):
        kept = {n: int(rng.integers(4, 17)) for n in NAMES}
        layers = {n: LayerChoice(int(rng.choice([8, 32])), 32) for n in NAMES}
        lost = sum(weights.get(n, 0.0) * (16 - k) / 12 for n, k in kept.items())
        lost += noise * float(rng.standard_normal())
        values = {"accuracy": 0.9 - lost, "accuracy_drop": lost, "size_bytes": 1e5 + number}
        rows.append((number, Evaluation(CompressionPlan(kept, layers), "measure", values)))
    return ParetoFront(rows, OBJECTIVES, (), base)


def test_the_knobs_that_matter_come_first() -> None:
    found = from_trials(front(80, {"l2": 0.2, "l4": 0.08}, 0.002))
    assert found is not None
    assert [(k.family, k.layer) for k in found.knobs[:2]] == [("keep", "l2"), ("keep", "l4")]
    assert found.knobs[0].effect > 2 * found.knobs[1].effect > 8 * found.knobs[2].effect
    assert found.title.startswith("What matters most: fewer channels in l2")


def test_nothing_is_claimed_from_noise_or_from_few_trials() -> None:
    noise = from_trials(front(60, {}, 0.02))
    assert noise is not None and not noise.knobs and "too little to tell" in noise.how
    few = from_trials(front(12, {"l2": 0.2}, 0.0))
    assert few is not None and not few.knobs and "Only 12 trials" in few.how
    assert from_trials(ParetoFront([], OBJECTIVES)) is None


def test_measured_damage_is_preferred(tmp_path: Path) -> None:
    assert from_sensitivity(tmp_path) is None
    rows = [
        ["", 0, 0.0, 0.4],
        ["keep:l1", 1, 0.01, 0.1],
        ["keep:l1", 3, 0.5, 0.1],
        ["bits:l0", 1, 2.0, 0.1],
    ]
    text = "\n".join(json.dumps(row) for row in rows) + '\n["rank:l0", 1, 0.'  # cut by a kill
    (tmp_path / "sensitivity-00.jsonl").write_text(text)
    found = from_sensitivity(tmp_path)
    assert found is not None
    assert [(k.family, k.layer, k.effect) for k in found.knobs] == [
        ("bits", "l0", 2.0),
        ("keep", "l1", 0.5),
    ]
