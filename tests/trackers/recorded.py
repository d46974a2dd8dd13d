"""A made-up search whose every number follows from the trial's number; also a writer process.

``python recorded.py write FOLDER ACKNOWLEDGED COUNT`` goes on with the study in FOLDER (or makes
it) until it has COUNT trials, and notes each acknowledged number in a file of its own.
``python recorded.py write-then-die FOLDER ACKNOWLEDGED COUNT`` kills itself when the finished
trials are about to be copied to Optuna's tables.
``python recorded.py hold FOLDER`` holds the study until its input closes.
"""

import os
import random
import signal
import sys
from pathlib import Path

from paretune.errors import InputError
from paretune.objectives.evaluation import Evaluation
from paretune.objectives.objective import Objective
from paretune.spaces.plan import CompressionPlan, LayerChoice
from paretune.trackers.study import BASELINE, Ask, Study

LAYERS = 6
JOB = {
    "name": "made-up",
    "task": {"model": "some.module:network", "model_args": {"depth": 20}},
    "space": {},
    "objectives": ["accuracy", "size_bytes", "latency_ms"],
    "constraints": ["accuracy >= 0.5"],
    "search": {"seed": 0, "sampler": "nsga2", "trials": 100},
}
IDENTITY = CompressionPlan(
    {f"block{i}": 16 for i in range(3)}, {f"layer{i}.conv": LayerChoice() for i in range(LAYERS)}
)
BASE = {"accuracy": 0.91, "size_bytes": 1_000_000.0, "latency_ms": 1.0, "macs": 4e7}


def objectives():
    return [Objective.parse(name) for name in JOB["objectives"]]


def plan(number):
    dice = random.Random(number)
    layers = {
        name: LayerChoice(*dice.choice([(32, 32), (8, 8)]), *dice.choice([(), ("svd", (4,))]))
        for name in IDENTITY.layers
    }
    return CompressionPlan({g: dice.choice([4, 8, 12, 16]) for g in IDENTITY.groups}, layers)


def ask(number, parent=None):
    return Ask(
        number=number,
        plan=plan(number if parent is None else parent),
        params={"block0": number % 4},
        system_attrs={"generation": number // 10},
        study_attrs={},
        burnt=({"params": {"block0": 1}},) if number % 5 == 0 else (),
        parent=parent,
    )


def values(number):
    dice = random.Random(number + 0.5)
    size, time = dice.uniform(0.1, 1), dice.uniform(0.2, 1)
    drop = 0.2 * dice.random() * (1 - size) * (1 - time)
    return {
        "accuracy": BASE["accuracy"] - drop,
        "accuracy_drop": drop,
        "size_bytes": float(round(1e6 * size)),
        "size_ratio": size,
        "latency_ms": time,
        "latency_ratio": time,
        "macs": 4e7 * time,
    }


def evaluation(number, rung="measure", artifact=None, of=None):
    """Every seventh trial fails."""
    if number % 7 == 3:
        return Evaluation.failure(of or plan(number), f"layer{number % 3}: singular", rung)
    shift = 0.003 if rung == "confirm" else 0.0
    numbers = {k: v - shift * (k == "accuracy") for k, v in values(number).items()}
    return Evaluation(
        plan=of or plan(number),
        rung=rung,
        values=numbers,
        errors={"accuracy": 0.004},
        artifact=artifact,
        seconds={"export": 0.5, "measure": 1.25},
        notes={"runtime": "made up"},
    )


def baseline(rung="measure"):
    return Evaluation(IDENTITY, rung, BASE)


def new_study(folder, trials=0, artifacts=False):
    """A study that is open for writing, with a baseline and so many finished trials."""
    study = Study.create(folder, JOB, name="made-up", objectives=objectives())
    study.add(BASELINE, baseline())
    for number in range(trials):
        run_trial(study, number, artifacts)
    return study


def run_trial(study, number, artifacts=False):
    study.begin(ask(number), "worker-0")
    artifact = None
    if artifacts:
        path = study.folder / ".exported.onnx"
        path.write_bytes(b"model of trial %d" % number * 50)
        artifact = study.store_artifact(path)
        path.unlink()
    study.finish(number, evaluation(number, artifact=artifact))


def _write(folder, acknowledged, count, die):
    import paretune.trackers.study as module

    module._COPY_EVERY = 3
    if die:
        module.OptunaTables.add = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    try:
        study = Study.open(folder, write=True)
    except InputError:
        study = new_study(folder)
    todo = study.in_flight()
    done = {row.number for row in study.rows()}
    todo += [n for n in range(count) if n not in done and n not in todo]
    with study, open(acknowledged, "a") as notes:
        for number in todo:
            run_trial(study, number, artifacts=True)
            notes.write(f"{number}\n")
            notes.flush()
            os.fsync(notes.fileno())


if __name__ == "__main__":
    mode, folder = sys.argv[1], Path(sys.argv[2])
    if mode == "hold":
        with Study.open(folder, write=True):
            print("held", flush=True)
            sys.stdin.read()
    else:
        _write(folder, sys.argv[3], int(sys.argv[4]), mode == "write-then-die")
