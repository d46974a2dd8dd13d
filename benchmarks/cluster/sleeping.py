"""A space, and an evaluator that sleeps instead of measuring: what is left is the search."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

from paretune.objectives.evaluation import Artifact, Evaluation
from paretune.spaces.plan import CompressionPlan, LayerChoice

LAYERS, OPTIONS = 20, 4


class Space:
    """Twenty layers with three ranks or none."""

    parameters = {f"rank:layer{i}": OPTIONS for i in range(LAYERS)}
    size = OPTIONS**LAYERS

    def plan(self, genotype: Mapping[str, int]) -> CompressionPlan:
        layers = {}
        for i in range(LAYERS):
            option = genotype.get(f"rank:layer{i}", 0)
            ranks = (64 - option,) if option else ()
            layers[f"layer{i}"] = LayerChoice(method="svd" if option else None, ranks=ranks)
        return CompressionPlan({"channels": 8}, layers)


class Sleeping:
    """Takes ``seconds`` for every plan; accuracy falls and bytes shrink with the ranks."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def evaluate(
        self,
        plan: CompressionPlan,
        rung: str = "measure",
        baseline: Evaluation | None = None,
        artifact: Artifact | None = None,
    ) -> Evaluation:
        time.sleep(self.seconds)
        saved = [64 - c.ranks[0] if c.ranks else 0 for c in plan.layers.values()]
        drop = sum(s * (i + 1) ** 0.7 for i, s in enumerate(saved)) / (10 * len(saved) ** 2)
        size = 1000.0 - sum(s * (1 + i % 3) for i, s in enumerate(saved))
        values = {"accuracy": 0.9 - drop, "size_bytes": size}
        return Evaluation(plan, rung, values, notes={"worker": os.getpid()})


def make(**settings: Any) -> Sleeping:
    """What a worker is started with."""
    return Sleeping(**settings)
