"""What each technique does to a network: accuracy, bytes, MACs and latency, one row each.

    python benchmarks/techniques.py --depth 20                       # the whole table
    python benchmarks/techniques.py --depth 20 --only tucker2        # rows whose name has "tucker2"

Pretrained CIFAR-10 ResNets of the folder PARETUNE_DATA. The exported file is what is scored, on all
5,000 images of ``val`` (with --search: on the 1,000 search images, for making choices), and timed
with ONNX Runtime beside the float32 file. Calibration images come from ``train``; no labels are
used. Rows are kept in --out as soon as they are measured and not measured again, so that a run that
was stopped goes on with the next row; a row that fails says why and is tried again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from cifar import resnet, whole_val

from paretune.objectives.evaluate import Evaluator
from paretune.objectives.evaluation import Evaluation
from paretune.spaces.discover import discover
from paretune.spaces.factors import ranks_at
from paretune.spaces.layer import Layer
from paretune.spaces.plan import CompressionPlan, LayerChoice
from paretune.spaces.space import SearchSpace
from paretune.targets.catalogue import make_target
from paretune.targets.cpu import cpu_features
from paretune.targets.target import Target
from paretune.tasks.compress_section import CompressSection
from paretune.tasks.task import Task

DEFAULT = CompressSection()
PLAIN = CompressSection(whiten=False, reconstruct=False)
REFINED = CompressSection(refine=800)
REFINE_IMAGES = 25_600


@dataclass(frozen=True)
class Technique:
    """One row: how the plan is made from the space, how it is carried out, with how many
    calibration images."""

    plan: Callable[[SearchSpace], CompressionPlan]
    options: CompressSection = DEFAULT
    calibration: int = 256


def every(**choice: Any) -> Callable[[SearchSpace], CompressionPlan]:
    """Every layer with this choice."""
    return lambda space: quantised(space.identity, **choice)


def quantised(plan: CompressionPlan, **choice: Any) -> CompressionPlan:
    """``plan`` with this choice in every layer; nothing said: 8-bit weights and activations."""
    choice = choice or {"weight_bits": 8, "activation_bits": 8}
    layers = {name: replace(found, **choice) for name, found in plan.layers.items()}
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
    "float32": Technique(every(weight_bits=32)),
    "int8": Technique(every(weight_bits=8, activation_bits=8)),
    "4-bit weights": Technique(every(weight_bits=4)),
    "4-bit weights, 8-bit activations": Technique(every(weight_bits=4, activation_bits=8)),
    "2-bit weights": Technique(every(weight_bits=2)),
    "16 means a layer (codebook)": Technique(every(weight_bits=4, quantizer="codebook")),
    "sums of powers of two, 4 bits": Technique(every(weight_bits=4, quantizer="apot")),
    "50 % zeros": Technique(every(sparsity=50)),
    "2:4 zeros": Technique(every(sparsity=50, pattern="2:4")),
    "25 % inner channels, plain": Technique(inner_cut(0.25, False), PLAIN),
    "25 % inner channels": Technique(inner_cut(0.25, False)),
    "25 % inner channels + int8": Technique(inner_cut(0.25, True)),
    "50 % inner channels": Technique(inner_cut(0.5, False)),
    **{
        f"{method} 0.5{words}": Technique(factorised(method, 0.5), options)
        for method in ("tucker2", "spatial_svd", "cp", "depthwise")
        for words, options in ((", plain", PLAIN), ("", DEFAULT))
    },
    "spatial_svd 0.5 + int8": Technique(factorised("spatial_svd", 0.5, True)),
    "tucker2 0.5, refined": Technique(factorised("tucker2", 0.5), REFINED, REFINE_IMAGES),
    "tucker2 0.5 + int8, refined": Technique(
        factorised("tucker2", 0.5, True), REFINED, REFINE_IMAGES
    ),
}
"""Plain: without whitening and reconstruction; all others as a job does by default. Refined: with
800 gradient steps towards the original's answers."""


@dataclass
class Results:
    """The rows measured so far, a JSON file that is whole at any time.

    folder: of this network; exported files lie there too. evaluators: by options and calibration.
    """

    folder: Path
    task: Task
    space: SearchSpace
    rung: str
    timed: bool
    target: Target = field(default_factory=lambda: make_target("onnxruntime-cpu", {}))
    evaluators: dict[tuple[str, int], Evaluator] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        return self.folder / f"{self.rung}.json"

    def row(self, name: str, technique: Technique, baseline: Evaluation | None) -> Evaluation:
        """The kept row, or a new one, which is kept."""
        plan = self.space.check(technique.plan(self.space))
        key = self._key(plan, technique)
        rows = json.loads(self.path.read_text()) if self.path.exists() else {}
        if rows.get(name, {}).get("key") == key:
            return Evaluation.from_json(rows[name]["evaluation"], name)
        done = self._evaluator(technique).evaluate(plan, self.rung, baseline)
        if not done.failed:
            rows[name] = {"key": key, "evaluation": done.to_json()}
            part = self.path.with_suffix(".part")
            part.write_text(json.dumps(rows, indent=1))
            os.replace(part, self.path)
        return done

    def _evaluator(self, technique: Technique) -> Evaluator:
        key = technique.options.model_dump_json(), technique.calibration
        if key not in self.evaluators:
            self.evaluators.clear()
            self.evaluators[key] = Evaluator(
                self.task,
                self.space,
                self.target,
                self.folder,
                calibration=technique.calibration,
                timed=self.timed,
                options=technique.options,
            )
        return self.evaluators[key]

    def _key(self, plan: CompressionPlan, technique: Technique) -> str:
        """What makes a row another one; the code is not in it."""
        said = technique.options.model_dump(mode="json"), technique.calibration, self.timed
        text = json.dumps([self.task.fingerprint, plan.fingerprint, *said], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def measure(
    results: Results, chosen: dict[str, Technique]
) -> Iterator[tuple[str, Evaluation, Evaluation]]:
    """(name, evaluation, baseline), row by row."""
    baseline = results.row("float32", TECHNIQUES["float32"], None)
    if baseline.failed:
        sys.exit(f"the uncompressed network fails: {baseline.cause}")
    for name, technique in chosen.items():
        done = baseline if name == "float32" else results.row(name, technique, baseline)
        yield name, done, baseline


def line(name: str, done: Evaluation, baseline: Evaluation) -> str:
    """One line of the table."""
    if done.failed:
        return f"| {name} | failed: {done.cause} |"
    v, e = done.values, done.errors
    drop, size, latency = "", f"{v['size_bytes']:,.0f}", "-"
    if done is not baseline:
        drop = f"{100 * v['accuracy_drop']:+.2f} ± {100 * e['accuracy_drop']:.2f}"
    if "archive_bytes" in v:
        size = f"{v['archive_bytes']:,.0f} packed"
    if "latency_ratio" in v:
        latency = f"{v['latency_ratio']:.3f} ± {e['latency_ratio']:.3f}"
    return (
        f"| {name} | {100 * v['accuracy']:.2f} | {drop} | {size} "
        f"| {v['macs'] / baseline.values['macs']:.3f} | {latency} "
        f"| {done.seconds['compress']:.1f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depth", type=int, default=20, choices=(20, 32, 44, 56))
    parser.add_argument("--only", action="append", help="rows whose name contains this; repeatable")
    parser.add_argument("--search", action="store_true", help="score on the search images")
    parser.add_argument("--untimed", action="store_true", help="no latency")
    parser.add_argument("--out", type=Path, default=Path("runs/techniques"))
    given = parser.parse_args()
    wanted = given.only or [""]
    chosen = {n: t for n, t in TECHNIQUES.items() if any(w in n for w in wanted)}
    if not chosen:
        sys.exit(f"no row of that name; known: {', '.join(TECHNIQUES)}")
    torch.set_num_threads(1)
    task: Any = resnet(given.depth)
    task = replace(task, evaluate=whole_val(task))
    folder = given.out / f"resnet{given.depth}"
    folder.mkdir(parents=True, exist_ok=True)
    space = discover(task.network, task.example, freeze=[])
    rung = "measure" if given.search else "confirm"
    results = Results(folder, task, space, rung, not given.untimed)
    cpu = cpu_features()
    count = len(task.search if given.search else task.evaluate)
    print(f"ResNet-{given.depth}, {count} images; {cpu['model']}, {cpu['cores']} cores\n")
    print("| technique | accuracy % | drop | bytes | MACs | latency ratio | seconds to compress |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for found in measure(results, chosen):
        print(line(*found), flush=True)


if __name__ == "__main__":
    main()
