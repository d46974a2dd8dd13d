"""One table: four networks, five compressions, on every runtime that works here.

    python benchmarks/runtimes.py [--out FOLDER] [--networks resnet20,...] [--targets ...]
    python benchmarks/runtimes.py --networks resnet18,vit_tiny --batches 1,64 \\
        --targets torch-cuda,onnxruntime-cuda,tensorrt        # on a machine with an NVIDIA GPU

A row is a file of one network, compressed one way, on one runtime: its latency over that runtime's
own float32 file (interleaved, one thread), its bytes, and how far it agrees with the torch network
it was exported from. On a GPU there is a float16 row besides. Finished rows are kept in
FOLDER/rows.jsonl, so that the command goes on where it was stopped; delete the file to begin anew.
A row that fails says why.

ResNet-20 has trained weights and CIFAR-10 images where PARETUNE_DATA names them; agreement is then
the share of 500 test images with the same prediction. The other networks have random weights with
BatchNorm statistics from random inputs: there it is the largest error of an output over the
largest output. Channels and ranks are the nearest offered to a half.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from paretune.errors import CandidateError, ParetuneError
from paretune.objectives.latency import Undisturbed
from paretune.operators.compress import Compressor
from paretune.spaces.discover import discover
from paretune.spaces.plan import CompressionPlan
from paretune.spaces.space import SearchSpace
from paretune.targets.catalogue import TARGETS, make_target
from paretune.targets.target import Bits, Target
from paretune.tasks.load import load_task
from paretune.tasks.vision import cifar_resnet

VARIANTS: dict[str, tuple[str, ...]] = {
    "float32": (),
    "float16": (),
    "int8": ("bits",),
    "pruned 50 %": ("keep",),
    "pruned + int8": ("keep", "bits"),
    "low-rank": ("rank",),
}
WIDTHS = {"float16": (16, 16), "int8": (8, 8), "pruned + int8": (8, 8)}
EXAMPLES = 32  # for calibration and agreement of networks with random weights
IMAGES = 500


class Subject:
    """A network with its inputs; shapes (n, channels, height, width)."""

    def __init__(self, network: nn.Module, inputs: torch.Tensor, calibration: torch.Tensor) -> None:
        self.network, self.inputs, self.calibration = network.eval(), inputs, calibration

    @classmethod
    def random(cls, network: nn.Module, size: int) -> Subject:
        inputs = torch.randn(EXAMPLES, 3, size, size)
        network.train()
        with torch.no_grad():
            for part in inputs.split(8):
                network(part)
        return cls(network, inputs[:8], inputs)

    @property
    def trained(self) -> bool:
        return len(self.inputs) == IMAGES


def resnet20() -> Subject:
    folder = os.environ.get("PARETUNE_DATA")
    if not folder:
        return Subject.random(cifar_resnet(20), 32)
    data = {"kind": "imagefolder", "train": f"{folder}/train", "evaluate": f"{folder}/val"}
    data |= {"size": 32, "train_count": 1000}
    data |= {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    model = {"model": "paretune.tasks.vision:cifar_resnet", "model_args": {"depth": 20}}
    weights = f"{folder}/cifar10_resnet20.safetensors"
    task = load_task({"name": "resnet20", "task": {**model, "weights": weights, "data": data}})
    images = torch.cat([x for x, _ in task.search.batches(100, limit=IMAGES)])
    return Subject(task.network, images, torch.cat(task.calibration(256)))


def resnet18() -> Subject:
    from torchvision.models import resnet18 as make

    return Subject.random(make(), 224)


def mobilenet_v2() -> Subject:
    from torchvision.models import mobilenet_v2 as make

    return Subject.random(make(), 224)


def vit_tiny() -> Subject:
    from torchvision.models import VisionTransformer

    sizes = {"image_size": 224, "patch_size": 16, "num_layers": 12, "num_heads": 3}
    network = VisionTransformer(**sizes, hidden_dim=192, mlp_dim=768)
    nn.init.normal_(network.heads.head.weight, std=0.02)  # torchvision leaves it at zero
    return Subject.random(network, 224)


NETWORKS: dict[str, Callable[[], Subject]] = {
    "resnet20": resnet20,
    "resnet18": resnet18,
    "mobilenet_v2": mobilenet_v2,
    "vit_tiny": vit_tiny,
}


def plan_of(space: SearchSpace, families: tuple[str, ...]) -> CompressionPlan:
    """The plan with these families everywhere: 8 bits, half the channels, half the rank."""
    genotype = {}
    ranks = {layer.name: layer.rank_options for layer in space.layers}
    for parameter in space.parameters:
        family, _, name = parameter.partition(":")
        if family not in families:
            continue
        if family == "bits":
            genotype[parameter] = 1
        elif family == "keep":
            options = space.keeps[name]
            shares = [abs(count / options[0] - 0.5) for count in options]
            genotype[parameter] = shares.index(min(shares))
        elif family == "rank" and ranks.get(name):
            shares = [abs(min(option.shares) - 0.5) for option in ranks[name]]
            genotype[parameter] = 1 + shares.index(min(shares))
    return space.plan(genotype)


def agreement(subject: Subject, expected: np.ndarray, given: np.ndarray) -> float:
    """Share of equal predictions (trained), or the largest relative error (random weights)."""
    if subject.trained:
        return float((given.argmax(1) == expected.argmax(1)).mean())
    return float(np.abs(given - expected).max() / np.abs(expected).max())


def offers(target: Target, variant: str) -> bool:
    """Whether a target has a row of this variant; one that it cannot run may say so."""
    on_gpu = getattr(target, "device", None) == "cuda"
    return variant != "float16" or (on_gpu and WIDTHS[variant] in target.choices.bits)


def rows_of(name: str, targets: list[Target], done: set[tuple[Any, ...]], folder: Path) -> Any:
    """The rows of one network that are not there yet, one after another."""
    missing = [
        (variant, target)
        for variant in VARIANTS
        for target in targets
        if offers(target, variant) and (name, variant, target.name, batch_of(target)) not in done
    ]
    if not missing:
        return
    torch.manual_seed(0)
    subject = NETWORKS[name]()
    example = subject.inputs[:1]
    space = discover(subject.network, example)
    compressor = Compressor(subject.network, example, space, subject.calibration)
    identity = compressor.compress(space.identity)
    levels: dict[Path, Undisturbed] = {}
    for variant in VARIANTS:
        here = [target for v, target in missing if v == variant]
        if not here:
            continue
        made = compressor.compress(plan_of(space, VARIANTS[variant]))
        bits = made.bits
        if variant == "float16":
            layers = (nn.Conv2d, nn.Linear)
            named = made.network.named_modules()
            bits = {n: Bits(*WIDTHS[variant]) for n, m in named if isinstance(m, layers)}
        with torch.inference_mode():
            expected = torch.cat([made.network(x) for x in subject.inputs.split(50)]).numpy()
        for target in here:
            row: dict[str, Any] = {"network": name, "variant": variant, "target": target.name}
            row |= {"batch": batch_of(target), "trained": subject.trained}
            begin = time.perf_counter()
            base = folder / f"{name}-{target.name}-{batch_of(target)}.{target.format}"
            path = base if variant == "float32" else base.with_stem(base.stem + "-candidate")
            try:
                if variant in WIDTHS and WIDTHS[variant] not in target.choices.bits:
                    raise CandidateError("no 8 bits there")
                if not base.exists() and path != base:
                    target.export(identity.network, example, {}, [], base)
                target.export(made.network, example, bits, [subject.calibration.numpy()], path)
                row["size_bytes"] = path.stat().st_size
                given = target.load(path).predict(subject.inputs.numpy())
                row["agreement"] = agreement(subject, expected, given)
                level = levels.setdefault(base, Undisturbed())
                row |= timed(target, path, base, subject.inputs.numpy(), level)
            except (ParetuneError, RuntimeError, ValueError) as error:
                row["cause"] = " ".join(str(error).split())[:200]
            yield row | {"seconds": time.perf_counter() - begin}


def batch_of(target: Target) -> int:
    return int(target.description["batch"])


def timed(
    target: Target, path: Path, base: Path, inputs: np.ndarray, level: Undisturbed
) -> dict[str, Any]:
    """The latency's part of a row. level: of this baseline."""
    timing, alone = level.timing(lambda: target.time(path, base, inputs))
    if timing.unstable:
        return {"cause": "timing unstable"}
    return {
        "latency_ratio": timing.ratio,
        "latency_ratio_error": timing.ratio_error,
        "latency_ms": timing.latency_ms,
        "undisturbed": alone,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = [
        "| network | runtime | batch | what | latency ratio | ms | bytes | agreement with torch |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        if "latency_ratio" in r:
            ratio = f"{r['latency_ratio']:.3f} ± {r['latency_ratio_error']:.3f}"
            ms = f"{r['latency_ms']:.3g}"
        else:
            ratio, ms = r.get("cause", "–"), "–"
        size = f"{r['size_bytes']:,}" if "size_bytes" in r else "–"
        kind = "of predictions" if r["trained"] else "relative error"
        found = r.get("agreement")
        same = f"{found:.1%}" if r["trained"] and found is not None else f"{found or 0:.1e}"
        same = "–" if found is None else f"{same} {kind}"
        cells = [r["network"], r["target"], str(r["batch"]), r["variant"], ratio, ms, size, same]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--out", type=Path, default=Path("runtimes-table"))
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--targets", default=",".join(TARGETS))
    parser.add_argument("--batches", default="1", help="examples a call, e.g. 1,64")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    log = options.out / "rows.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    targets = []
    for name in options.targets.split(","):
        for batch in options.batches.split(","):
            wanted = {"calibration_examples": EXAMPLES, "batch": int(batch)}
            try:
                targets.append(make_target(name, wanted))
            except ParetuneError as error:
                print(f"left out: {error}", flush=True)
                break
    done = {(r["network"], r["variant"], r["target"], r["batch"]) for r in rows}
    for network in options.networks.split(","):
        for row in rows_of(network, targets, done, options.out):
            rows.append(row)
            with log.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(table([row]).splitlines()[-1], flush=True)
    order = {name: i for i, name in enumerate([*NETWORKS, *VARIANTS])}
    rows.sort(key=lambda r: (order[r["network"]], r["target"], r["batch"], order[r["variant"]]))
    (options.out / "table.md").write_text(table(rows) + "\n")
    print(table(rows))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
