import hashlib
import resource
import subprocess
import sys

import pytest

from paretune.errors import InputError
from paretune.objectives.evaluation import Artifact
from paretune.trackers.artifact_store import ArtifactStore, intact


def test_a_file_is_kept_once_under_its_sha256(tmp_path):
    source, store = tmp_path / "model.onnx", ArtifactStore(tmp_path / "artifacts")
    source.write_bytes(b"weights" * 1000)
    artifact = store.store(source)
    assert artifact.sha256 == hashlib.sha256(b"weights" * 1000).hexdigest()
    assert (artifact.size_bytes, artifact.format) == (7000, "onnx")
    assert store.store(source) == artifact
    assert [p.name for p in store.folder.iterdir()] == [artifact.file_name]
    assert store.path(artifact).read_bytes() == source.read_bytes()


def test_a_stored_file_that_went_bad_is_replaced(tmp_path):
    source, store = tmp_path / "model.onnx", ArtifactStore(tmp_path / "artifacts")
    source.write_bytes(b"good")
    path = store.path(store.store(source))
    path.write_bytes(b"goad")
    assert not intact(path)
    store.store(source)
    assert intact(path)


def test_dropping_keeps_what_is_named_and_what_is_not_ours(tmp_path):
    store = ArtifactStore(tmp_path / "artifacts")
    store.drop(set())  # no folder yet
    kept = []
    for content in (b"a", b"b", b"c"):
        (tmp_path / "m.onnx").write_bytes(content)
        kept.append(store.store(tmp_path / "m.onnx"))
    (store.folder / "notes.txt").write_text("mine")
    (store.folder / f".{'0' * 32}.part").write_text("of a dead writer")
    (store.folder / ".export-x1y2").mkdir()  # a worker that was killed while it exported
    (store.folder / ".export-x1y2" / "model.onnx").write_text("half")
    store.drop({kept[1].sha256})
    assert {p.name for p in store.folder.iterdir()} == {kept[1].file_name, "notes.txt"}


@pytest.mark.parametrize("sha256", ["../../etc/passwd", "A" * 64, "0" * 63, ""])
def test_a_name_that_is_no_sha256_is_refused(tmp_path, sha256):
    with pytest.raises(InputError):
        ArtifactStore(tmp_path).path(Artifact(sha256, 1, "onnx"))


def test_a_full_disk_leaves_nothing_under_the_final_name(tmp_path):
    code = f"""
import resource
from pathlib import Path
from paretune.errors import EnvironmentFault
from paretune.trackers.artifact_store import ArtifactStore
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, {resource.RLIM_INFINITY}))
try:
    ArtifactStore(Path({str(tmp_path / "artifacts")!r})).store(Path({str(tmp_path / "m.onnx")!r}))
except EnvironmentFault as fault:
    print(fault)
"""
    (tmp_path / "m.onnx").write_bytes(b"x" * 100_000)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "cannot store m.onnx" in done.stdout and "bytes free" in done.stdout
    assert list((tmp_path / "artifacts").iterdir()) == []
