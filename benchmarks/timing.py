"""How repeatable is the stopwatch? Repeats A/A and A/B timings, with the other core kept busy.

    python benchmarks/timing.py [--networks resnet20] [--repeats 20] [--no-load]

A is a ResNet-20 for 32x32 images, and a ResNet-18 for 224x224 ones, with random weights in float32;
B is its int8 form, and the same network at half the width. Each repeat opens the candidate anew.
All cores but one are kept busy meanwhile, by processes that end with this one. Prints one row per
pair: the mean ratio and the coefficient of variation (CV) over the repeats in which the core was
the process's own and the baseline came to its best level (what a search calls undisturbed), how
many these were, the CV over all, and what a timing cost.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from paretune.targets.catalogue import make_target
from paretune.targets.cpu import cpu_features
from paretune.targets.speed_states import NEAR
from paretune.targets.target import Bits, Timing


class Block(nn.Module):
    """Two 3x3 convolutions with a shortcut (1x1 where the shape changes)."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inner, outer, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outer)
        self.conv2 = nn.Conv2d(outer, outer, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outer)
        same = stride == 1 and inner == outer
        self.shortcut = nn.Identity() if same else nn.Conv2d(inner, outer, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        return functional.relu(out + self.shortcut(x))


def resnet20(width: int = 16) -> nn.Module:
    """A ResNet-20 with random weights: stages of ``width``, 2 and 4 times as many channels."""
    torch.manual_seed(0)
    return _resnet([nn.Conv2d(3, width, 3, 1, 1, bias=False)], width, 3, 3, 10)


def resnet18(width: int = 64) -> nn.Module:
    """A ResNet-18 with random weights: stages of ``width``, 2, 4 and 8 times as many channels."""
    torch.manual_seed(0)
    stem = [nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.MaxPool2d(3, 2, 1)]
    return _resnet(stem, width, 4, 2, 1000)


def _resnet(
    stem: list[nn.Module], width: int, stages: int, blocks: int, classes: int
) -> nn.Sequential:
    layers, inner = [*stem, nn.BatchNorm2d(width), nn.ReLU()], width
    for stage in range(stages):
        for index in range(blocks):
            outer = width << stage
            layers.append(Block(inner, outer, 2 if stage and not index else 1))
            inner = outer
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inner, classes)]
    return nn.Sequential(*layers, *head).eval()


@dataclass(frozen=True)
class Case:
    """A network, made at any width. side: of its images; images: for calibration; seconds: of one
    timing (a slower network needs longer for as many calls)."""

    make: Callable[..., nn.Module]
    width: int
    side: int
    images: int
    seconds: float


CASES = {"resnet20": Case(resnet20, 16, 32, 64, 3.0), "resnet18": Case(resnet18, 64, 224, 16, 6.0)}


@contextlib.contextmanager
def busy_cores(processes: int) -> Iterator[None]:
    """Keep ``processes`` cores busy with arithmetic meanwhile."""
    code = "while True: sum(range(10000))"
    running = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def report(name: str, timings: list[Timing], level_ms: float) -> str:
    """One row of the table. level_ms: the baseline's undisturbed time."""
    stable = [t for t in timings if not t.unstable]
    own = [t for t in stable if t.own_core and t.baseline_ms <= (1 + NEAR) * level_ms]
    alone = np.array([t.ratio for t in own])
    every = np.array([t.ratio for t in stable])
    seconds = float(np.mean([t.notes["seconds"] for t in timings]))
    error = float(np.mean([t.ratio_error / t.ratio for t in timings]))
    return (
        f"| {name} | {alone.mean():.4f} | {_spread(alone)} | {len(alone)} of {len(timings)} | "
        f"{_spread(every)} | {100 * error:.2f} % | {len(timings) - len(stable)} | {seconds:.2f} s |"
    )


def _spread(ratios: np.ndarray) -> str:
    if len(ratios) < 2:
        return "–"
    return f"{100 * ratios.std(ddof=1) / ratios.mean():.2f} %"


def repeat(case: Case, repeats: int, others: int) -> dict[str, list[Timing]]:
    """Timings of each pair, the pairs in turn."""
    rng = np.random.default_rng(0)
    shape = (case.images, 3, case.side, case.side)
    calibration = [rng.standard_normal(shape).astype(np.float32)]
    example = torch.zeros(1, *shape[1:])
    target = make_target("onnxruntime-cpu", {"seconds": case.seconds})
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: Path(folder) / f"{name}.onnx" for name in ("A", "A copy", "int8", "half")}
        network = case.make()
        layers = [n for n, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        target.export(network, example, {}, [], paths["A"])
        target.export(network, example, {n: Bits(8, 8) for n in layers}, calibration, paths["int8"])
        paths["A copy"].write_bytes(paths["A"].read_bytes())
        target.export(case.make(width=case.width // 2), example, {}, [], paths["half"])
        pairs = {"A/A": "A copy", "A/B int8": "int8", "A/B half width": "half"}
        timings: dict[str, list[Timing]] = {name: [] for name in pairs}
        with busy_cores(others):
            for _ in range(repeats):
                for name, file in pairs.items():
                    timings[name].append(target.time(paths[file], paths["A"], calibration[0][:1]))
    return timings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", default=",".join(CASES))
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--load", action=argparse.BooleanOptionalAction, default=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    cpu = cpu_features()
    others = (cpu["cores"] - 1) if options.load else 0
    print(f"{cpu['model']}, {cpu['cores']} cores, {' '.join(cpu['flags'])}")
    print(f"{others} busy processes beside; load average {os.getloadavg()[0]:.1f} before\n")
    print("| pair | ratio | CV | undisturbed | CV of all | mean error | unstable | cost |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for network in options.networks.split(","):
        pairs = repeat(CASES[network], options.repeats, others)
        level_ms = min(t.baseline_ms for timings in pairs.values() for t in timings)
        for name, timings in pairs.items():
            print(report(f"{network} {name}", timings, level_ms), flush=True)
    print(f"\nload average {os.getloadavg()[0]:.1f} after")


if __name__ == "__main__":
    main()
