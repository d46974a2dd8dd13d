"""Run a delivered model with nothing but onnxruntime and numpy, and compare with its manifest.

    python examples/check_pulled.py MODEL_DIR evaluate.npz [BASELINE.onnx]

With a baseline file, both are timed in turn on one thread. A shared machine switches between
speeds, so rounds are kept in which the baseline ran within 6 % of its best.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime

folder, data = sys.argv[1], np.load(sys.argv[2])
manifest = json.loads(Path(folder, "manifest.json").read_text())
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1


def load(path):
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda batch: session.run(None, {"input": batch})[0]


model = load(f"{folder}/{manifest['model']['file']}")
inputs, targets = data["inputs"], data["targets"]
found = np.concatenate([model(inputs[i : i + 100]) for i in range(0, len(inputs), 100)])
accuracy = float((found.argmax(1) == targets).mean())
recorded, error = manifest["values"]["accuracy"], manifest["errors"]["accuracy"]
print(f"accuracy {accuracy:.4f} on {len(inputs)}, recorded {recorded:.4f} ± {error:.4f}")
agreed = abs(accuracy - recorded) <= 2 * error


def level_ms(run, batch):
    """Mean of the faster three of four calls, after one that warms the caches."""
    run(batch)
    times = []
    for _ in range(4):
        start = time.perf_counter_ns()
        run(batch)
        times.append((time.perf_counter_ns() - start) / 1e6)
    return sum(sorted(times)[:3]) / 3


if len(sys.argv) > 3:
    baseline, image, count = load(sys.argv[3]), inputs[:1], 2000
    levels = np.array([[level_ms(baseline, image), level_ms(model, image)] for _ in range(count)])
    before, candidate, after = levels[:-1, 0], levels[:-1, 1], levels[1:, 0]
    quiet = 1.06 * np.percentile(levels[:, 0], 1)
    kept = (before <= quiet) & (after <= quiet)
    ratio = float(np.median(2 * candidate[kept] / (before[kept] + after[kept])))
    recorded, error = manifest["values"]["latency_ratio"], manifest["errors"]["latency_ratio"]
    print(
        f"latency ratio {ratio:.3f} ({kept.sum()} undisturbed rounds of {count}, baseline "
        f"{np.median(before[kept]):.3f} ms), recorded {recorded:.3f} ± {error:.3f}"
    )
print("as recorded" if agreed else "NOT as recorded")
sys.exit(0 if agreed else 1)
