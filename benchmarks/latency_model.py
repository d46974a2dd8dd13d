"""How well is latency predicted before it is measured?

    python benchmarks/latency_model.py [--out FOLDER] [--networks resnet18,...] [--target NAME]

For each network a search's own latency model is fitted to the plans that it would time, and asked
for others: random ones, from a few changed layers to all, in 8 bits nowhere to everywhere. These
are exported and timed as in a search. Reported over those that a neighbour did not disturb:
Spearman's rank correlation and the relative error of the milliseconds, and of the ratios to the
unchanged network's. Files hold quickly made weights, as in a search's preparation; networks as in
runtimes.py. What is measured is kept in FOLDER, so that a stopped command goes on.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from runtimes import NETWORKS, timed
from scipy.stats import spearmanr

from paretune.errors import CandidateError
from paretune.objectives.latency import Undisturbed
from paretune.objectives.latency_probe import fit_latency
from paretune.objectives.layer_shapes import ShapeTable
from paretune.operators.compress import Compressor
from paretune.spaces.discover import discover
from paretune.spaces.plan import CompressionPlan
from paretune.spaces.space import SearchSpace
from paretune.targets.catalogue import make_target

SEED = 1


def others(space: SearchSpace, count: int) -> list[CompressionPlan]:
    """Random plans of every strength, none of them the unchanged network."""
    rng = np.random.default_rng(SEED)
    plans: dict[str, CompressionPlan] = {}
    while len(plans) < count:
        changed, rounded = rng.uniform(0.05, 0.9), rng.choice([0.0, rng.random(), 1.0])
        plan = space.plan(
            {
                name: int(rng.integers(1, options))
                for name, options in space.parameters.items()
                if rng.random() < (rounded if name.startswith("bits:") else changed)
            }
        )
        if plan != space.identity:
            plans.setdefault(plan.fingerprint, plan)
    return list(plans.values())


def row(name: str, target_name: str, count: int, folder: Path) -> dict[str, float | str]:
    """One line of the table."""
    torch.manual_seed(0)
    subject = NETWORKS[name]()
    example = subject.inputs[:1]
    space = discover(subject.network, example)
    compressor = Compressor(subject.network, example, space, subject.calibration)
    table = ShapeTable(space, compressor.original, example)
    target = make_target(target_name, {"calibration_examples": len(subject.calibration)})
    inputs, calibration = subject.inputs[:1].numpy(), [subject.calibration.numpy()]
    folder.mkdir(parents=True, exist_ok=True)
    model = fit_latency(
        folder, target, compressor, table, example, calibration, inputs, lambda line: None
    )
    if model is None:
        raise CandidateError("no plan could be timed")
    log = folder / "others.jsonl"
    known = (
        {r["plan"]: r for r in map(json.loads, log.read_text().splitlines())}
        if log.exists()
        else {}
    )
    measured, predicted, level = [], [], Undisturbed()
    for plan in [space.identity, *others(space, count)]:
        path = folder / f"candidate.{target.format}"
        base = folder / f"base.{target.format}"
        if plan.fingerprint not in known:
            begin = time.perf_counter()
            made = compressor.shape(plan, quantised=True)
            to = base if plan == space.identity else path
            target.export(made.network, example, made.bits, iter(calibration), to, grids=made.grids)
            found = timed(target, to, base, inputs, level) | {
                "seconds": time.perf_counter() - begin
            }
            known[plan.fingerprint] = {"plan": plan.fingerprint, **found}
            with log.open("a") as file:
                file.write(json.dumps(known[plan.fingerprint]) + "\n")
        if plan == space.identity:
            base_ms = known[plan.fingerprint]["latency_ms"]
            level.best_ms = base_ms
        elif known[plan.fingerprint].get("undisturbed"):
            measured.append(known[plan.fingerprint]["latency_ratio"])
            predicted.append(model.latency_ms(plan, table.shapes(plan)))
    wanted, given = np.array(measured), np.array(predicted)
    own_ms = model.latency_ms(space.identity, table.shapes(space.identity))
    off = np.abs(given / base_ms / wanted - 1)
    return {
        "network": name,
        "target": target_name,
        "ms": base_ms,
        "fitted": model.plans,
        "seconds": model.seconds,
        "others": len(wanted),
        "spearman": float(spearmanr(wanted, given).statistic),
        "error": float(np.mean(off)),
        "median": float(np.median(off)),
        "of_ratios": float(np.mean(np.abs(given / own_ms / wanted - 1))),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--out", type=Path, default=Path("latency-model"))
    parser.add_argument("--networks", default="resnet18,mobilenet_v2,vit_tiny,resnet20")
    parser.add_argument("--target", default="onnxruntime-cpu")
    parser.add_argument("--count", type=int, default=40, help="plans that are predicted")
    options = parser.parse_args()
    print(
        "| network | ms | plans fitted | seconds | others | Spearman | mean, median error "
        "| of ratios |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name in options.networks.split(","):
        folder = options.out / f"{name}-{options.target}"
        r = row(name, options.target, options.count, folder)
        print(
            f"| {name} | {r['ms']:.3g} | {r['fitted']} | {r['seconds']:.0f} | {r['others']} "
            f"| {r['spearman']:.3f} | {100 * r['error']:.1f}, {100 * r['median']:.1f} % "
            f"| {100 * r['of_ratios']:.1f} % |",
            flush=True,
        )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
