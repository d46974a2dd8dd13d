"""Which points are measured again: the front, and what an error may have kept off it."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from paretune.objectives.contenders import MOST_ERRORS, worth_confirming
from paretune.objectives.dominance import dominates
from paretune.objectives.evaluation import Evaluation
from paretune.objectives.objective import Objective
from paretune.spaces.plan import CompressionPlan

OBJECTIVES = [Objective("accuracy", {}), Objective("size_bytes", {}), Objective("latency_ms", {})]
PLAN = CompressionPlan(groups={}, layers={})


def evaluation(accuracy: float, size: float, latency: float) -> Evaluation:
    values = {"accuracy": accuracy, "size_bytes": size, "latency_ms": latency}
    errors = {"accuracy": 0.009, "accuracy_drop": 0.004, "latency_ms": 0.02}
    return Evaluation(PLAN, "measure", values, errors)


ROWS = st.lists(
    st.tuples(
        st.integers(80, 95).map(lambda x: x / 100),
        st.integers(1, 9).map(float),
        st.integers(1, 9).map(lambda x: x / 10),
    ),
    min_size=1,
    max_size=24,
)


@settings(max_examples=60, deadline=None)
@given(ROWS)
def test_as_brute_force_says(rows: list[tuple[float, float, float]]) -> None:
    found = {i: evaluation(*row) for i, row in enumerate(rows)}
    near = worth_confirming(found, OBJECTIVES)
    front = [
        i
        for i in found
        if not any(dominates(found[j].values, found[i].values, OBJECTIVES) for j in found)
    ]

    def beaten(number: int, better_by: float) -> bool:
        accuracy, size, latency = rows[number]
        lucky = {
            "accuracy": accuracy + 0.004 * better_by,
            "size_bytes": size,
            "latency_ms": latency - 0.02 * better_by,
        }
        return any(dominates(found[other].values, lucky, OBJECTIVES) for other in front)

    within = [i for i in found if i not in front and not beaten(i, MOST_ERRORS + 1e-6)]
    assert set(near) <= set(within)
    assert len(near) == min(len(within), len(front))
    needs = [min(s for s in np.linspace(0, 1.01, 203) if not beaten(i, s)) for i in near]
    assert needs == sorted(needs)


def test_what_is_clearly_beaten_is_not_looked_at_again() -> None:
    found = {
        0: evaluation(0.910, 100.0, 0.50),
        1: evaluation(0.908, 100.0, 0.55),
        2: evaluation(0.900, 100.0, 0.60),
        3: evaluation(0.909, 200.0, 0.51),
    }
    assert worth_confirming(found, OBJECTIVES) == [3]
