"""Copies of exported files in an S3-compatible store on the loopback (moto)."""

import os
import subprocess
import sys
import time
import urllib.request

import pytest
from local_server import free_port

from paretune.errors import EnvironmentFault, InputError
from paretune.trackers.artifact_store import ArtifactStore, intact
from paretune.trackers.file_location import FileLocation

pytestmark = pytest.mark.slow
SECRET = "wJalrXUtnFEMI-not-a-real-one"


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """``s3://`` address of a bucket, its endpoint and credentials in the environment."""
    pytest.importorskip("s3fs", reason="s3fs is not installed (pip install 'paretune[s3]')")
    pytest.importorskip("moto.server", reason="moto is not installed (pip install 'moto[server]')")
    port = free_port()
    endpoint = f"http://127.0.0.1:{port}"
    for name, value in {
        "AWS_ACCESS_KEY_ID": "AKIAEXAMPLE",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": endpoint,
    }.items():
        monkeypatch.setenv(name, value)
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with open(tmp_path / "moto.log", "w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        end = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"{endpoint}/moto-api/", timeout=2).close()
                break
            except OSError:
                assert time.monotonic() < end, (tmp_path / "moto.log").read_text()
                time.sleep(0.2)
        import s3fs

        s3fs.S3FileSystem(skip_instance_cache=True).mkdir("models")
        yield "s3://models/resnet20", server
    finally:
        server.kill()
        server.wait()


def test_files_come_back_from_s3(tmp_path, bucket):
    address, server = bucket
    (tmp_path / "model.onnx").write_bytes(os.urandom(6_000_000))  # more than one part
    here = ArtifactStore(tmp_path / "here", FileLocation(address))
    artifact = here.store(tmp_path / "model.onnx")
    here.publish([artifact])
    assert here.copies.names() == [artifact.file_name]
    elsewhere = ArtifactStore(tmp_path / "elsewhere", FileLocation(address))
    path = elsewhere.local(artifact)
    assert intact(path) and path.read_bytes() == (tmp_path / "model.onnx").read_bytes()
    import s3fs

    s3fs.S3FileSystem(skip_instance_cache=True).pipe_file(
        f"models/resnet20/{artifact.file_name}", b"x" * artifact.size_bytes
    )
    path.unlink()
    with pytest.raises(InputError, match="sha256 differs"):
        elsewhere.local(artifact)
    assert not path.exists()
    here.drop(set())
    assert here.copies.names() == []


def test_a_store_that_is_away_is_named(tmp_path, bucket):
    address, server = bucket
    (tmp_path / "model.onnx").write_bytes(b"weights")
    here = ArtifactStore(tmp_path / "here", FileLocation(address))
    artifact = here.store(tmp_path / "model.onnx")
    server.kill()
    server.wait()
    with pytest.raises(EnvironmentFault, match="cannot store") as failed:
        here.publish([artifact])
    assert SECRET not in str(failed.value) and "\n" not in str(failed.value)
