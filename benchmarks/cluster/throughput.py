"""What the driver costs and how well workers are kept busy: Ray Tune beside bare Ray actors.

    python benchmarks/cluster/throughput.py [--workers 8] [--trials 240] [--seconds 1] [--bare]

The whole search runs: sampler, study on disk, events; only the candidates sleep. Start-up is not
counted: the search begins when every worker has answered once (``start_s``), and the count when the
window of asks is full and Optuna's tables are open (importing them takes a second). Without
``--address`` a Ray cluster is started on this machine, for this run.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import tempfile
import time
from collections import deque
from pathlib import Path
from typing import Any

import ray
from sleeping import Space, make

from paretune.objectives.evaluation import Artifact, Evaluation
from paretune.objectives.objective import Objective
from paretune.search.driver import Budget, Driver
from paretune.search.events import Event
from paretune.search.jobs import Result, WorkerJob, Workers
from paretune.search.proposer import Proposer
from paretune.search.ray_pool import RayPool
from paretune.search.ray_worker import Site
from paretune.search.samplers import make_sampler
from paretune.spaces.plan import CompressionPlan
from paretune.trackers.study import Study

LEFT_OUT = 40  # trials: by then the study has opened Optuna's tables too
OBJECTIVES = [Objective("accuracy", {}), Objective("size_bytes", {})]


@ray.remote(num_cpus=1)
class Actor:
    """The least that can evaluate a plan."""

    def __init__(self, seconds: float) -> None:
        self._evaluator = make(seconds=seconds)

    def evaluate(self, plan: dict[str, Any], rung: str) -> dict[str, Any]:
        return self._evaluator.evaluate(CompressionPlan.from_json(plan), rung).to_json()


class BareActors:
    """The same contract with nothing but actors: no Tune, no isolation, no second attempt."""

    def __init__(self, workers: int, seconds: float) -> None:
        self._idle = [Actor.remote(seconds) for _ in range(workers)]  # type: ignore[attr-defined]
        self._queue: deque[WorkerJob] = deque()
        self._at_work: dict[Any, tuple[WorkerJob, Any]] = {}

    def submit(
        self,
        job_id: Any,
        plan: CompressionPlan,
        rung: str = "measure",
        baseline: Evaluation | None = None,
        artifact: Artifact | None = None,
        first: bool = False,
    ) -> None:
        self._queue.append(WorkerJob(job_id, plan, rung, baseline, artifact))
        self._hand_out()

    def collect(self, timeout_s: float = 1.0) -> list[Result]:
        done, _ = ray.wait(list(self._at_work), timeout=timeout_s)
        found = []
        for reference in done:
            job, actor = self._at_work.pop(reference)
            self._idle.append(actor)
            evaluation = Evaluation.from_json(ray.get(reference))
            found.append(Result(job.job_id, evaluation, 0.0, 1))
        self._hand_out()
        return found

    def progress(self) -> dict[Any, dict[str, Any]]:
        return {}

    def withdraw(self) -> list[Any]:
        return []

    def close(self) -> None:
        for actor in (*self._idle, *(actor for _, actor in self._at_work.values())):
            ray.kill(actor)

    def _hand_out(self) -> None:
        while self._queue and self._idle:
            job, actor = self._queue.popleft(), self._idle.pop()
            self._at_work[actor.evaluate.remote(job.plan.to_json(), job.rung)] = (job, actor)


def warm(pool: Workers, workers: int) -> None:
    """Until every worker has tried a plan and is idle again."""
    seen: set[int] = set()
    given = back = 0
    while len(seen) < workers or back < given:
        while len(seen) < workers and given - back < 2 * workers:
            pool.submit(f"warm {given}", Space().plan({}))
            given += 1
        for result in pool.collect():
            back += 1
            seen.add(result.evaluation.notes["worker"])


class Clock:
    """Notes the wall time and this process's CPU time of every finished trial."""

    def __init__(self) -> None:
        self.at: list[tuple[float, float]] = []

    def on_event(self, event: Event) -> None:
        if event.kind == "trial":
            self.at.append((time.perf_counter(), time.process_time()))


def run(workers: int, trials: int, seconds: float, bare: bool) -> dict[str, Any]:
    """One search; its figures."""
    space, clock = Space(), Clock()
    sampler = make_sampler("nsga2", space.parameters, seed=0, population=50)
    site = Site(f"{Path(__file__).with_name('sleeping.py')}:make", {"seconds": seconds}, 60.0)

    begun = time.perf_counter()
    pool: Workers = BareActors(workers, seconds) if bare else RayPool(site, workers, {"CPU": 1})
    warm(pool, workers)
    start_s = time.perf_counter() - begun
    with tempfile.TemporaryDirectory() as folder:
        study = Study.create(Path(folder) / "study", {}, name="sleeping", objectives=OBJECTIVES)
        with study:
            proposer = Proposer(space, OBJECTIVES, [], sampler, 0)
            window = 4 * workers  # equally long candidates: nobody waits for a slow one
            budget = Budget(trials)
            driver = Driver(study, proposer, space.plan({}), lambda: pool, budget, window, [clock])
            driver.run()
    left_out = max(window, LEFT_OUT)
    (wall_0, cpu_0), (wall_1, cpu_1) = clock.at[left_out], clock.at[-1]
    count = len(clock.at) - 1 - left_out
    return {
        "loop": "bare actors" if bare else "Ray Tune",
        "workers": workers,
        "seconds": seconds,
        "start_s": round(start_s, 1),
        "trials counted": count,
        "wall_ms_per_trial": round(1000 * (wall_1 - wall_0) / count, 1),
        "driver_cpu_ms_per_trial": round(1000 * (cpu_1 - cpu_0) / count, 1),
        "share_of_ideal": round(seconds * count / workers / (wall_1 - wall_0), 3),
        "load": round(os.getloadavg()[0], 1),
    }


def main() -> None:
    """Print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--trials", type=int, default=240)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--bare", action="store_true")
    parser.add_argument("--address")
    given = parser.parse_args()
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if given.address:
        ray.init(address=given.address, **quiet)
    else:
        ray.init(num_cpus=given.workers, include_dashboard=False, **quiet)
    try:
        print(json.dumps(run(given.workers, given.trials, given.seconds, given.bare)))
    finally:
        ray.shutdown()


if __name__ == "__main__":
    main()
