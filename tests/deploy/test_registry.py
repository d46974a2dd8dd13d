"""The model registry: an alias goes forward and back, and never to files that were changed."""

from __future__ import annotations

import json
import os
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlparse

import numpy as np
import onnxruntime
import pytest
from local_server import LocalServer, free_port

from paretune.deploy.alias import moves, promote, rollback
from paretune.deploy.pull import pull
from paretune.errors import InputError
from paretune.trackers.mlflow_link import client, mlflow_calls

NAME = "digits-edge"


@pytest.fixture(scope="module")
def registry(
    digits_study: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Path]]:
    """(address, folder) with three versions of a model: two points of the front, one again."""
    folder = tmp_path_factory.mktemp("registry")
    uri = f"sqlite:///{folder}/mlflow.db"
    for number, best in enumerate(("accuracy", "size_bytes", "accuracy"), 1):
        bundle = pull(digits_study, folder / f"v{number}", best=best, register=NAME, uri=uri)
        assert bundle.version == str(number)
    yield uri, folder


def alias(uri: str, name: str = "champion") -> str | None:
    with mlflow_calls():
        found = client(uri).get_registered_model(NAME).aliases.get(name)
    return None if found is None else str(found)


def stored(uri: str, version: int, name: str) -> Path:
    """A file of a registered version, where the local store keeps it."""
    with mlflow_calls():
        found = client(uri).get_model_version(NAME, str(version))
    return Path(urlparse(found.source).path) / name


def test_an_alias_goes_forward_and_back(registry: tuple[str, Path], tmp_path: Path) -> None:
    uri, folder = registry
    with pytest.raises(InputError, match="no alias 'champion'"):
        rollback(NAME, "champion", uri)
    assert promote(NAME, 1, "champion", uri).before is None
    assert promote(NAME, "2", "champion", uri).before == "1"
    assert promote(NAME, "2", "champion", uri).before == "2"  # nothing happens
    assert promote(NAME, "3", "champion", uri).before == "2"
    assert alias(uri) == "3"
    assert rollback(NAME, "champion", uri).version == "2" and alias(uri) == "2"
    assert rollback(NAME, "champion", uri).version == "1" and alias(uri) == "1"
    with pytest.raises(InputError, match="never anywhere but at version 1"):
        rollback(NAME, "champion", uri)
    steps = [(m.action, m.before, m.version) for m in moves(NAME, "champion", uri)]
    assert steps == [
        ("promote", None, "1"),
        ("promote", "1", "2"),
        ("promote", "2", "3"),
        ("rollback", "3", "2"),
        ("rollback", "2", "1"),
    ]
    got = pull(f"models:/{NAME}@champion", tmp_path / "model", uri=uri)
    assert got.manifest == json.loads((folder / "v1" / "manifest.json").read_text())
    with mlflow_calls():
        tags = client(uri).get_model_version(NAME, "1").tags
    for name, value in got.manifest["values"].items():
        assert float(tags[f"paretune.{name}"]) == pytest.approx(value, rel=1e-5)


def test_changed_files_are_refused_and_everything_stays(
    registry: tuple[str, Path], tmp_path: Path
) -> None:
    uri, _ = registry
    promote(NAME, 1, "staging", uri)
    pull(f"models:/{NAME}@staging", tmp_path / "model", uri=uri)
    before = {p.name: p.read_bytes() for p in (tmp_path / "model").iterdir()}
    for name in ("model.onnx", "plan.json", "manifest.json"):
        path = stored(uri, 2, name)
        whole = path.read_bytes()
        if name == "manifest.json":  # a whole one, but of another version
            path.write_bytes(stored(uri, 1, name).read_bytes())
        else:
            path.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
        try:
            with pytest.raises(InputError, match="digits-edge version 2"):
                promote(NAME, 2, "staging", uri)
            with pytest.raises(InputError):
                pull(f"models:/{NAME}/2", tmp_path / "model", uri=uri)
        finally:
            path.write_bytes(whole)
        assert alias(uri, "staging") == "1"
        assert {p.name: p.read_bytes() for p in (tmp_path / "model").iterdir()} == before
    promote(NAME, 2, "staging", uri)
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_what_is_not_there_is_named(registry: tuple[str, Path], tmp_path: Path) -> None:
    uri, _ = registry
    with pytest.raises(InputError, match="no version '9'; known: 1, 2, 3"):
        promote(NAME, 9, "champion", uri)
    with pytest.raises(InputError, match="no such registered model"):
        promote("nobody", 1, "champion", uri)
    with pytest.raises(InputError, match="no such alias"):
        pull(f"models:/{NAME}@nowhere", tmp_path / "model", uri=uri)
    with pytest.raises(InputError, match="names no registered model"):
        pull("models:/a/b/c", tmp_path / "model", uri=uri)
    with pytest.raises(InputError, match="chosen already"):
        pull(f"models:/{NAME}/1", tmp_path / "model", best="accuracy", uri=uri)
    with mlflow_calls():
        link = client(uri)
        run = link.create_run("0")
        link.create_registered_model("foreign")
        link.create_model_version("foreign", run.info.artifact_uri, run.info.run_id)
    with pytest.raises(InputError, match="not registered by paretune"):
        promote("foreign", 1, "champion", uri)


def test_a_registered_model_loads_in_mlflow_and_answers_as_the_measured_file(
    registry: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    uri, folder = registry
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    promote(NAME, 2, "loaded", uri)
    mlflow.set_tracking_uri(uri)
    with np.load(folder / "v2" / "examples.npz", allow_pickle=False) as examples:
        inputs = examples["inputs"]
    session = onnxruntime.InferenceSession(str(folder / "v2" / "model.onnx"))
    (expected,) = session.run(None, {"input": inputs})
    model = mlflow.pyfunc.load_model(f"models:/{NAME}@loaded")
    answer = model.predict(inputs)
    found = answer["output"] if isinstance(answer, dict) else answer
    np.testing.assert_array_equal(np.asarray(found), expected)
    shape = model.metadata.signature.inputs.to_dict()[0]["tensor-spec"]["shape"]
    assert list(shape) == [-1, *inputs.shape[1:]]
    np.testing.assert_allclose(model.input_example, inputs[:1], rtol=1e-6)
    assert mlflow.onnx.load_model(f"models:/{NAME}@loaded").graph.input[0].name == "input"


@pytest.mark.slow
def test_the_served_answer_is_the_measured_files(
    registry: tuple[str, Path], tmp_path: Path
) -> None:
    """``mlflow models serve`` on the loopback, as its users start it."""
    uri, folder = registry
    promote(NAME, 2, "served", uri)
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--env-manager", "local"]
    command += ["-m", f"models:/{NAME}@served", "--host", "127.0.0.1", "--port", str(port)]
    environment = os.environ | {
        "MLFLOW_TRACKING_URI": uri,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    with np.load(folder / "v2" / "examples.npz", allow_pickle=False) as examples:
        inputs = examples["inputs"]
    session = onnxruntime.InferenceSession(str(folder / "v2" / "model.onnx"))
    (expected,) = session.run(None, {"input": inputs})
    with LocalServer(command, port, tmp_path, environment) as server:
        request = urllib.request.Request(
            f"{server.uri}/invocations",
            json.dumps({"inputs": inputs.tolist()}).encode(),
            {"Content-Type": "application/json"},
        )
        answer = json.loads(urllib.request.urlopen(request, timeout=60).read())
    found = answer["predictions"]
    found = found["output"] if isinstance(found, dict) else found
    np.testing.assert_allclose(np.asarray(found, np.float32), expected, rtol=1e-6, atol=1e-6)
