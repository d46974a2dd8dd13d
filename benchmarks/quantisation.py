"""Accuracy and bytes of ResNet-20 with every layer quantised, without retraining.

    python benchmarks/quantisation.py [--images 5000]

Needs the CIFAR-10 folder named by PARETUNE_DATA. Accuracy is on ``val`` of the exported file, in
ONNX Runtime on this CPU; the calibration images are 256 training images.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch

from paretune.operators.compress import Compressor
from paretune.spaces.discover import discover
from paretune.spaces.plan import CompressionPlan, LayerChoice
from paretune.targets.cpu import cpu_features
from paretune.targets.onnxruntime_cpu import OnnxRuntimeCpu
from paretune.tasks.compress_section import CompressSection
from paretune.tasks.load import load_task

JOB = Path(__file__).parent.parent / "examples" / "cifar10_resnet20.yaml"
PLAIN = {"ranges": "minmax", "bias_correction": False}
ROWS: tuple[tuple[str, LayerChoice, dict[str, object]], ...] = (
    ("float32", LayerChoice(), {}),
    ("int8", LayerChoice(8, 8), {}),
    ("4 bits, min-max, nearest", LayerChoice(4, 32), PLAIN),
    ("4 bits, least squares", LayerChoice(4, 32), {"bias_correction": False}),
    ("4 bits, biases corrected", LayerChoice(4, 32), {}),
    ("4 bits, rounding learned", LayerChoice(4, 32), {"rounding": "learned"}),
    ("4 bits, activations 8", LayerChoice(4, 8), {}),
    ("4 bits, activations 8, learned", LayerChoice(4, 8), {"rounding": "learned"}),
    ("4 bits, zero points, groups of 16", LayerChoice(4, 32), {"symmetric": False, "scales": 16}),
    ("4 bits, codebook (float32 file)", LayerChoice(4, 32, quantizer="codebook"), {}),
    ("4 bits, powers of two (int8 file)", LayerChoice(4, 8, quantizer="apot"), {}),
    ("3 bits, rounding learned", LayerChoice(3, 8), {"rounding": "learned"}),
    ("2 bits, rounding learned", LayerChoice(2, 8), {"rounding": "learned"}),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=5000, help="of val, at most")
    parser.add_argument("--rows", type=str, default="", help="only those that contain this")
    arguments = parser.parse_args()
    task = load_task(JOB)
    batches = [b for split in (task.search, task.evaluate) for b in split.batches(250)]
    inputs = torch.cat([x for x, _ in batches])[: arguments.images].numpy()
    labels = torch.cat([y for _, y in batches])[: arguments.images].numpy()
    calibration = torch.cat(task.calibration(256))
    space = discover(task.network, task.example, freeze=[], prune=False)
    print(f"{cpu_features()['model']}, {len(labels)} images of val")
    print(f"{'':36} accuracy    bytes  seconds")
    for label, choice, options in ROWS:
        if arguments.rows not in label:
            continue
        compressor = Compressor(
            task.network, task.example, space, calibration, CompressSection(**options)
        )
        plan = CompressionPlan({}, {layer.name: choice for layer in space.layers})
        start = time.perf_counter()
        made = compressor.compress(plan)
        with tempfile.TemporaryDirectory() as folder:
            target, path = OnnxRuntimeCpu(), Path(folder) / "model.onnx"
            target.export(
                made.network, task.example, made.bits, [calibration.numpy()], path, made.grids
            )
            seconds = time.perf_counter() - start
            given = target.load(path).predict(inputs).argmax(1)
            size = path.stat().st_size
        print(f"{label:36} {(given == labels).mean():8.4f} {size:8,} {seconds:8.1f}", flush=True)


if __name__ == "__main__":
    main()
