"""Compare samplers on one network: ``python benchmarks/search/run.py [--depth 20] [--trials 200]``.

Resumable: finished runs and all evaluations are kept in ``--out``. See README.md beside this file.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import optuna
import torch
from contestants import compete, contestants
from evaluations import Evaluations
from figures import confirm, write_report

from paretune.search.guidance import Guidance


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--depth", type=int, default=20, choices=(20, 32, 44, 56))
    parser.add_argument("--trials", type=int, default=200, help="evaluations, all included")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/search/results"))
    parser.add_argument("--only", help="a regular expression: only these samplers")
    parser.add_argument("--report", action="store_true", help="only write the table and the plot")
    parser.add_argument("--confirm", type=int, default=12, help="front points to re-evaluate a run")
    options = parser.parse_args()
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder = options.out / f"resnet{options.depth}"
    evaluations = Evaluations(options.depth, folder)
    print(f"{len(evaluations.space.parameters)} parameters, baseline {evaluations.base}")

    @cache
    def guidance() -> tuple[Guidance, float]:
        found = evaluations.sensitivity(options.trials / 4)
        print(f"sensitivity pass: {found.evaluations:.1f} evaluations, {found.seconds:.1f} s")
        return evaluations.guidance(found), found.evaluations

    runs = folder / f"runs-{options.trials}"
    runs.mkdir(parents=True, exist_ok=True)
    for seed in range(0 if options.report else options.seeds):
        for contestant in contestants():
            if options.only and not re.search(options.only, contestant.name):
                continue
            path = runs / f"{contestant.name.replace(' ', '_')}-{seed}.jsonl"
            if path.exists():
                continue
            rows: list[dict[str, Any]] = []
            draft = path.with_suffix(".part")
            with draft.open("w") as file:
                for row in compete(contestant, evaluations, guidance, options.trials, seed):
                    rows.append(row)
                    file.write(json.dumps(row) + "\n")
                    file.flush()
            draft.rename(path)
            print(write_report(runs, evaluations.base, only=path), flush=True)
    print(write_report(runs, evaluations.base))
    if options.confirm:
        confirm(runs, evaluations, options.confirm, options.only or "")
        print(write_report(runs, evaluations.base))


if __name__ == "__main__":
    main()
