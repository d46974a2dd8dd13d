"""A search's front beside Olive's: ``python benchmarks/search/olive.py STUDY``.

Olive 0.13's own search of the same network (OnnxQuantization, joint, TPE: 17 candidates in 75 s on
one quiet pinned core, 2,000 test images), compared by the hypervolume below the reference points
that a search uses itself. Make STUDY at the same wall time on one core:

    OMP_NUM_THREADS=1 taskset -c 0 paretune search examples/cifar10_resnet20.yaml --workers 1 \\
        --timeout 1.25
"""

from __future__ import annotations

import argparse
from pathlib import Path

from paretune.objectives.hypervolume import USEFUL_LOSS, normalized_hypervolume
from paretune.trackers.study import Study

OLIVE_BASELINE = {"accuracy": 0.9125, "size_bytes": 1_094_689.0, "latency_ms": 0.723}
OLIVE_FRONT = (
    {"accuracy": 0.914, "size_bytes": 313_113.0, "latency_ms": 0.455},
    {"accuracy": 0.914, "size_bytes": 306_318.0, "latency_ms": 0.457},
    {"accuracy": 0.913, "size_bytes": 306_318.0, "latency_ms": 0.441},
    {"accuracy": 0.910, "size_bytes": 302_830.0, "latency_ms": 0.714},
    {"accuracy": 0.909, "size_bytes": 302_824.0, "latency_ms": 0.972},
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
