"""What each technique does to a network: accuracy, bytes, MACs and latency, one row each.

    python benchmarks/techniques.py --depth 20 --only tucker2        # rows whose name has "tucker2"

Pretrained CIFAR-10 ResNets of the folder PARETUNE_DATA; the exported file is what is scored, on the
`val` images that are not the fixed search images (with --search: on those, for making choices), and
timed with ONNX Runtime beside the float32 file. Calibration images come from `train`; no labels are
used. A row that fails says why.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from paretune.objectives.evaluate import Evaluator
from paretune.objectives.evaluation import Evaluation
from paretune.spaces.discover import discover
from paretune.spaces.factors import ranks_at
from paretune.spaces.layer import Layer
from paretune.spaces.plan import CompressionPlan, LayerChoice
from paretune.spaces.space import SearchSpace
from paretune.targets.catalogue import make_target
from paretune.targets.cpu import cpu_features
from paretune.tasks.compress_section import CompressSection
from paretune.tasks.job import load_job
from paretune.tasks.load import load_task
from paretune.tasks.task import Task

PLAIN = CompressSection(whiten=False, reconstruct=False)
FITTED = CompressSection(whiten=True, reconstruct=True)
REFINED = CompressSection(whiten=True, reconstruct=True, refine=300)
REFINE_IMAGES = 9600


@dataclass(frozen=True)
class Technique:
    """One row: how the plan is made from the space, how it is carried out, with how many
    calibration images."""

    plan: Callable[[SearchSpace], CompressionPlan]
    options: CompressSection = PLAIN
    calibration: int = 256


def bits(weight: int, activation: int) -> Callable[[SearchSpace], CompressionPlan]:
    """Every layer at these bits."""

    def make(space: SearchSpace) -> CompressionPlan:
        return quantised(space.identity, weight, activation)

    return make


def quantised(plan: CompressionPlan, weight: int = 8, activation: int = 8) -> CompressionPlan:
    """``plan`` with every layer at these bits."""
    layers = {
        name: replace(choice, weight_bits=weight, activation_bits=activation)
        for name, choice in plan.layers.items()
    }
    return replace(plan, layers=layers)


def inner_cut(share: float, eight: bool) -> Callable[[SearchSpace], CompressionPlan]:
    """So many of the channels inside every residual block cut; perhaps int8."""

    def make(space: SearchSpace) -> CompressionPlan:
        groups = {
            name: round(count * (1 - share)) if ".conv1" in name else count
            for name, count in space.full.items()
        }
        plan = CompressionPlan(groups, space.identity.layers)
        return quantised(plan) if eight else plan

    return make


def factorised(
    method: str, ratio: float, eight: bool = False
) -> Callable[[SearchSpace], CompressionPlan]:
    """The 3x3 layers of the last two stages factorised at this ratio; perhaps int8."""

    def choose(layer: Layer) -> LayerChoice:
        if layer.kernel != 9 or not layer.name.startswith(("layer2", "layer3")):
            return LayerChoice()
        shape = layer.shape(layer.out_channels, layer.in_channels)
        ranks = tuple(max(1, round(r)) for r in ranks_at(method, ratio, shape))
        return LayerChoice(method=method, ranks=ranks)

    def make(space: SearchSpace) -> CompressionPlan:
        layers = {layer.name: choose(layer) for layer in space.layers}
        plan = CompressionPlan(space.identity.groups, layers)
        return quantised(plan) if eight else plan

    return make


TECHNIQUES: dict[str, Technique] = {
    "float32": Technique(bits(32, 32)),
    "int8": Technique(bits(8, 8)),
    "25 % inner channels": Technique(inner_cut(0.25, False)),
    "25 % inner channels, reconstructed": Technique(inner_cut(0.25, False), FITTED),
    "25 % inner channels + int8": Technique(inner_cut(0.25, True)),
    "25 % inner channels + int8, reconstructed": Technique(inner_cut(0.25, True), FITTED),
    "25 % inner channels + int8, refined": Technique(inner_cut(0.25, True), REFINED, REFINE_IMAGES),
    **{
        f"{method} {ratio:g}{words}": Technique(factorised(method, ratio), options, images)
        for method, ratio in (
            ("tucker2", 0.5),
            ("spatial_svd", 0.5),
            ("cp", 0.5),
            ("depthwise", 0.5),
        )
        for words, options, images in (
            ("", PLAIN, 256),
            (", reconstructed", FITTED, 256),
            (", refined", REFINED, REFINE_IMAGES),
        )
    },
    "tucker2 0.5 + int8, refined": Technique(
        factorised("tucker2", 0.5, True), REFINED, REFINE_IMAGES
    ),
}


def load(depth: int) -> Task:
    """The pretrained ResNet and CIFAR-10."""
    data = os.environ.get("PARETUNE_DATA")
    if not data:
        sys.exit("PARETUNE_DATA names no folder with train/, val/ and the weights")
    job: dict[str, Any] = {
        "name": f"resnet{depth}",
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
    }
    return load_task(load_job(job))


def measure(
    task: Task, space: SearchSpace, chosen: dict[str, Technique], search: bool, timed: bool
) -> Iterator[tuple[str, Evaluation, Evaluation, float]]:
    """(name, evaluation, baseline, seconds to carry the plan out), row by row."""
    rung = "measure" if search else "confirm"
    target = make_target("onnxruntime-cpu", {})
    with tempfile.TemporaryDirectory() as folder:

        def evaluator(technique: Technique) -> Evaluator:
            return Evaluator(
                task,
                space,
                target,
                Path(folder),
                calibration=technique.calibration,
                timed=timed,
                options=technique.options,
            )

        baseline = evaluator(TECHNIQUES["float32"]).evaluate(space.identity, rung)
        if baseline.failed:
            sys.exit(f"the uncompressed network fails: {baseline.cause}")
        for name, technique in chosen.items():
            plan = space.check(technique.plan(space))
            begin = time.process_time()
            ready = evaluator(technique)
            prepared = time.process_time() - begin
            done = ready.evaluate(plan, rung, baseline)
            yield name, done, baseline, prepared


def row(name: str, done: Evaluation, baseline: Evaluation, prepared: float) -> str:
    """One line of the table."""
    if done.failed:
        return f"| {name} | failed: {done.cause} |"
    v, base = done.values, baseline.values
    latency = "-"
    if "latency_ratio" in v:
        latency = f"{v['latency_ratio']:.3f} ± {done.errors['latency_ratio']:.3f}"
    drop = 100 * (base["accuracy"] - v["accuracy"])
    return (
        f"| {name} | {100 * v['accuracy']:.2f} ± {100 * done.errors['accuracy']:.2f} | {drop:+.2f} "
        f"| {v['size_bytes']:,.0f} | {v['macs'] / base['macs']:.3f} | {latency} "
        f"| {prepared:.1f} + {done.seconds['compress']:.1f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depth", type=int, default=20, choices=(20, 32, 44, 56))
    parser.add_argument("--only", action="append", help="rows whose name contains this; repeatable")
    parser.add_argument("--search", action="store_true", help="score on the search images")
    parser.add_argument("--untimed", action="store_true", help="no latency")
    options = parser.parse_args()
    wanted = options.only or [""]
    chosen = {n: t for n, t in TECHNIQUES.items() if any(w in n for w in wanted)}
    if not chosen:
        sys.exit(f"no row of that name; known: {', '.join(TECHNIQUES)}")
    torch.set_num_threads(1)
    task = load(options.depth)
    space = discover(task.network, task.example, freeze=[])
    cpu = cpu_features()
    count = len(task.search if options.search else task.evaluate)
    print(f"ResNet-{options.depth}, {count} images; {cpu['model']}, {cpu['cores']} cores\n")
    print("| technique | accuracy % | drop | bytes | MACs | latency ratio | seconds: once + plan |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for found in measure(task, space, chosen, options.search, not options.untimed):
        print(row(*found), flush=True)


if __name__ == "__main__":
    main()
