"""One table: four networks, five compressions, on every CPU runtime installed here.

    python benchmarks/runtimes.py [--out FOLDER] [--networks resnet20,...] [--targets ...]

A row is a file of one network, compressed one way, on one runtime: its latency over that runtime's
own float32 file (interleaved, one thread, batch 1), its bytes, and how far it agrees with the
torch network it was exported from. Finished rows are kept in FOLDER/rows.jsonl, so that the
command goes on where it was stopped; delete the file to begin anew. A row that fails says why.

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

from paretune.errors import ParetuneError
from paretune.operators.compress import Compressor
from paretune.spaces.discover import discover
from paretune.spaces.plan import CompressionPlan
from paretune.spaces.space import SearchSpace
from paretune.targets.catalogue import TARGETS, make_target
from paretune.tasks.load import load_task
from paretune.tasks.vision import cifar_resnet

VARIANTS = {
    "float32": (),
    "int8": ("bits",),
    "pruned 50 %": ("keep",),
    "pruned + int8": ("keep", "bits"),
    "low-rank": ("rank",),
}
EXAMPLES = 32  # for calibration and agreement of networks with random weights
IMAGES = 500
ATTEMPTS = 3  # at a timing that the machine's changing speed spoils


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


def rows_of(name: str, targets: list[str], done: set[tuple[str, ...]], folder: Path) -> Any:
    """The rows of one network that are not there yet, one after another."""
    missing = [(v, t) for v in VARIANTS for t in targets if (name, v, t) not in done]
    if not missing:
        return
    torch.manual_seed(0)
    subject = NETWORKS[name]()
    example = subject.inputs[:1]
    space = discover(subject.network, example)
    compressor = Compressor(subject.network, example, space, subject.calibration)
    for variant in VARIANTS:
        here = [target for v, target in missing if v == variant]
        if not here:
            continue
        made = compressor.compress(plan_of(space, VARIANTS[variant]))
        with torch.inference_mode():
            expected = torch.cat([made.network(x) for x in subject.inputs.split(50)]).numpy()
        for target_name in here:
            row: dict[str, Any] = {"network": name, "variant": variant, "target": target_name}
            begin = time.perf_counter()
            try:
                target = make_target(target_name, {"calibration_examples": EXAMPLES})
                base = folder / f"{name}-{target_name}.{target.format}"
                path = base if variant == "float32" else base.with_stem(base.stem + "-candidate")
                batches = [subject.calibration.numpy()]
                if not base.exists() and path != base:
                    identity = compressor.compress(space.identity)
                    target.export(identity.network, example, {}, [], base)
                target.export(made.network, example, made.bits, batches, path)
                row["size_bytes"] = path.stat().st_size
                given = target.load(path).predict(subject.inputs.numpy())
                row["agreement"] = agreement(subject, expected, given)
                for _ in range(ATTEMPTS):
                    timing = target.time(path, base, example.numpy())
                    if not timing.unstable:
                        break
                if timing.unstable:
                    row["cause"] = "timing unstable"
                else:
                    row |= {"latency_ratio": timing.ratio, "latency_ms": timing.latency_ms}
                    row["latency_ratio_error"] = timing.ratio_error
            except (ParetuneError, RuntimeError, ValueError) as error:
                row["cause"] = " ".join(str(error).split())[:200]
            yield row | {"trained": subject.trained, "seconds": time.perf_counter() - begin}


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = [
        "| network | runtime | what | latency ratio | ms | bytes | agreement with torch |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        if "latency_ratio" in r:
            ratio = f"{r['latency_ratio']:.3f} ± {r['latency_ratio_error']:.3f}"
            ms = f"{r['latency_ms']:.3g}"
        else:
            ratio, ms = r.get("cause", "–"), "–"
        size = f"{r['size_bytes']:,}" if "size_bytes" in r else "–"
        kind = "of predictions" if r["trained"] else "largest relative error"
        found = r.get("agreement")
        same = "–" if found is None else f"{found:.2%}" if r["trained"] else f"{found:.1e}"
        cells = [r["network"], r["target"], r["variant"], ratio, ms, size, f"{same} ({kind})"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--out", type=Path, default=Path("runtimes-table"))
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--targets", default=",".join(TARGETS))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    log = options.out / "rows.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    targets = []
    for name in options.targets.split(","):
        try:
            make_target(name)
            targets.append(name)
        except ParetuneError as error:
            print(f"left out: {error}", flush=True)
    done = {(r["network"], r["variant"], r["target"]) for r in rows}
    for network in options.networks.split(","):
        for row in rows_of(network, targets, done, options.out):
            rows.append(row)
            with log.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(table([row]).splitlines()[-1], flush=True)
    order = {name: i for i, name in enumerate([*NETWORKS, *VARIANTS])}
    rows.sort(key=lambda r: (order[r["network"]], r["target"], order[r["variant"]]))
    (options.out / "table.md").write_text(table(rows) + "\n")
    print(table(rows))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
