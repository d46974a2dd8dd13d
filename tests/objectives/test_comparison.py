"""Two points and two searches side by side, against dominance written out by hand."""

import itertools

import numpy as np
import pytest
from small_front import FULL, OBJECTIVES, search

from paretune.errors import InputError
from paretune.objectives.comparison import compare_fronts, compare_points
from paretune.objectives.evaluation import Evaluation
from paretune.objectives.front import ParetoFront


def test_points_are_told_apart_beyond_their_errors_only() -> None:
    front = search([(0.88, 0.5, 1.0), (0.89, 0.6, 1.0005), (0.85, 0.6, 1.5)], error=0.01)
    found = compare_points(front, front[0], front[1])
    better = {row.name: row.better for row in found.values}
    assert better == {"accuracy": "", "size_bytes": "A", "latency_ms": ""}
    assert next(r.error for r in found.values if r.name == "accuracy") == pytest.approx(
        0.01 * 2**0.5
    )
    assert found.dominates == "" and not found.tied
    assert found.plan == (("a channels", "1", "2"),)
    assert compare_points(front, front[0], front[2]).dominates == "A"
    assert compare_points(front, front[2], front[0]).dominates == "B"


def test_a_confirmed_point_is_not_compared_with_another_split() -> None:
    front = search([(0.88, 0.5, 1.0), (0.80, 0.4, 1.0)])
    again = Evaluation(front[0].plan, "confirm", front[0].values)
    rows = [(p.number, p.evaluation) for p in front.points] + [(0, again)]
    both = ParetoFront(rows, OBJECTIVES, (), front.baseline)
    with pytest.raises(InputError, match="trial 0 was confirmed on the evaluation data, 1 was not"):
        compare_points(both, both[0], both[1])


def test_searches_are_compared_over_their_own_baselines() -> None:
    rng = np.random.default_rng(1)
    made = [
        [(0.9 - 0.2 * x, float(1.0 - x + 0.1 * e), float(2.0 - 1.5 * x * e)) for x, e in draws]
        for draws in (rng.random((12, 2)), rng.random((9, 2)))
    ]
    a, b = search(made[0], 1000.0), search(made[1], 5000.0)
    found = compare_fronts(a, b)

    def axes(front: ParetoFront, size: float) -> list[tuple[float, ...]]:
        return [
            (
                max(0.9 - p.values["accuracy"], 0),
                p.values["size_bytes"] / size,
                p.values["latency_ms"] / 2,
            )
            for p in front
        ]

    mine, others = axes(a, 1000.0), axes(b, 5000.0)
    beaten = {
        x for x, y in itertools.product(mine, others)
        if all(o <= m for o, m in zip(y, x, strict=True)) and y != x
    }  # fmt: skip
    assert found.a.beaten == len(beaten)
    assert found.a.hypervolume == pytest.approx(a.hypervolume())
    assert any("the baselines differ in size_bytes" in text for text in found.warnings)
    itself = compare_fronts(a, a)
    assert itself.a == itself.b and itself.a.beaten == 0 and itself.warnings == ()


def test_searches_for_other_things_are_refused() -> None:
    other = ParetoFront(
        [(0, Evaluation(FULL, "measure", {"accuracy": 0.9, "size_bytes": 10.0}))], OBJECTIVES[:2]
    )
    with pytest.raises(InputError, match="one search measured accuracy, size_bytes, latency_ms"):
        compare_fronts(search([(0.88, 0.5, 1.0)]), other)
