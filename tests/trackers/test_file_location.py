"""Copies of exported files under an fsspec address: whole, verified, and enough to move with."""

import errno
import os
import shutil

import fsspec
import pytest
from postgres_server import PostgresServer

from paretune.errors import EnvironmentFault, InputError
from paretune.trackers.artifact_store import ArtifactStore, intact
from paretune.trackers.file_location import FileLocation
from paretune.trackers.place import Place
from paretune.trackers.study import BASELINE, Study

pytestmark = pytest.mark.usefixtures("without_optuna")


@pytest.fixture(params=["file", "memory"])
def address(request, tmp_path):
    if request.param == "memory":
        yield f"memory://bucket/{tmp_path.name}"
        fsspec.filesystem("memory").store.clear()
    else:
        yield f"file://{tmp_path}/far/away"


@pytest.fixture
def exported(tmp_path):
    (tmp_path / "export").mkdir()
    path = tmp_path / "export" / "model.onnx"
    path.write_bytes(os.urandom(300_000))
    return ArtifactStore(tmp_path / "here").store(path)


def test_a_file_comes_back_as_it_was(tmp_path, address, exported):
    here = ArtifactStore(tmp_path / "here", FileLocation(address))
    here.publish([exported, exported])
    assert here.copies.names() == [exported.file_name]
    elsewhere = ArtifactStore(tmp_path / "elsewhere", FileLocation(address))
    path = elsewhere.local(exported)
    assert path.parent == tmp_path / "elsewhere" and intact(path)
    assert path.read_bytes() == (tmp_path / "here" / exported.file_name).read_bytes()
    here.remove(exported)
    assert here.copies.names() == [] and not here.local(exported).exists()


def test_only_what_is_wanted_stays(tmp_path, address, exported):
    store = ArtifactStore(tmp_path / "here", FileLocation(address))
    (tmp_path / "export" / "model.onnx").write_bytes(b"another")
    other = store.store(tmp_path / "export" / "model.onnx")
    store.publish([exported, other])
    store.drop({other.sha256})
    assert store.copies.names() == [other.file_name]
    assert [p.name for p in (tmp_path / "here").iterdir()] == [other.file_name]


def test_a_changed_copy_is_refused(tmp_path, address, exported):
    ArtifactStore(tmp_path / "here", FileLocation(address)).publish([exported])
    protocol, _, root = address.partition("://")
    system = fsspec.filesystem(protocol)
    name = f"{root}/{exported.file_name}"
    content = bytearray(system.cat_file(name))
    content[1000] ^= 1
    system.pipe_file(name, bytes(content))
    elsewhere = ArtifactStore(tmp_path / "elsewhere", FileLocation(address))
    with pytest.raises(InputError, match="sha256 differs"):
        elsewhere.local(exported)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_write_that_breaks_off_is_not_seen(tmp_path, exported, monkeypatch):
    """The disk of the copies fills up in the middle: no file under the final name."""
    address = f"file://{tmp_path}/far"
    store = ArtifactStore(tmp_path / "here", FileLocation(address))

    def half(self, source, target, **_):
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with open(source, "rb") as read, open(target, "wb") as write:
            write.write(read.read(1000))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    local = fsspec.get_filesystem_class("file")
    monkeypatch.setattr(local, "put_file", half)
    with pytest.raises(EnvironmentFault, match=r"cannot store .*No space left"):
        store.publish([exported])
    monkeypatch.undo()
    assert exported.file_name not in FileLocation(address).names()
    store.publish([exported])  # there is space again
    store.drop({exported.sha256})  # what broke off goes too
    assert FileLocation(address).names() == [exported.file_name]


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("/mnt/share", "not an address"),
        ("s3://key:secret@bucket/x", "more than a place"),
        ("s3://bucket/x?token=secret", "more than a place"),
        ("nosuch://bucket/x", "nosuch:// cannot be used here"),
    ],
)
def test_addresses_that_are_refused(address, message):
    with pytest.raises(InputError, match=message) as refused:
        FileLocation(address).names()
    assert "secret" not in str(refused.value)


def test_a_missing_protocol_names_what_to_install(monkeypatch):

    def missing(protocol, **_):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec, "filesystem", missing)
    with pytest.raises(InputError, match=r"pip install paretune\[s3\]"):
        FileLocation("s3://bucket/x").names()


def test_a_study_moves_with_its_files(tmp_path, recorded, monkeypatch):
    """Another machine, an empty folder: the front's files are there when they are asked for."""
    server = PostgresServer()
    try:
        monkeypatch.setenv("PGPASSWORD", server.password)
        tracker = {"storage": server.address, "artifacts": f"file://{tmp_path}/far"}
        job = {**recorded.JOB, "tracker": tracker}
        given = {"name": job["name"], "objectives": recorded.objectives()}
        with Study.create(tmp_path / "a", job, **given) as study:
            study.add(BASELINE, recorded.baseline())
            for number in range(5):
                recorded.run_trial(study, number, artifacts=True)
            files = {p.evaluation.artifact.file_name: p.evaluation.artifact for p in study.front()}
            contents = {name: study.artifact_path(a).read_bytes() for name, a in files.items()}
        shutil.rmtree(tmp_path / "a")
        with Study.open(Place.of_job(tmp_path / "b", job, job["name"]), write=True) as study:
            assert len(study.rows()) == 5 and contents
            for name, artifact in files.items():
                assert study.artifact_path(artifact).read_bytes() == contents[name]
            recorded.run_trial(study, 5, artifacts=True)
    finally:
        server.remove()
