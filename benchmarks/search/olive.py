"""A search's front beside Olive's: ``python benchmarks/search/olive.py STUDY``.

Olive 0.13's own search of the same network (OnnxQuantization's default space, joint, TPE, accuracy
within 2 points: 17 candidates; 126 s on one core of an AMD EPYC with VNNI at a load of 1.5 to 3.5,
100 s of processor time), its front measured again as paretune measures: accuracy on the 4,000
images of the evaluation split, latency as a ratio to the float32 file, interleaved. Compared by the
hypervolume below the reference points that a search uses itself. Make STUDY on one core of such a
processor, of files that were measured within the same time:

    OMP_NUM_THREADS=1 taskset -c 0 paretune search examples/cifar10_resnet20.yaml --workers 1 \\
        --timeout 1.67
"""

from __future__ import annotations

import argparse
from pathlib import Path

from paretune.objectives.hypervolume import USEFUL_LOSS, normalized_hypervolume
from paretune.trackers.study import Study

OLIVE_BASELINE = {"accuracy": 0.91425, "size_bytes": 1_083_772.0, "latency_ms": 1.0}
OLIVE_FRONT = (
    {"accuracy": 0.91475, "size_bytes": 294_037.0, "latency_ms": 0.485},
    {"accuracy": 0.91375, "size_bytes": 294_343.0, "latency_ms": 0.476},
    {"accuracy": 0.91500, "size_bytes": 290_553.0, "latency_ms": 0.995},
    {"accuracy": 0.91575, "size_bytes": 290_549.0, "latency_ms": 1.002},
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", type=Path)
    study = Study.open(parser.parse_args().study)
    baseline = study.baseline
    if baseline is None:
        raise SystemExit("the study has no baseline yet")
    front = [dict(point.evaluation.values) for point in study.front()]
    rows = study.history()
    span = max(row.finished_at for row in rows) - min(
        row.finished_at - sum(row.evaluation.seconds.values()) for row in rows
    )
    print(f"{len(rows)} measured files within {span:.0f} s, {len(front)} on the front")
    for name, loss in (("down to 40 points lost", None), ("down to 3 points", USEFUL_LOSS)):
        more = () if loss is None else (loss,)
        mine = normalized_hypervolume(front, baseline.values, *more)
        theirs = normalized_hypervolume(OLIVE_FRONT, OLIVE_BASELINE, *more)
        print(f"{name}: {mine:.3f} against {theirs:.3f}: {mine / theirs:.2f} times")


if __name__ == "__main__":
    main()
