"""A bundle checks itself where neither torch nor paretune exists, and refuses what was changed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from paretune.deploy.bundle import copy_bundle, read_bundle
from paretune.deploy.pull import pull
from paretune.errors import InputError
from paretune.trackers.exchange import put_in_place
from paretune.trackers.study import Study

BLOCKED = """
import sys
class Wall:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "paretune", "mlflow", "onnx", "pickle5"):
            raise ImportError(f"{name} is not installed here")
sys.meta_path.insert(0, Wall())
sys.argv = sys.argv[1:]
import runpy
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def delivered(digits_study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pull(digits_study, tmp_path_factory.mktemp("out") / "model", best="size_bytes").folder


@pytest.fixture
def bundle(delivered: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(delivered, tmp_path / "model"))


def verify(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """The bundle's own verify.py in a process that can import no more than it promises to need."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, "-c", BLOCKED, str(folder / "verify.py"), str(folder), *options],
        capture_output=True,
        text=True,
        cwd=folder.parent,
        env=environment,
        check=False,
    )


def test_a_bundle_verifies_itself_without_torch_and_paretune(bundle: Path) -> None:
    done = verify(bundle)
    assert done.returncode == 0, done.stderr
    digest = hashlib.sha256((bundle / "manifest.json").read_bytes()).hexdigest()
    assert digest in done.stdout and "examples agree" in done.stdout
    assert verify(bundle, "--manifest-sha256", digest).returncode == 0
    assert verify(bundle, "--manifest-sha256", "0" * 64).returncode == 1


def flip(folder: Path, name: str) -> None:
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)


def edit(folder: Path, change: Callable[[dict], None]) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def other_plan(folder: Path) -> None:
    plan = json.loads((folder / "plan.json").read_text())
    name = next(iter(plan["layers"]))
    plan["layers"][name] = {"weight_bits": 2, "activation_bits": 8}
    text = json.dumps(plan)
    (folder / "plan.json").write_text(text)

    def change(manifest: dict) -> None:
        manifest["plan"] = plan
        manifest["files"]["plan.json"] = hashlib.sha256(text.encode()).hexdigest()

    edit(folder, change)


def other_model(folder: Path) -> None:
    """Another network of the same shapes, its hash put into the manifest: only the run tells."""
    model = onnx.load(str(folder / "model.onnx"))
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype in (np.int8, np.float32) and values.ndim > 1:
            tensor.CopyFrom(numpy_helper.from_array(values[::-1].copy(), tensor.name))
    onnx.save(model, str(folder / "model.onnx"))
    data = (folder / "model.onnx").read_bytes()

    def change(manifest: dict) -> None:
        digest = hashlib.sha256(data).hexdigest()
        manifest["model"] |= {"sha256": digest, "size_bytes": len(data)}
        manifest["files"]["model.onnx"] = digest

    edit(folder, change)


def pickled_examples(folder: Path) -> None:
    class Canary:
        def __reduce__(self):  # type: ignore[no-untyped-def]
            return open, (str(folder / "canary"), "w")

    values = np.array([Canary()], dtype=object)
    np.savez(folder / "examples.npz", inputs=values, outputs=values)
    digest = hashlib.sha256((folder / "examples.npz").read_bytes()).hexdigest()
    edit(folder, lambda manifest: manifest["files"].update({"examples.npz": digest}))


DAMAGE = {
    "a flipped byte in the model": (lambda f: flip(f, "model.onnx"), "model.onnx was changed"),
    "a flipped byte in the examples": (lambda f: flip(f, "examples.npz"), "examples.npz was"),
    "a swapped plan": (other_plan, "fingerprint"),
    "another model": (other_model, "its outputs differ"),
    "a file gone": (lambda f: (f / "plan.json").unlink(), "plan.json"),
    "a file outside": (
        lambda f: edit(f, lambda m: m["files"].update({"../secret": "0" * 64})),
        "outside the folder",
    ),
    "pickled examples": (pickled_examples, "cannot be run"),
    "not a manifest": (lambda f: (f / "manifest.json").write_text("[1]"), "not a mapping"),
    "a manifest of an older layout": (lambda f: edit(f, lambda m: m.update(version=1)), "layout"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_was_changed_is_refused(damage: str, bundle: Path) -> None:
    do, word = DAMAGE[damage]
    do(bundle)
    done = verify(bundle)
    assert done.returncode == 1 and word in done.stderr, done.stdout + done.stderr
    assert "Traceback" not in done.stderr and done.stderr.count("\n") == 1
    assert not (bundle / "canary").exists()


def test_a_manifest_from_another_search_is_refused_and_what_is_there_stays(
    bundle: Path, digits_study: Path, tmp_path: Path
) -> None:
    delivered = read_bundle(bundle).manifest["model"]["sha256"]
    with Study.open(digits_study) as study:
        files = {p.number: p.evaluation.artifact for p in study.front().points}
    number = next(n for n, file in files.items() if file and file.sha256 != delivered)
    other = pull(digits_study, tmp_path / "other", trial=number).folder
    in_place = tmp_path / "in_place"
    copy_bundle(bundle, in_place)
    before = {p.name: p.read_bytes() for p in in_place.iterdir()}
    shutil.copyfile(other / "manifest.json", bundle / "manifest.json")
    for source in (bundle, tmp_path):
        with pytest.raises(InputError):
            copy_bundle(source, in_place)
    assert {p.name: p.read_bytes() for p in in_place.iterdir()} == before
    with pytest.raises(InputError, match="not the one of this model"):
        read_bundle(other, "0" * 64)
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_the_model_card_may_be_completed(bundle: Path) -> None:
    with (bundle / "MODEL_CARD.md").open("a") as card:
        card.write("- Licence: MIT\n")
    assert verify(bundle).returncode == 0


def test_a_reader_always_finds_a_whole_folder(tmp_path: Path) -> None:
    place, missing, stop = tmp_path / "place", [], threading.Event()
    place.mkdir()
    (place / "number").write_text("0")

    def watch() -> None:
        while not stop.is_set():
            try:
                int((place / "number").read_text())
            except (OSError, ValueError) as error:
                missing.append(error)

    watcher = threading.Thread(target=watch)
    watcher.start()
    for number in range(300):
        new = tmp_path / "new"
        new.mkdir()
        (new / "number").write_text(str(number))
        put_in_place(new, place)
        shutil.rmtree(new)
    stop.set()
    watcher.join()
    assert (place / "number").read_text() == "299"
    if sys.platform == "linux":
        assert missing == []
