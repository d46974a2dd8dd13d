"""How the driver bears 10,000 trials and 64 workers: time a trial, memory, resume.

``python benchmarks/scale/run.py [--trials 10000] [--workers 64] [--sampler guided] [--screen 0]``

The study, the proposer, the window and the loop are the real ones; evaluations are recorded values
of an emulated network and workers are times on a clock (simulated.py), so that what is measured is
the driver alone. Prints a table and writes it as JSON to --out. ``--folder DIR`` keeps the study;
the same command with a study there measures the resume alone.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from simulated import SimulatedPool, emulated

from paretune.objectives.evaluation import Evaluation
from paretune.objectives.objective import Objective
from paretune.search.cost_table import CostTable
from paretune.search.driver import Budget, Driver
from paretune.search.events import Event
from paretune.search.guidance import Guidance
from paretune.search.proposer import Proposer
from paretune.search.samplers import make_sampler
from paretune.search.scout import Scout
from paretune.trackers.ask import Ask
from paretune.trackers.study import Study

OBJECTIVES = [Objective(name, {}) for name in ("accuracy", "size_bytes", "latency_ms")]


class Clocked(Proposer):
    """A proposer that notes what its asks and tells take, in seconds."""

    ask_s: list[float]
    tell_s: list[float]

    def ask(self, number: int) -> Ask:
        begin = time.perf_counter()
        try:
            return super().ask(number)
        finally:
            self.ask_s.append(time.perf_counter() - begin)

    def tell(self, number: int, evaluation: Evaluation) -> str | None:
        begin = time.perf_counter()
        try:
            return super().tell(number, evaluation)
        finally:
            self.tell_s.append(time.perf_counter() - begin)


class Marks:
    """When each trial was finished: wall seconds less those of the emulation, and CPU seconds."""

    def __init__(self, pool: SimulatedPool) -> None:
        self.pool = pool
        self.wall: list[float] = []
        self.cpu: list[float] = []
        self.first: float | None = None  # of this run

    def on_event(self, event: Event) -> None:
        """A trial was finished."""
        if event.kind == "trial":
            self.wall.append(time.perf_counter() - self.pool.evaluate_s)
            self.cpu.append(time.process_time() - self.pool.evaluate_s)
            if len(self.wall) % 1000 == 0:
                print(f"{len(self.wall)} trials, {self.cpu[-1] - self.cpu[0]:.1f} s", flush=True)
            if self.first is None:
                self.first = time.perf_counter()


def search(folder: Path, trials: int, options: argparse.Namespace) -> dict[str, Any]:
    """One run of the driver up to ``trials``; a further one resumes."""
    module = emulated()
    network = module.Network(blocks=options.blocks)
    table = CostTable.probe(network, network.plan, network.parameters, network.layers)
    base = {**network.values({}), "accuracy": module.ACCURACY}
    guidance = Guidance(network.parameters, network.damage(), table, base)
    sampler = make_sampler(
        options.sampler,
        network.parameters,
        seed=1,
        trials=options.trials,
        guidance=guidance,
        objectives=OBJECTIVES,
    )
    scout = Scout(
        guidance, OBJECTIVES, (), network.plan, options.screen, 1, width=2 * options.workers
    )
    pool = SimulatedPool(network, options.workers)
    marks = Marks(pool)
    begin = time.perf_counter()
    if (folder / "study.db").exists():
        study = Study.open(folder, write=True)
    else:
        study = Study.create(folder, {"emulated": 1}, name="scale", objectives=OBJECTIVES)
    presets = () if options.sampler == "guided" else network.presets()
    proposer = Clocked(
        network, OBJECTIVES, (), sampler, 1, presets, scout if options.screen else None
    )
    proposer.ask_s, proposer.tell_s = [], []
    with study:
        budget = Budget(trials)
        Driver(
            study, proposer, network.identity, lambda: pool, budget, 2 * options.workers, [marks]
        ).run()
        counted = {row.number for row in study.rows("measure")}
        assert counted == set(range(trials)), "the budget was not kept"
    return {
        "begin": begin,
        "total_s": time.perf_counter() - begin,
        "emulation_s": pool.evaluate_s,
        "marks": marks,
        "proposer": proposer,
        "parameters": len(network.parameters),
    }


def _median_ms(seconds: list[float]) -> float:
    return 1000 * sorted(seconds)[len(seconds) // 2] if seconds else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--sampler", default="guided")
    parser.add_argument("--screen", type=int, default=0, help="candidates screened a trial")
    parser.add_argument("--blocks", type=int, default=12, help="of the emulated network")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--folder", type=Path, help="keep the study here; one that is here goes on")
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="paretune-scale-"))
    report: dict[str, Any] = {
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        "sampler": options.sampler,
        "screened_a_trial": options.screen,
        "workers": options.workers,
        "trials": options.trials,
    }
    try:
        if not (folder / "study.db").exists():
            report |= described(search(folder, options.trials, options))
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            report |= {"driver_peak_mib": memory}
            report |= {"study_mib": (folder / "study.db").stat().st_size / 2**20}
            show(report)
        again = search(folder, options.trials + 1, options)
        report["resume_s"] = again["marks"].first - again["begin"]
        print(f"{'resume_s':>16} {report['resume_s']:11.2f}")
    finally:
        if options.folder is None:
            shutil.rmtree(folder)
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def described(whole: dict[str, Any]) -> dict[str, Any]:
    """The figures of one run, in blocks of a thousand trials."""
    wall, cpu = whole["marks"].wall, whole["marks"].cpu
    asks = whole["proposer"].ask_s
    block = min(1000, max(1, len(wall) // 4))
    blocks = []
    for start in range(0, len(wall) - block + 1, block):
        spent = wall[start + block - 1] - wall[start]
        worked = cpu[start + block - 1] - cpu[start]
        blocks.append(
            {
                "trials": [start, start + block],
                "ms_a_trial": 1000 * spent / (block - 1),
                "cpu_ms_a_trial": 1000 * worked / (block - 1),
                "ask_ms": _median_ms(asks[start : start + block]),
                "tell_ms": _median_ms(whole["proposer"].tell_s[start : start + block]),
            }
        )
    return {
        "parameters": whole["parameters"],
        "total_s": whole["total_s"] - whole["emulation_s"],
        "last_over_first": blocks[-1]["ms_a_trial"] / blocks[0]["ms_a_trial"],
        "the_same_in_cpu": blocks[-1]["cpu_ms_a_trial"] / blocks[0]["cpu_ms_a_trial"],
        "blocks": blocks,
    }


def show(report: dict[str, Any]) -> None:
    """The figures as text."""
    print(f"{'trials':>16} {'ms a trial':>11} {'CPU ms':>8} {'ask ms':>8} {'tell ms':>8}")
    for row in report["blocks"]:
        span = f"{row['trials'][0]}-{row['trials'][1] - 1}"
        cells = (row["cpu_ms_a_trial"], row["ask_ms"], row["tell_ms"])
        print(f"{span:>16} {row['ms_a_trial']:11.2f}", *(f"{cell:8.2f}" for cell in cells))
    for key in ("last_over_first", "the_same_in_cpu", "driver_peak_mib", "study_mib", "total_s"):
        print(f"{key:>16} {report[key]:11.2f}", flush=True)


if __name__ == "__main__":
    main()
