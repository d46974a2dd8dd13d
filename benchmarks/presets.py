"""Is a uniform choice as good as the front of a search? Every preset as a file, on the same images.

    python benchmarks/presets.py examples/cifar10_resnet20.yaml studies/resnet20

A preset gives the same share of channels, the same rank or the same bits to every layer that may
have it, alone or together: what one does by hand before searching. Each is exported, scored on the
job's evaluation images and timed, like the points of the study's front, which are then compared
with all of them.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch

from paretune.objectives.evaluate import Evaluator
from paretune.objectives.evaluation import Evaluation
from paretune.objectives.problem import Problem
from paretune.objectives.wording import summary
from paretune.tasks.job import load_job
from paretune.trackers.study import Study

SHOWN = ("accuracy_drop", "size_ratio", "latency_ratio")


def line(name: str, what: str, done: Evaluation) -> str:
    cells = [f"{done.values[n]:.4f} ± {done.errors.get(n, 0.0):.4f}" for n in SHOWN]
    return f"| {name} | {what} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("job", type=Path)
    parser.add_argument("study", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    problem = Problem.from_job(load_job(given.job))
    with Study.open(given.study) as study:
        front = study.front().front
    print(f"| which | what | {' | '.join(SHOWN)} |\n|---|---|---|---|---|", flush=True)
    uniform: list[Evaluation] = []
    with tempfile.TemporaryDirectory() as folder:
        evaluator = Evaluator.for_problem(problem, Path(folder))
        baseline = evaluator.evaluate(problem.space.identity, "confirm")
        for number, genotype in enumerate(problem.space.presets()):
            done = evaluator.evaluate(problem.space.plan(genotype), "confirm", baseline)
            if done.failed:
                print(f"| preset {number} | failed: {done.cause} |", flush=True)
                continue
            uniform.append(done)
            print(line(f"preset {number}", summary(done.plan, problem.space.identity), done))
    for point in front:
        better = sum(all(u.values[n] <= point.values[n] for n in SHOWN) for u in uniform)
        print(f"trial {point.number}: dominated by {better} of {len(uniform)} presets")


if __name__ == "__main__":
    main()
