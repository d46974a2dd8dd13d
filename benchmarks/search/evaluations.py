"""One screen-level evaluation, the same for every sampler, remembered on disk."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paretune.objectives.evaluate import Evaluator
from paretune.objectives.problem import Problem
from paretune.objectives.screen import EXAMPLES, Screen
from paretune.objectives.sensitivity import Sensitivity, measure
from paretune.search.cost_table import CostTable
from paretune.search.guidance import Guidance
from paretune.spaces.plan import CompressionPlan
from paretune.tasks.job import load_job


def job_of(depth: int) -> dict[str, Any]:
    """ResNet on CIFAR-10: channels, 8 bits and ranks; the folder is named by PARETUNE_DATA."""
    data = os.environ["PARETUNE_DATA"]
    return {
        "name": f"resnet{depth}-cifar10",
        "task": {
            "model": "paretune.tasks.vision:cifar_resnet",
            "model_args": {"depth": depth},
            "weights": f"{data}/cifar10_resnet{depth}.safetensors",
            "data": {
                "kind": "imagefolder",
                "train": f"{data}/train",
                "evaluate": f"{data}/val",
                "search": 1000,
                "size": 32,
                "mean": [0.485, 0.456, 0.406],
                "std": [0.229, 0.224, 0.225],
            },
        },
        "space": {"freeze": ["linear"]},
        "objectives": ["accuracy", "size_bytes", "macs"],
    }


class Evaluations:
    """Evaluates genotypes of one network; the same plan is never evaluated twice, by whomever.

    A remembered evaluation is charged the seconds that it took. folder: where they are kept.
    """

    def __init__(self, depth: int, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.problem = Problem.from_job(load_job(job_of(depth)))
        self.space = self.problem.space
        self.screen = Screen.for_problem(self.problem, folder)
        self._file = folder / f"evaluations-{EXAMPLES}.jsonl"
        self._known: dict[str, dict[str, Any]] = {}
        if self._file.exists():
            for line in self._file.read_text().splitlines():
                row = json.loads(line)
                self._known[row["plan"]] = row
        self.base = self(self.space.identity)["values"]
        self._evaluator: Evaluator | None = None

    def __call__(self, plan: CompressionPlan) -> dict[str, Any]:
        """``{"values": ..., "seconds": ...}``; values are None when the plan cannot be tried."""
        found = self._known.get(plan.fingerprint)
        if found is not None:
            return found
        begin = time.thread_time()
        try:
            screened = self.screen.screen(plan)
            values: dict[str, float] | None = screened.values
        except Exception as error:  # a plan that cannot be carried out
            print("failed:", error)
            values = None
        row = {
            "plan": plan.fingerprint,
            "values": values,
            "seconds": time.thread_time() - begin,
        }
        self._known[plan.fingerprint] = row
        with self._file.open("a") as file:
            file.write(json.dumps(row) + "\n")
        return row

    def sensitivity(self, budget: float) -> Sensitivity:
        """The pass, within so many evaluations; kept on disk."""
        return measure(self.screen, budget, self.folder / f"sensitivity-{budget:g}")

    def guidance(self, sensitivity: Sensitivity) -> Guidance:
        """What the guided sampler starts from."""
        space = self.space
        table = CostTable.probe(self.screen.costs, space.plan, space.parameters, space.layers)
        return Guidance(space.parameters, sensitivity.damage, table, self.base)

    def confirmed(self, genotype: Mapping[str, int]) -> dict[str, Any]:
        """The exported file's accuracy on the images that no search saw, and its bytes."""
        plan = self.space.plan(genotype)
        path = self.folder / "confirmed.jsonl"
        known = {}
        if path.exists():
            known = {r["plan"]: r for r in map(json.loads, path.read_text().splitlines())}
        if plan.fingerprint not in known:
            if self._evaluator is None:
                self._evaluator = Evaluator.for_problem(self.problem, self.folder)
            done = self._evaluator.evaluate(plan, rung="confirm")
            if done.failed:
                raise RuntimeError(f"{plan}\n{done.cause}")
            values = {n: done.values[n] for n in ("accuracy", "size_bytes", "macs")}
            row = {"plan": plan.fingerprint, "values": values}
            if done.artifact is not None:
                (self.folder / "artifacts" / done.artifact.file_name).unlink(missing_ok=True)
            with path.open("a") as file:
                file.write(json.dumps(row) + "\n")
            return row
        return known[plan.fingerprint]
