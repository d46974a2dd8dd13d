"""What a job asks for is checked before anything is loaded, and the message names its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from paretune.errors import InputError
from paretune.objectives.problem import Problem, parse_constraints, parse_objectives, parse_targets
from paretune.tasks.job import load_job

HEAD = """name: lines
task:
  model: paretune.tasks.vision:plain_cnn
  data: {kind: digits}
  score: SCORE
"""


def refusal(folder: Path, text: str, score: str = "accuracy") -> str:
    """The message, without the file's name, of a job that ends in ``text`` (from line 6)."""
    file = folder / "job.yaml"
    file.write_text(HEAD.replace("SCORE", score) + text, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        job = load_job(file)
        parse_objectives(job)
        parse_constraints(job)
        parse_targets(job)
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(str(file))


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("{latency_ms: {bach: 4}}", "latency_ms.bach: unknown key 'bach'; did you mean 'batch'?"),
        ("{latency_ms: {batch: 0}}", "latency_ms.batch: 0 must be at least 1"),
        ("{latency_ms: {batch: true}}", "latency_ms.batch: expected a whole number, got True"),
        ("{latency_ms: {threads: 999}}", "latency_ms.threads: 999 must be at most 256"),
        ("{latency_ms: {target: []}}", "latency_ms.target: expected a target's name, got []"),
        ("{latency_ms: {target: nowhere}}", "latency_ms.target: unknown target 'nowhere'"),
        ("{accuracy: {batch: 1}}", "'accuracy' is listed twice; remove one"),
        ("fidelity", "'fidelity' is not measured with score 'accuracy'; measured: accuracy, "),
    ],
)
def test_an_objective_is_refused_with_its_line(tmp_path: Path, item: str, message: str) -> None:
    said = refusal(tmp_path, f"objectives:\n  - accuracy\n  - {item}\n")
    assert said.startswith(":8: objectives[1]")
    assert message in said


def test_lines_are_those_of_the_file_after_a_list_of_targets(tmp_path: Path) -> None:
    text = "objectives:\n  - {latency_ms: {target: [torch-cpu, onnxruntime-cpu]}}\n  - macs\n"
    assert refusal(tmp_path, text + "  - sise_bytes\n").startswith(":9: objectives[2]: unknown")


@pytest.mark.parametrize(
    ("score", "condition", "message"),
    [
        ("accuracy", "fidelity > 0.9", "'fidelity' is not measured with score 'accuracy'"),
        ("fidelity", "accuracy > 0.9", "measured: fidelity, divergence, accuracy_drop"),
        ("mine.py:score", "loss < 2", "measured: accuracy, accuracy_drop"),
    ],
)
def test_a_constraint_on_another_score_is_refused(
    tmp_path: Path, score: str, condition: str, message: str
) -> None:
    first = "fidelity" if score == "fidelity" else "accuracy"
    text = f"objectives: [{first}, size_bytes]\nconstraints:\n  - macs < 1M\n  - {condition}\n"
    said = refusal(tmp_path, text, score)
    assert said.startswith(":9: constraints[1]: ")
    assert message in said


def test_constraints_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    said = refusal(tmp_path, "constraints:\n  - accuracy >= 0.9\n  - accuracy <= 0.8\n")
    assert said.startswith(":6: constraints: 'accuracy >= 0.9 and accuracy <= 0.8' contradicts")


def test_packed_sizes_are_refused_where_they_are_not_measured(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    text = "target: {name: torch-cpu}\nconstraints: [archive_ratio < 0.1]\n"
    file.write_text(HEAD.replace("SCORE", "accuracy") + text, encoding="utf-8")
    with pytest.raises(InputError, match="job.yaml:6: target.name: the packed size of a"):
        Problem.from_job(load_job(file))


def test_divergence_is_an_objective_of_a_search_for_fidelity(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    text = HEAD.replace("SCORE", "fidelity") + "objectives: [divergence, size_bytes]\n"
    file.write_text(text, encoding="utf-8")
    assert [o.name for o in parse_objectives(load_job(file))] == ["divergence", "size_bytes"]


def test_a_wrong_option_of_a_target_is_named_where_it_stands(tmp_path: Path) -> None:
    text = "objectives: [accuracy, {latency_ms: {target: onnxruntime-cpu}}]\ntarget:\n  options:\n"
    said = refusal(tmp_path, text + "    onnxruntime-cpu: {secnds: 2}\n")
    place = ":9: target.options.onnxruntime-cpu.secnds: unknown option of 'onnxruntime-cpu'"
    assert said == f"{place}; did you mean 'seconds'?"
    said = refusal(tmp_path, text + "    onnxruntime-cpuu: {seconds: 2}\n")
    assert said.startswith(":9: target.options.onnxruntime-cpuu: ")
    assert "did you mean 'onnxruntime-cpu'" in said
