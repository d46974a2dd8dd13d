"""The page and the report of a real study: whole, and without a path or a secret of the machine."""

import re
from pathlib import Path

import pytest

from paretune.objectives.knobs import from_sensitivity
from paretune.trackers.anatomies import anatomies
from paretune.trackers.study import Study
from paretune.trackers.study_report import plain_text, study_report, without_secrets


def test_the_report_has_everything_and_no_path_of_the_machine(digits_study: Path) -> None:
    with Study.open(digits_study) as study:
        front, text = study.front(), study_report(study)
        failed = sum(row.evaluation.failed for row in study.rows("measure"))
        knee = front.knee()
    body = text[text.index("<body") :]
    for point in front:
        assert f'id="trial-{point.number}"' in body and f'data-layers="{point.number}"' in body
    assert f"The plan of trial {knee.number}" in body
    assert str(knee.plan).splitlines()[0] in body
    assert "onnxruntime-cpu" in body and "kernel times of ONNX Runtime" in body
    assert f"All 8 trials, {failed} failed" in body and "name: quickstart-digits" in body
    for word in (str(digits_study), str(digits_study.parent), str(Path.home()) + "/", "/tmp/"):
        assert word not in body
    assert from_sensitivity(digits_study) is not None


def test_layers_add_up_to_the_file_that_was_measured(digits_study: Path) -> None:
    with Study.open(digits_study) as study:
        found, front = anatomies(study), study.front()
    assert set(found) == {point.number for point in front}
    for point in front:
        layers = found[point.number].layers
        assert found[point.number].size_bytes == point.values["size_bytes"]
        assert [x.name for x in layers][:2] == ["features.0", "features.3"]
        for layer in layers:
            if layer.name in point.plan.groups:
                assert layer.kept == point.plan.groups[layer.name]
        assert (found[point.number].ms or 0) > 0  # the search timed them at its end


def test_secrets_and_paths_are_left_out() -> None:
    job = {
        "folder": "/home/me/work",
        "task": {"weights": "/home/me/a b/net.safetensors", "model": "nets.py:make"},
        "target": {"remote": {"url": "https://me:pw@board:8765/x", "token_file": "/etc/t"}},
        "tracker": {"mlflow": {"uri": "sqlite:////srv/ml/mlflow.db"}},
        "api_key": "k",
        "constraints": ["accuracy >= 0.9"],
    }
    clean = without_secrets(job)
    assert clean == {
        "task": {"weights": "…/net.safetensors", "model": "nets.py:make"},
        "target": {"remote": {"url": "https://board:8765/x", "token_file": "(left out)"}},
        "tracker": {"mlflow": {"uri": "sqlite:///…/mlflow.db"}},
        "api_key": "(left out)",
        "constraints": ["accuracy >= 0.9"],
    }


@pytest.mark.parametrize(
    "line",
    [
        "layer [l0]: /usr/lib/python3/site.py failed",
        "no file ~/nets/x.pt",
        r"C:\Users\me\net.pt is missing",
    ],
)
def test_lines_lose_their_paths(line: str) -> None:
    assert not re.search(r"usr|~/|Users", plain_text(line))
    assert plain_text("1/4 of 3x3 kernels, batch 1") == "1/4 of 3x3 kernels, batch 1"
