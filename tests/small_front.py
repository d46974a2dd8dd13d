"""A small made-up front that tests of its pictures and comparisons share."""

from paretune.objectives.evaluation import Evaluation
from paretune.objectives.front import ParetoFront
from paretune.objectives.objective import Objective
from paretune.spaces.plan import CompressionPlan, LayerChoice

OBJECTIVES = [Objective(n, {}) for n in ("accuracy", "size_bytes", "latency_ms")]
FULL = CompressionPlan({"a": 16}, {"a": LayerChoice()})


def search(
    points: list[tuple[float, float, float]], size: float = 1000.0, error: float = 0.0
) -> ParetoFront:
    """(accuracy, size ratio, latency in ms) of each point; baseline 0.9, ``size`` bytes, 2 ms."""
    values = {"accuracy": 0.9, "size_bytes": size, "latency_ms": 2.0}
    base = Evaluation(FULL, "measure", values)
    rows = [
        (
            number,
            Evaluation(
                CompressionPlan({"a": number + 1}, {"a": LayerChoice(8, 8)}),
                "measure",
                {"accuracy": a, "size_bytes": s * size, "latency_ms": t},
                {"accuracy": error} if error else {},
            ),
        )
        for number, (a, s, t) in enumerate(points)
    ]
    return ParetoFront(rows, OBJECTIVES, (), base)
