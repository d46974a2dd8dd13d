"""A search without networks: recorded values, and workers that exist only as times on a clock."""

from __future__ import annotations

import hashlib
import heapq
import importlib.util
import sys
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from paretune.objectives.evaluation import Artifact, Evaluation
from paretune.search.pool import Result
from paretune.spaces.plan import CompressionPlan

_EMULATED = Path(__file__).resolve().parents[2] / "tests" / "search" / "emulated.py"
_SCREEN_S, _MEASURE_S = 0.12, 4.0  # what they take on ResNet-20, so that errands overtake trials


def emulated() -> ModuleType:
    """The emulated network of the search's tests: exact costs, damages that nearly add up."""
    spec = importlib.util.spec_from_file_location("paretune_emulated", _EMULATED)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{_EMULATED} is missing: run this in a checkout")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def genotype_of(network: Any, plan: CompressionPlan) -> dict[str, int]:
    """The options that make ``plan`` on an emulated network."""
    module = sys.modules[type(network).__module__]
    keeps = [round(1000 * share) for share in module.KEEPS]
    found = {f"keep:{g}": keeps.index(plan.groups[g]) for g in network.groups}
    ranks = {() if r is None else (round(1000 * r),): i for i, r in enumerate(module.RANKS)}
    for layer in network.layers:
        choice = plan.layers[layer.name]
        found[f"rank:{layer.name}"] = ranks[tuple(choice.ranks)]
        found[f"bits:{layer.name}"] = module.BITS.index(choice.weight_bits)
    return found


@dataclass
class SimulatedPool:
    """What a pool of ``workers`` processes looks like to the driver, in no time.

    Jobs are handed out in order, those submitted ``first`` before the others; each takes a time
    that follows from its plan, on a clock that :meth:`collect` turns on to the next end. So
    candidates overtake each other as they do on machines, and every run is the same.
    evaluate_s: real seconds that the emulation itself took; they are no cost of the driver.
    """

    network: Any
    workers: int
    evaluate_s: float = 0.0
    _queue: deque[tuple[Any, CompressionPlan, str]] = field(default_factory=deque)
    _urgent: deque[tuple[Any, CompressionPlan, str]] = field(default_factory=deque)
    _running: list[tuple[float, int, Any, CompressionPlan, str]] = field(default_factory=list)
    _now: float = 0.0
    _begun: int = 0

    def submit(
        self,
        job_id: Any,
        plan: CompressionPlan,
        rung: str = "measure",
        baseline: Evaluation | None = None,
        artifact: Artifact | None = None,
        first: bool = False,
    ) -> None:
        """Queue one evaluation."""
        (self._urgent if first else self._queue).append((job_id, plan, rung))

    def collect(self, timeout_s: float = 1.0) -> list[Result]:
        """The next result, and those that end at the same instant."""
        while len(self._running) < self.workers and (self._urgent or self._queue):
            job_id, plan, rung = (self._urgent or self._queue).popleft()
            lasts = (_SCREEN_S if rung == "screen" else _MEASURE_S) * _luck(plan)
            self._begun += 1
            heapq.heappush(self._running, (self._now + lasts, self._begun, job_id, plan, rung))
        if not self._running:
            return []
        self._now, _, job_id, plan, rung = heapq.heappop(self._running)
        begin = time.perf_counter()
        evaluation = Evaluation(plan, rung, self._values(plan, rung), seconds={"total": 1.0})
        self.evaluate_s += time.perf_counter() - begin
        return [Result(job_id, evaluation, 1.0, 1)]

    def progress(self) -> dict[Any, dict[str, Any]]:
        """Nothing: nothing is trained."""
        return {}

    def withdraw(self) -> list[Any]:
        """Take back the jobs that no worker has begun."""
        ids = [job_id for job_id, *_ in (*self._urgent, *self._queue)]
        self._urgent.clear()
        self._queue.clear()
        return ids

    def close(self) -> None:
        """Drop everything."""
        self.withdraw()
        self._running.clear()

    def _values(self, plan: CompressionPlan, rung: str) -> Mapping[str, float]:
        values = dict(self.network.values(genotype_of(self.network, plan)))
        if rung == "screen":
            values["accuracy"] -= 0.004
        else:
            values["latency_ms"] = 0.2 + 2e-7 * values["macs"]
        return values


def _luck(plan: CompressionPlan) -> float:
    """A factor from 0.5 to 1.5 that follows from the plan."""
    digest = hashlib.sha256(plan.fingerprint.encode()).digest()
    return 0.5 + int.from_bytes(digest[:4], "little") / 2**32
