"""One plan on two targets at once: names, values of each file, fronts, delivery."""

import io
import json
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from paretune.deploy.pull import pull
from paretune.errors import InputError
from paretune.objectives.evaluate import Evaluator
from paretune.objectives.evaluation import Artifact, Evaluation
from paretune.objectives.front import ParetoFront
from paretune.objectives.further import measured_on, seen_from
from paretune.objectives.objective import Objective
from paretune.objectives.problem import Problem, parse_constraints, parse_objectives
from paretune.objectives.target_fronts import differences, front_of, front_targets
from paretune.search.report import front_text
from paretune.search.run import Search
from paretune.spaces.plan import CompressionPlan
from paretune.tasks.job import load_job
from paretune.trackers.study import Study

ORT, OV = "onnxruntime-cpu", "openvino-cpu"
JOB = {
    "name": "two",
    "task": {
        "model": "paretune.tasks.vision:plain_cnn",
        "model_args": {"convs": 4, "channels": 1, "size": 8, "width": 8},
        "data": {"kind": "digits"},
    },
    "objectives": [
        {"accuracy": {"target": ORT}},
        {"latency_ms": {"target": [ORT, OV]}},
        {"size_bytes": {"target": OV}},
    ],
}


def test_objectives_take_their_targets_suffix() -> None:
    job = load_job(JOB)
    assert (job.target.name, job.target.also) == (ORT, (OV,))
    assert [o.name for o in parse_objectives(job)] == [
        "accuracy_onnxruntime_cpu",
        "latency_ms_onnxruntime_cpu",
        "latency_ms_openvino_cpu",
        "size_bytes_openvino_cpu",
    ]
    assert [o.direction for o in parse_objectives(job)] == ["maximize", *["minimize"] * 3]
    assert load_job(job.to_json()) == job


def test_a_bare_name_is_an_error_that_lists_the_choices() -> None:
    job = load_job({**JOB, "objectives": [*JOB["objectives"], "accuracy"]})
    with pytest.raises(InputError, match="accuracy_onnxruntime_cpu, accuracy_openvino_cpu"):
        parse_objectives(job)
    job = load_job({**JOB, "constraints": ["latency_ms < 3ms"]})
    with pytest.raises(InputError, match="latency_ms_onnxruntime_cpu, latency_ms_openvino_cpu"):
        parse_constraints(job)
    job = load_job({**JOB, "constraints": ["macs < 3M and accuracy_drop_openvino_cpu <= 1pt"]})
    assert parse_constraints(job)[0].names == ("macs", "accuracy_drop_openvino_cpu")
    twice = load_job({**JOB, "objectives": ["latency_ms", "macs", {"latency_ms": {"batch": 1}}]})
    with pytest.raises(InputError, match="objectives.2.: 'latency_ms' is listed twice"):
        parse_objectives(twice)
    alone = load_job({**JOB, "objectives": ["accuracy", "latency_ms"]})
    assert [o.name for o in parse_objectives(alone)] == ["accuracy", "latency_ms"]


OBJECTIVES = [
    Objective(f"{q}_{t.replace('-', '_')}", {"target": t})
    for q in ("accuracy", "latency_ms")
    for t in (ORT, OV)
]


def _row(number: int, first: tuple[float, float], second: tuple[float, float]) -> Evaluation:
    values: dict[str, float] = {}
    for target, (accuracy, latency) in ((ORT, first), (OV, second)):
        bare = {"accuracy": accuracy, "latency_ms": latency}
        values |= measured_on(target, bare, {})[0] | (bare if target == ORT else {})
    return Evaluation(CompressionPlan({"g": 8 - number}, {}), "measure", values)


def test_the_report_says_where_the_fronts_differ() -> None:
    """By hand: 1 is beaten on the second target by 2, 3 is beaten on the first by 1."""
    rows = [
        (0, _row(0, (0.9, 4.0), (0.9, 4.0))),
        (1, _row(1, (0.8, 1.0), (0.8, 3.0))),
        (2, _row(2, (0.85, 2.0), (0.85, 2.0))),
        (3, _row(3, (0.7, 1.5), (0.7, 1.0))),
    ]
    front = ParetoFront(rows, OBJECTIVES)
    assert front_targets(front) == [ORT, OV]
    assert {p.number for p in front_of(front, ORT).front} == {0, 1, 2}
    assert {p.number for p in front_of(front, OV).front} == {0, 2, 3}
    first, second = differences(front)
    assert "onnxruntime-cpu: 3 points, 1 of them" in first and "(trials 1)" in first
    assert "openvino-cpu: 3 points, 1 of them" in second and "(trials 3)" in second
    assert front.choose("accuracy_openvino_cpu >= 0.75", "latency_ms_openvino_cpu").number == 2
    with pytest.raises(InputError, match="latency_ms_onnxruntime_cpu, latency_ms_openvino_cpu"):
        front.choose(best="latency_ms")
    with pytest.raises(InputError, match="accuracy_onnxruntime_cpu, accuracy_openvino_cpu"):
        front.choose("accuracy > 0.5", "latency_ms_openvino_cpu")


def test_a_targets_own_front_compares_confirmed_values_with_confirmed_ones() -> None:
    """3 was beaten by 1 on both targets when they were searched; that 1 was slower when it was
    measured again says nothing of 3."""
    rows = [
        (1, _row(1, (0.8, 1.0), (0.8, 3.0))),
        (3, _row(3, (0.7, 1.5), (0.7, 3.5))),
        (1, replace(_row(1, (0.8, 2.0), (0.8, 4.0)), rung="confirm")),
    ]
    front = ParetoFront(rows, OBJECTIVES)
    assert [p.number for p in front.front] == [1]
    for target in (ORT, OV):
        (point,) = front_of(front, target).front
        assert point.number == 1 and point.rung == "confirm"
        assert point.values["latency_ms"] == {ORT: 2.0, OV: 4.0}[target]


def test_a_further_target_scores_the_examples_that_the_first_one_scores(tmp_path: Path) -> None:
    """Only confirming looks at the evaluation split; a trained point is judged by the search's."""
    job = {**JOB, "target": {"name": ORT, "also": ["torch-cpu"]}}
    job["objectives"] = ["macs", "params"]
    job["space"] = {"bits": [32]}
    job["task"] = {**JOB["task"], "data": {"kind": "digits", "search": 90}}
    evaluator = Evaluator.for_problem(Problem.from_job(load_job(job)), tmp_path)
    for rung in ("measure", "recover", "confirm"):
        found = evaluator.evaluate(evaluator.space.identity, rung)
        assert found.cause is None
        assert (found.notes["examples"] == 90) is (rung != "confirm")
        assert found.notes["torch_cpu"]["examples"] == found.notes["examples"]


def test_files_beside_survive_json() -> None:
    artifact = Artifact("a" * 64, 3, "onnx", {OV: Artifact("b" * 64, 4, "zip")})
    assert Artifact.from_json(json.loads(json.dumps(artifact.to_json()))) == artifact
    assert [f.format for f in artifact.files] == ["onnx", "zip"]
    assert Artifact("a" * 64, 3, "onnx").to_json() == {
        "sha256": "a" * 64,
        "size_bytes": 3,
        "format": "onnx",
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("openvino", reason="the extra 'openvino' is not installed")
    pytest.importorskip("nncf", reason="the extra 'openvino' is not installed")
    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("two") / "study"
    with Search({**JOB, "search": {"trials": 3, "sampler": "random"}}, place).run("quiet"):
        pass
    return place


def test_every_target_has_its_own_file_and_numbers(folder: Path) -> None:
    import openvino

    with Study.open(folder) as study:
        rows = [r.evaluation for r in study.rows("measure")]
        text = front_text(study, None, "table", False)
    assert "front of openvino-cpu:" in text and "front of onnxruntime-cpu:" in text
    task = Problem.from_job(load_job(folder / "job.yaml")).task
    kept = [
        e
        for e in rows
        if not e.failed and (folder / "artifacts" / seen_from(e, OV).artifact.file_name).exists()
    ]
    assert kept  # those of the front; the others' files are not kept
    core = openvino.Core()  # one: each takes a stack for signals away with it
    for evaluation in kept:
        here = seen_from(evaluation, OV)
        assert here.artifact is not None and here.artifact.format == "zip"
        data = (folder / "artifacts" / here.artifact.file_name).read_bytes()
        assert len(data) == here.values["size_bytes"]
        packed = zipfile.ZipFile(io.BytesIO(data))
        model = core.read_model(packed.read("model.xml"), packed.read("model.bin"))
        run = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        right = sum(
            int((run(x.numpy())[0].argmax(1) == y.numpy()).sum())
            for x, y in task.search.batches(50)
        )
        assert here.values["accuracy"] == pytest.approx(right / len(task.search))
        own = seen_from(evaluation, ORT)
        assert own.values["accuracy"] == evaluation.values["accuracy"]
        assert own.artifact is not None and own.artifact.format == "onnx"


def test_pull_delivers_each_runtimes_file(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="did you mean 'openvino'"):
        pull(folder, tmp_path / "x", best="macs", formats=["openvin"])
    best = "latency_ms_openvino_cpu"
    bundle = pull(folder, tmp_path / "out", best=best, formats=["onnx", "openvino"])
    inputs = np.load(bundle.folder / "examples.npz")["inputs"]
    outputs = []
    for one in bundle.manifest["formats"]:
        assert one["values"]["accuracy"] == pytest.approx(one["checked_score"])
        code = "\n".join(
            [
                "import sys, numpy",
                "batch = numpy.load('examples.npz')['inputs']",
                *one["load"],
                "assert not any(name.startswith('paretune') for name in sys.modules)",
                "numpy.save('out.npy', outputs)",
            ]
        )
        subprocess.run([sys.executable, "-c", code], cwd=bundle.folder, check=True, env={})
        outputs.append(np.load(bundle.folder / "out.npy"))
    assert [len(o) for o in outputs] == [len(inputs)] * 2
    assert outputs[0].shape == outputs[1].shape
