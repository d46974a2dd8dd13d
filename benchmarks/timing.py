"""How repeatable is the stopwatch? Repeats A/A and A/B timings, with the other core kept busy.

    python benchmarks/timing.py --repeats 20 --load

A is a ResNet-20 for 32x32 images with random weights in float32; B is its int8 form, and a
ResNet-20 of half the width. Each repeat opens the candidate anew. Prints one row per pair: the
mean ratio, the coefficient of variation (CV) over the repeats, and what a timing cost.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from paretune.targets.catalogue import make_target
from paretune.targets.cpu import cpu_features
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
    stem = [nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    blocks, inner = [], width
    for stage in range(3):
        for index in range(3):
            outer = width << stage
            blocks.append(Block(inner, outer, 2 if stage and not index else 1))
            inner = outer
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inner, 10)]
    return nn.Sequential(*stem, *blocks, *head).eval()


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


def report(name: str, timings: list[Timing]) -> str:
    """One row of the table."""
    ratios = np.array([t.ratio for t in timings if not t.unstable])
    seconds = float(np.mean([t.notes["seconds"] for t in timings]))
    states = ", ".join(f"{s}: {n}" for s, n in sorted(Counter(t.state for t in timings).items()))
    spread = float(ratios.std(ddof=1) / ratios.mean()) if len(ratios) > 1 else float("nan")
    error = float(np.mean([t.ratio_error / t.ratio for t in timings]))
    return (
        f"| {name} | {ratios.mean():.4f} | {100 * spread:.2f} % | {100 * error:.2f} % | "
        f"{len(timings) - len(ratios)} | {states} | {seconds:.2f} s |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=3.0, help="of one timing")
    parser.add_argument("--load", action="store_true", help="keep all other cores busy")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    calibration = [rng.standard_normal((64, 3, 32, 32)).astype(np.float32)]
    example = torch.zeros(1, 3, 32, 32)
    target = make_target("onnxruntime-cpu", {"seconds": options.seconds})
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: Path(folder) / f"{name}.onnx" for name in ("A", "A copy", "int8", "half")}
        network = resnet20()
        layers = [n for n, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        eight = {name: Bits(8, 8) for name in layers}
        begin = time.perf_counter()
        target.export(network, example, {}, [], paths["A"])
        floats = time.perf_counter()
        target.export(network, example, eight, calibration, paths["int8"])
        done = time.perf_counter()
        paths["A copy"].write_bytes(paths["A"].read_bytes())
        target.export(resnet20(width=8), example, {}, [], paths["half"])
        cpu = cpu_features()
        print(f"{cpu['model']}, {cpu['cores']} cores, {' '.join(cpu['flags'])}")
        others = (cpu["cores"] - 1) if options.load else 0
        print(f"{others} busy processes beside; load average {os.getloadavg()[0]:.1f} before")
        print(f"export {floats - begin:.2f} s, export and int8 {done - floats:.2f} s")
        pairs = {"A/A": "A copy", "A/B int8": "int8", "A/B half width": "half"}
        timings: dict[str, list[Timing]] = {name: [] for name in pairs}
        with busy_cores(others):
            for _ in range(options.repeats):
                for name, file in pairs.items():
                    timings[name].append(target.time(paths[file], paths["A"], calibration[0][:1]))
        print(f"load average {os.getloadavg()[0]:.1f} after\n")
        print("| pair | ratio | CV of repeats | mean error | unstable | rounds in state | cost |")
        print("|---|---|---|---|---|---|---|")
        for name, rows in timings.items():
            print(report(name, rows))


if __name__ == "__main__":
    main()
