"""archive_bytes is recorded where a packed container says more than the file."""

from pathlib import Path

import pytest

from paretune.errors import InputError
from paretune.objectives.evaluate import Evaluator
from paretune.objectives.problem import Problem
from paretune.targets.archive import decode, encode
from paretune.tasks.job import load_job

JOB = {
    "name": "packed",
    "task": {
        "model": "paretune.tasks.vision:plain_cnn",
        "model_args": {"convs": 4, "channels": 1, "size": 8, "width": 16},
        "data": {"kind": "digits"},
    },
    "space": {"zeros": [75, "2:4"]},
    "objectives": ["accuracy", "size_bytes"],
}


def evaluator(folder: Path, **changes) -> Evaluator:
    return Evaluator.for_problem(Problem.from_job(load_job({**JOB, **changes})), folder)


def test_zeros_are_measured_in_the_container(tmp_path: Path) -> None:
    made = evaluator(tmp_path)
    space = made.space
    baseline = made.evaluate(space.identity)
    assert "archive_bytes" not in baseline.values
    plan = space.plan({n: c - 1 for n, c in space.parameters.items() if n.startswith("zeros:")})
    assert {c.sparsity for c in plan.layers.values()} >= {75}
    found = made.evaluate(plan, "measure", baseline)
    assert found.cause is None
    size = baseline.values["size_bytes"]
    assert found.values["archive_ratio"] == found.values["archive_bytes"] / size
    zeros = found.values["archive_bytes"] / found.values["size_bytes"]
    assert 0.25 < zeros < 0.45  # a quarter of the values, and a bit for each place
    assert found.values["size_ratio"] == pytest.approx(1, abs=0.02)
    packed = made.folder / "artifacts" / found.artifact.file_name
    again = tmp_path / "again.onnx"
    again.write_bytes(decode(encode(packed)))
    inputs = next(made.task.search.batches(50, limit=50))[0].numpy()
    outputs = [made.target.load(p).predict(inputs) for p in (packed, again)]
    assert (outputs[0] == outputs[1]).all()


def test_a_constraint_makes_every_plan_tell(tmp_path: Path) -> None:
    made = evaluator(tmp_path, constraints=["archive_ratio <= 0.9"])
    assert made.packed
    baseline = made.evaluate(made.space.identity)
    assert baseline.values["archive_ratio"] < 1


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"space": {"zeros": [0.75]}}, "0.75 is no whole per cent; did you mean 75"),
        ({"space": {"zeros": [100]}}, "100 must be at most 99"),
        ({"space": {"prune": {"smallest_keep": 95}}}, "did you mean 0.95"),
        ({"compress": {"importance": "taylr"}}, "did you mean 'taylor'"),
        ({"compress": {"importance_mix": 30}}, "did you mean 0.3"),
    ],
)
def test_slips_in_the_job_are_answered(section: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_job({**JOB, **section})
