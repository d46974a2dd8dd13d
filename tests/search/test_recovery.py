"""Recovered points: which ones, on the front with their parent's number, and after a kill."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file

import paretune
from paretune.errors import InputError
from paretune.objectives.evaluation import Evaluation
from paretune.objectives.objective import Objective
from paretune.operators.compress import Compressor
from paretune.operators.recover import recover
from paretune.search.recovery import STRIDE, promising, recovery_asks, recovery_of
from paretune.search.run import Search
from paretune.spaces.plan import CompressionPlan
from paretune.tasks.job import load_job
from paretune.tasks.recover_section import RecoverSection
from paretune.trackers.ask import BASELINE, Ask
from paretune.trackers.study import Study

RECOVER = {
    "epochs": 15,
    "top": 2,
    "batch": 64,
    "lr": 0.02,
    "augment": "none",
    "precision": "fp32",
}


@pytest.fixture
def job(digits_study, tmp_path):
    """The finished digits search, copied, and its job with a recovery."""
    shutil.copytree(digits_study, tmp_path / "study")
    said = load_job(digits_study / "job.yaml").to_json()
    path = tmp_path / "job.yaml"
    path.write_text(load_job({**said, "tracker": None, "recover": RECOVER}).to_yaml())
    return path


class Heard:
    def __init__(self):
        self.events = []

    def on_event(self, event):
        self.events.append(event)

    def kinds(self):
        return [event.kind for event in self.events]


def test_a_finished_search_is_recovered(job, tmp_path):
    heard = Heard()
    with Search(job, tmp_path / "study").run("quiet", [heard]) as study:
        rows = study.rows("recover")
        assert len(rows) == 2
        assert [row.number - row.parent for row in rows] == [STRIDE, STRIDE]
        assert len(study.rows("measure")) == 8 and not study.in_flight()
        first = {row.number: row.evaluation for row in study.rows("measure")}
        for row in rows:
            before, after = first[row.parent], row.evaluation
            assert not after.failed, after.cause
            assert after.plan == before.plan
            assert after.values["macs"] == before.values["macs"]
            assert after.notes["recovery"]["steps"] == RECOVER["epochs"] * (970 // 64)
            if row.number in {p.number for p in study.front()}:
                point = study.front()[row.number]
                assert point.parent == row.parent and point.rung == "confirm"
        gains = [r.evaluation.values["accuracy"] - first[r.parent].values["accuracy"] for r in rows]
        assert min(gains) > -0.01
        # how much the points of this short search lost is left to its clock; where it was a lot,
        # something must have come back
        lost = [first[r.parent].values["accuracy_drop"] for r in rows]
        assert max(lost) < 0.03 or max(gains) > 0
        check_weights(study, max(rows, key=lambda r: r.evaluation.values["accuracy"]))
    assert heard.kinds().count("recovered") == 2
    assert "training" in heard.kinds() and not list((tmp_path / "study" / "recovery").iterdir())
    again = Heard()
    Search(job, tmp_path / "study").run("quiet", [again]).close()
    assert "recovering" not in again.kinds()


def check_weights(study, row):
    """The kept tensors give a torch network that answers like the exported file."""
    task = paretune.load_task({**study.job, "recover": None})
    weights = study.artifact_path(row.evaluation.weights)
    network = paretune.apply(task.network, row.evaluation.plan, task.example, checkpoint=weights)
    path = study.artifact_path(row.evaluation.artifact)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    inputs = next(task.search.batches(200))[0]
    (theirs,) = session.run(None, {session.get_inputs()[0].name: inputs.numpy()})
    with torch.inference_mode():
        ours = network(inputs).numpy()
    assert np.mean(ours.argmax(1) == theirs.argmax(1)) >= 0.98
    assert set(load_file(weights)) == set(network.state_dict())


def test_what_the_original_knows_by_heart_is_no_reason_to_stop(job):
    """A network cut to a quarter scores better on examples that the original learned than after
    training without them; on new ones it is worse, and that is what counts."""
    task = paretune.load_task({**load_job(job).to_json(), "recover": None})
    cut = {"features.0": 8, "features.3": 12, "features.7": 8, "features.10": 8}
    calibration = torch.cat(task.calibration())
    space = paretune.discover(task.network, task.example)
    plan = CompressionPlan(cut, space.identity.layers)
    made = Compressor(task.network, task.example, space, calibration).compress(plan)
    done = recover(made, task, RecoverSection(**RECOVER))

    def accuracy(network):
        with torch.inference_mode():
            right = [network(x).argmax(1) == y for x, y in task.search.batches(200)]
        return float(torch.cat(right).float().mean())

    assert accuracy(done.network) > accuracy(made.network) + 0.01
    assert done.best_epoch == RECOVER["epochs"]


@pytest.mark.slow
def test_one_point_by_number(job, tmp_path):
    search = Search(job, tmp_path / "study")
    with Study.open(tmp_path / "study") as study:
        number = study.front().front[0].number
    with search.recover_one(number, "quiet", {"epochs": 1}) as study:
        (row,) = study.rows("recover")
        assert row.evaluation.notes["recovery"]["steps"] == 970 // 64
        assert study.job["recover"]["epochs"] == RECOVER["epochs"]  # the job's own stays
        assert [row.number for row in study.rows("recover")] == [number + STRIDE]
        assert recovery_of(study, number).number == number + 2 * STRIDE
        with pytest.raises(InputError, match="is no finished trial"):
            recovery_of(study, 99)


@pytest.mark.slow
def test_a_recovery_killed_at_any_time_goes_on(job, tmp_path):
    """SIGKILL the driver during a training; the resumed one ends as the uninterrupted one does."""
    job.write_text(job.read_text().replace("epochs: 15", "epochs: 30"))
    shutil.copytree(tmp_path / "study", tmp_path / "whole")
    with Search(job, tmp_path / "whole").run("quiet") as study:
        whole = {r.number: r.evaluation for r in study.rows("recover")}
    command = [sys.executable, "-m", "paretune.cli", "search", str(job)]
    command += ["--out", str(tmp_path / "study")]
    for _ in range(2):
        process = subprocess.Popen(
            command, env=os.environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        before = newest(tmp_path / "study" / "recovery")
        end = time.monotonic() + 240
        while newest(tmp_path / "study" / "recovery") == before and process.poll() is None:
            assert time.monotonic() < end
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
    with Search(job, tmp_path / "study").run("quiet") as study:
        rows = study.rows("recover")
        assert {r.number for r in rows} == set(whole)
        assert max(study.attempts(r.number) for r in rows) >= 2
        for row in rows:
            assert row.evaluation.weights == whole[row.number].weights  # bit for bit


def newest(folder: Path):
    found = [path.stat().st_mtime_ns for path in folder.glob("*.safetensors")]
    return max(found, default=0)


def recorded(folder, points, constraints=(), trials=None):
    """A study whose trials have the given (accuracy, size)."""
    objectives = [Objective("accuracy", {}), Objective("size_bytes", {})]
    job = {"toy": 1, "constraints": list(constraints)}
    study = Study.create(folder, job, name="toy", objectives=objectives)

    def evaluation(number, accuracy, size):
        plan = CompressionPlan({"g": number + 2}, {})
        values = {"accuracy": accuracy, "accuracy_drop": 0.9 - accuracy, "size_bytes": size}
        return Evaluation(plan, "measure", values)

    study.add(BASELINE, evaluation(BASELINE, 0.9, 1000.0))
    for number, (accuracy, size) in enumerate(points):
        made = evaluation(number, accuracy, size)
        study.begin(Ask(number, made.plan, {}, {}, {}), "me")
        study.finish(number, made)
    return study


POINTS = [
    (0.895, 900.0),
    (0.89, 800.0),
    (0.88, 400.0),
    (0.87, 390.0),
    (0.85, 100.0),
    (0.5, 50.0),
    (0.84, 950.0),
]


def test_the_choice_is_spread_over_the_front_near_the_baseline(tmp_path):
    with recorded(tmp_path, POINTS) as study:
        # trial 5 lost too much, trial 6 is dominated; 4 is the cheapest, then the farthest ones
        assert [p.number for p in promising(study, 3)] == [4, 0, 3]
        assert {p.number for p in promising(study, 50)} == {0, 1, 2, 3, 4}


def test_constraints_on_the_score_do_not_count_others_do(tmp_path):
    with recorded(tmp_path, POINTS, ["accuracy >= 0.89", "size_bytes <= 500"]) as study:
        assert {p.number for p in promising(study, 9)} == {2, 3, 4}


def test_the_choice_is_kept_and_what_was_begun_comes_first(tmp_path):
    with recorded(tmp_path, POINTS) as study:
        asks = recovery_asks(study, 2)
        assert [(a.number, a.parent) for a in asks] == [(STRIDE + 4, 4), (STRIDE, 0)]
        study.begin(asks[1], "me")
        assert [a.number for a in recovery_asks(study, 2)] == [STRIDE, STRIDE + 4]
        result = Evaluation(asks[1].plan, "recover", {"accuracy": 0.9, "size_bytes": 900.0})
        study.finish(STRIDE, result)
        assert [a.number for a in recovery_asks(study, 2)] == [STRIDE + 4]
