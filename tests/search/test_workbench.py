"""doctor, schema and completion as commands; targets tried for real."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from paretune.cli import app
from paretune.search import doctor
from paretune.targets import tryout
from paretune.targets.tryout import Tryout, try_target


def test_the_default_target_works_and_absent_ones_say_why() -> None:
    tried = try_target("onnxruntime-cpu")
    assert tried.state == "works" and "float32 and int8" in tried.detail
    import torch

    if not torch.cuda.is_available():
        tried = try_target("torch-cuda")
        assert tried.state == "absent" and "CUDA" in tried.detail


def test_a_target_that_computes_wrongly_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    real = tryout.make_target("onnxruntime-cpu")

    class Off:
        name, format, choices = real.name, real.format, real.choices
        description = real.description
        export = staticmethod(real.export)

        def load(self, path: Path, threads: int = 1):  # type: ignore[no-untyped-def]
            runtime = real.load(path)

            class Shifted:
                def predict(self, inputs):  # type: ignore[no-untyped-def]
                    return runtime.predict(inputs) + 0.5

            return Shifted()

    monkeypatch.setattr(tryout, "make_target", lambda name: Off())
    assert try_target("onnxruntime-cpu").state == "broken"
    real_load = Off.load
    Off.load = lambda self, path, threads=1: (_ for _ in ()).throw(RuntimeError("no such kernel"))
    assert try_target("onnxruntime-cpu").detail == "no such kernel"
    Off.load = real_load


def test_doctor_names_what_is_wrong_and_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = [Tryout("onnxruntime-cpu", "works", "float32", 0.1), Tryout("a", "absent", "not here")]
    monkeypatch.setattr("paretune.targets.tryout.try_targets", lambda: iter(found))
    monkeypatch.setenv("PARETUNE_CACHE", str(tmp_path))
    monkeypatch.delenv("PARETUNE_DATA", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    states = {finding.subject: finding.state for finding in doctor.examine()}
    assert states["onnxruntime-cpu"] == "ok" and states["a"] == "note"
    assert "wrong" not in states.values(), states
    monkeypatch.setenv("PARETUNE_DATA", str(tmp_path / "nowhere"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    found.append(Tryout("onnxruntime-cpu", "absent", "it is not installed"))
    states = {finding.subject: finding.state for finding in doctor.examine()}
    assert states["PARETUNE_DATA"] == states["MLflow"] == states["onnxruntime-cpu"] == "wrong"
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exception is not None and "3 things wrong" in str(result.exception)
    assert "-> start the server" in result.stdout


def test_schema_as_a_command(tmp_path: Path) -> None:
    printed = CliRunner().invoke(app, ["schema"])
    assert json.loads(printed.stdout)["$schema"].startswith("https://json-schema.org")
    written = CliRunner().invoke(app, ["schema", "--out", str(tmp_path / "s.json")])
    assert "$schema=./s.json" in written.stdout
    assert json.loads((tmp_path / "s.json").read_text()) == json.loads(printed.stdout)


def test_the_shell_completes_commands_and_options() -> None:
    def completed(*words: str) -> set[str]:
        environment = os.environ | {
            "_PARETUNE_COMPLETE": "complete_bash",
            "COMP_WORDS": " ".join(["paretune", *words]),
            "COMP_CWORD": str(len(words)),
        }
        code = "import sys; sys.argv = ['paretune']; from paretune.cli import main; main()"
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env=environment
        )
        return set(done.stdout.split())

    assert {"search", "pull", "promote", "rollback", "doctor", "init"} <= completed("")
    assert "--register" in completed("pull", "--")
