"""From a finished search to a delivered, registered model: real files, a real MLflow store."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from paretune.deploy.bundle import read_bundle
from paretune.deploy.pull import pull
from paretune.errors import InputError, NothingMeetsError
from paretune.trackers.artifact_store import sha256_of
from paretune.trackers.study import Study

RUN_ALONE = """
import json, sys, hashlib, numpy, onnxruntime
folder = sys.argv[1]
manifest = json.load(open(folder + "/manifest.json"))
data = open(folder + "/model.onnx", "rb").read()
assert hashlib.sha256(data).hexdigest() == manifest["model"]["sha256"]
session = onnxruntime.InferenceSession(data)
stored = numpy.load(folder + "/examples.npz")
found = session.run(None, {"input": stored["inputs"]})[0]
assert not {"torch", "paretune"} & set(sys.modules)
print(float(abs(found - stored["outputs"]).max()))
"""


def test_the_bundle_is_the_measured_file_and_runs_alone(digits_study: Path, tmp_path: Path) -> None:
    bundle = pull(digits_study, tmp_path / "out", best="size_bytes")
    with Study.open(digits_study) as study:
        recorded = study.front()[bundle.manifest["study"]["trial"]].evaluation
        smallest = min(p.values["size_bytes"] for p in study.front())
    assert bundle.manifest["values"] == dict(recorded.values)
    assert bundle.manifest["values"]["size_bytes"] == smallest == bundle.model.stat().st_size
    assert bundle.manifest["remeasured"] is None
    assert sha256_of(bundle.model) == recorded.artifact.sha256
    assert {p.name for p in bundle.folder.iterdir()} == {
        "verify.py",
        "model.onnx",
        "plan.json",
        "manifest.json",
        "MODEL_CARD.md",
        "examples.npz",
    }
    done = subprocess.run(
        [sys.executable, "-c", RUN_ALONE, str(bundle.folder)],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert float(done.stdout) < 1e-4
    assert read_bundle(bundle.folder).manifest == json.loads(json.dumps(bundle.manifest))
    card = (bundle.folder / "MODEL_CARD.md").read_text()
    assert "sha256" in card and "Licence" in card and "±" in card
    assert str(digits_study.parent) not in card + json.dumps(bundle.manifest)


def test_a_flipped_byte_is_refused_and_the_old_bundle_stays(
    digits_study: Path, tmp_path: Path
) -> None:
    study = tmp_path / "study"
    shutil.copytree(digits_study, study)
    out = tmp_path / "out"
    first = pull(study, out, best="size_bytes")
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    stored = study / "artifacts" / f"{first.manifest['model']['sha256']}.onnx"
    damaged = bytearray(stored.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    stored.write_bytes(damaged)
    with pytest.raises(InputError, match="not what was measured"):
        pull(study, out, best="size_bytes")
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    assert {p.name for p in tmp_path.iterdir()} == {"study", "out"}


def test_other_weights_than_searched_are_noticed(digits_study: Path, tmp_path: Path) -> None:
    """A bundle whose recorded score is not what the file gives is refused."""
    study = tmp_path / "study"
    shutil.copytree(digits_study, study)
    with Study.open(study) as opened:
        point = opened.front().choose(best="size_bytes")
        files = [p for p in opened.front().points if p.evaluation.artifact]
        other = next(p for p in files if p.evaluation.artifact != point.evaluation.artifact)
        wrong = study / "artifacts" / other.evaluation.artifact.file_name
    import paretune.deploy.source as source

    opened_source = source.open_source(study)
    swapped = point.evaluation.artifact.__class__(
        other.evaluation.artifact.sha256, wrong.stat().st_size, "onnx"
    )
    from dataclasses import replace

    from paretune.deploy.check import check

    (tmp_path / "scratch" / "artifacts").mkdir(parents=True)
    values = dict(point.evaluation.values) | {"accuracy": point.values["accuracy"] - 0.2}
    recorded = replace(point.evaluation, artifact=swapped, values=values)
    with pytest.raises(InputError, match="was recorded"):
        check(opened_source, recorded, wrong, tmp_path / "scratch")


def test_a_file_that_was_not_kept_is_rebuilt_and_said(digits_study: Path, tmp_path: Path) -> None:
    study = tmp_path / "study"
    shutil.copytree(digits_study, study)
    shutil.rmtree(study / "artifacts")
    bundle = pull(study, tmp_path / "out", best="size_bytes")
    assert "rebuilt" in bundle.manifest["remeasured"]
    with Study.open(study) as opened:
        recorded = opened.front()[bundle.manifest["study"]["trial"]].evaluation
    assert bundle.manifest["model"]["sha256"] == recorded.artifact.sha256
    assert bundle.manifest["values"]["accuracy"] == pytest.approx(recorded.values["accuracy"])


def test_a_link_keeps_pointing_to_the_bundle(digits_study: Path, tmp_path: Path) -> None:
    (tmp_path / "releases").mkdir()
    (tmp_path / "current").symlink_to(tmp_path / "releases" / "model")
    with Study.open(digits_study) as study:
        numbers = [point.number for point in study.front()][:2]
    for number in numbers:
        pull(digits_study, tmp_path / "current", trial=number, verify=False)
        assert (tmp_path / "current").is_symlink()
        bundle = read_bundle(tmp_path / "releases" / "model")
        assert bundle.manifest["study"]["trial"] == number
    found = sorted(p.name for folder in (tmp_path, tmp_path / "releases") for p in folder.iterdir())
    assert found == ["current", "model", "releases"]


def test_what_cannot_be_delivered_is_said_before_the_work(
    digits_study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("paretune.deploy.pull.check", None)  # whoever runs the file fails
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(InputError, match="holds other files"):
        pull(digits_study, tmp_path, best="size_bytes")
    with pytest.raises(InputError, match="--alias: 'champion' needs a registered name"):
        pull(digits_study, tmp_path / "out", best="size_bytes", alias="champion")


def test_nothing_to_choose_by_and_nothing_that_meets(digits_study: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--best: not given"):
        pull(digits_study, tmp_path / "out")
    with pytest.raises(InputError, match="did you mean 'latency_ms'"):
        pull(digits_study, tmp_path / "out", best="latency")
    with pytest.raises(NothingMeetsError):
        pull(digits_study, tmp_path / "out", where="size_ratio < 0.001", best="size_bytes")
    assert not (tmp_path / "out").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("precious")
    with pytest.raises(InputError, match="holds other files"):
        pull(digits_study, tmp_path / "full", best="size_bytes")
