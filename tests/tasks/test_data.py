"""The kinds of data: digits, image folders and their cache, torchvision's sets, callables."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from paretune.errors import EnvironmentFault, InputError
from paretune.tasks.data import Splits, load_splits
from paretune.tasks.image_cache import ImageCache, cache_folder
from paretune.tasks.imagefolder import Shape, read_imagefolder
from paretune.tasks.published import torchvision_images
from paretune.tasks.sections import DataSection
from paretune.tasks.split import check_disjoint


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PARETUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def load(folder: Path | None = None, **keys: object) -> Splits:
    return load_splits(DataSection(**keys), lambda key: f"task.data.{key}", folder)


def write_images(
    folder: Path, per_class: int, seed: int, size: tuple[int, int] = (6, 6)
) -> np.ndarray:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (3, per_class, size[1], size[0], 3), dtype=np.uint8)
    for label, name in enumerate(("ant", "bee", "cow")):
        (folder / name).mkdir(parents=True)
        for index in range(per_class):
            Image.fromarray(pixels[label, index]).save(folder / name / f"{index:03}.png")
    return pixels.reshape(-1, size[1], size[0], 3).transpose(0, 3, 1, 2)


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    write_images(tmp_path / "train", 8, 1)
    write_images(tmp_path / "val", 6, 2)
    return tmp_path


def test_digits_are_divided_once_and_for_all() -> None:
    splits = load(kind="digits")
    assert (len(splits.train), len(splits.search), len(splits.evaluate)) == (1079, 359, 359)
    check_disjoint(splits.train, splits.search, splits.evaluate)
    inputs, labels = next(splits.train.batches(5))
    assert inputs.shape == (5, 1, 8, 8) and float(inputs.max()) <= 1 and labels.dtype == torch.int64
    counts = np.bincount(splits.search.labels)
    assert counts.max() - counts.min() <= 1
    assert load(kind="digits").search.digests() == splits.search.digests()
    sized = load(kind="digits", train=100, search=50, evaluate=40)
    assert (len(sized.train), len(sized.search), len(sized.evaluate)) == (100, 50, 40)


def test_digits_hold_scikit_learns_values() -> None:
    from sklearn.datasets import load_digits

    whole = load(kind="digits", mean=[0.0], std=[1.0]).train
    want = {
        (x / 16).round(2).tobytes(): y for x, y in zip(*load_digits(return_X_y=True), strict=True)
    }
    for inputs, labels in whole.batches(200):
        rows = (inputs.reshape(len(inputs), -1).double() * 16).round() / 16
        for row, label in zip(rows.numpy().round(2), labels.tolist(), strict=True):
            assert want[row.tobytes()] == label


def test_every_beginning_of_the_training_data_is_balanced(folders: Path) -> None:
    splits = load(
        kind="imagefolder", train=str(folders / "train"), evaluate=str(folders / "val"), search=6
    )
    for split in (splits.train, splits.search):
        labels = next(split.batches(6))[1]
        assert sorted(labels.tolist()) == [0, 0, 1, 1, 2, 2]


def test_imagefolder(tmp_path: Path) -> None:
    train = write_images(tmp_path / "train", 8, 1)
    val = write_images(tmp_path / "val", 6, 2)
    splits = load(
        kind="imagefolder", train=str(tmp_path / "train"), evaluate=str(tmp_path / "val"), search=6
    )
    assert splits.classes == ("ant", "bee", "cow")
    assert (len(splits.train), len(splits.search), len(splits.evaluate)) == (24, 6, 12)
    assert np.bincount(splits.search.labels).tolist() == [2, 2, 2]
    got = next(splits.train.batches(99))[0]
    want = {image.tobytes() for image in train}
    assert {(x * 255).round().to(torch.uint8).numpy().tobytes() for x in got} == want
    both = [x for s in (splits.search, splits.evaluate) for x in next(s.batches(99))[0]]
    assert {(x * 255).round().to(torch.uint8).numpy().tobytes() for x in both} == {
        image.tobytes() for image in val
    }
    own = load(
        kind="imagefolder",
        train=str(tmp_path / "train"),
        search=str(tmp_path / "val"),
        evaluate=str(tmp_path / "val"),
        train_count=7,
    )
    assert len(own.train) == 7 and len(own.search) == 18
    with pytest.raises(InputError, match="18 of 'evaluate' are also in 'search'"):
        check_disjoint(own.train, own.search, own.evaluate)


def test_a_part_is_held_out_before_the_training_part_is_limited(folders: Path) -> None:
    whole = {"kind": "imagefolder", "train": str(folders / "train"), "search": 3}
    splits = load(**whole, evaluate=9, train_count=12)
    assert (len(splits.train), len(splits.search), len(splits.evaluate)) == (12, 3, 6)
    check_disjoint(splits.train, splits.search, splits.evaluate)
    with pytest.raises(InputError, match="train_count: 16 of 15 examples"):
        load(**whole, evaluate=9, train_count=16)


def test_copies_do_not_straddle_search_and_evaluate(folders: Path) -> None:
    for name in ("ant", "bee", "cow"):
        for index in range(6):
            shutil.copy(
                folders / "val" / name / f"{index:03}.png", folders / "val" / name / f"c{index}.png"
            )
    splits = load(
        kind="imagefolder", train=str(folders / "train"), evaluate=str(folders / "val"), search=6
    )
    check_disjoint(splits.train, splits.search, splits.evaluate)
    assert len(splits.evaluate) < 30


def test_decoded_images_are_kept(folders: Path, own_cache: Path, monkeypatch) -> None:
    from paretune.tasks import imagefolder

    where, shape = "here", Shape()
    first = read_imagefolder(str(folders / "val"), shape, where)
    entries = [p for p in (own_cache / "images").iterdir()]
    assert len(entries) == 1 and entries[0].name[0] != "."
    calls: list[str] = []
    decode = imagefolder._decode
    monkeypatch.setattr(
        imagefolder, "_decode", lambda path, *rest: calls.append(path) or decode(path, *rest)
    )
    again = read_imagefolder(str(folders / "val"), shape, where)
    assert not calls and torch.equal(first.images, again.images)
    assert np.array_equal(first.digests, again.digests)
    # a changed file, and another size, are other entries
    Image.new("RGB", (6, 6), "red").save(folders / "val/ant/000.png")
    changed = read_imagefolder(str(folders / "val"), shape, where)
    assert calls and changed.images[0, 0].eq(255).all()
    assert len(list((own_cache / "images").iterdir())) == 2
    # writing to the tensor does not reach the file
    changed.images[1] = 0
    assert read_imagefolder(str(folders / "val"), shape, where).images[1].any()


@pytest.mark.parametrize("name", ["images.npy", "digests.npy", "about.json"])
@pytest.mark.parametrize("damage", ["cut", "flip", "gone"])
def test_a_damaged_entry_is_made_anew(
    folders: Path, own_cache: Path, name: str, damage: str
) -> None:
    good = read_imagefolder(str(folders / "val"), Shape(), "here").images.clone()
    (entry,) = (own_cache / "images").iterdir()
    raw = bytearray((entry / name).read_bytes())
    (entry / name).unlink()
    if damage == "cut":
        (entry / name).write_bytes(raw[: len(raw) // 2])
    elif damage == "flip":
        raw[-2] ^= 0xFF
        (entry / name).write_bytes(raw)
    again = read_imagefolder(str(folders / "val"), Shape(), "here")
    assert torch.equal(again.images, good)
    assert torch.equal(read_imagefolder(str(folders / "val"), Shape(), "here").images, good)
    assert len(list((own_cache / "images").iterdir())) == 1


def test_a_cache_that_cannot_be_written(folders: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentFault, match="PARETUNE_CACHE"):
        read_imagefolder(str(folders / "val"), Shape(), "here", cache=tmp_path / "file")


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    def images():
        yield np.zeros((3, 4, 4), dtype=np.uint8)
        raise OSError(28, "No space left on device")

    store = ImageCache(tmp_path / "c")
    with pytest.raises(EnvironmentFault, match="No space left on device"):
        store.write("k" * 64, images(), 2)
    assert not list((tmp_path / "c" / "images").iterdir())


def test_a_disk_too_small_is_told_before_it_is_filled(folders: Path, monkeypatch) -> None:
    space = shutil._ntuple_diskusage(10**12, 10**12 - 1000, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: space)
    with pytest.raises(EnvironmentFault, match="take .* GB and .* GB are free.*train_count"):
        read_imagefolder(str(folders / "val"), Shape(), "here")


def test_the_cache_folder(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.delenv("PARETUNE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if os.name == "posix":
        assert "paretune" in cache_folder().name


def test_images_of_different_sizes(folders: Path) -> None:
    wide = np.zeros((8, 20, 3), dtype=np.uint8)
    wide[:, 6:14] = 200  # the centre 8 x 8
    Image.fromarray(wide).save(folders / "val/bee/000.png")
    with pytest.raises(InputError, match="20x8 pixels.*6x6; give `size:`"):
        read_imagefolder(str(folders / "val"), Shape(), "here")
    images = read_imagefolder(str(folders / "val"), Shape(size=8), "here").images
    assert images.shape == (18, 3, 8, 8)
    assert images[6].eq(200).all()
    cropped = read_imagefolder(str(folders / "val"), Shape(size=4, resize=8), "here").images
    assert cropped.shape == (18, 3, 4, 4) and cropped[6].eq(200).all()


@pytest.mark.parametrize("size", [(50, 37), (41, 67), (24, 90), (31, 16)])
def test_images_are_resized_and_cropped_as_torchvision_does(tmp_path: Path, size) -> None:
    from torchvision.transforms import CenterCrop, Compose, Resize

    write_images(tmp_path / "images", 2, 5, size)
    found = read_imagefolder(str(tmp_path / "images"), Shape(size=16, resize=19), "here").images
    theirs = Compose([Resize(19), CenterCrop(16)])
    for ours, path in zip(found, sorted((tmp_path / "images").rglob("*.png")), strict=True):
        want = np.asarray(theirs(Image.open(path)))
        assert np.array_equal(ours.numpy().transpose(1, 2, 0), want)


def test_grey_palette_and_transparent_images(tmp_path: Path) -> None:
    grey = np.arange(36, dtype=np.uint8).reshape(6, 6)
    for name in ("images/a", "images/b"):
        (tmp_path / name).mkdir(parents=True)
        Image.fromarray(grey).save(tmp_path / name / "l.png")
        Image.new("RGBA", (6, 6), (1, 2, 3, 4)).save(tmp_path / name / "rgba.png")
        Image.new("P", (6, 6)).save(tmp_path / name / "p.png")
    assert read_imagefolder(str(tmp_path / "images"), Shape(), "here").images.shape == (6, 3, 6, 6)
    one = read_imagefolder(str(tmp_path / "images"), Shape(channels=1), "here").images
    assert one.shape == (6, 1, 6, 6) and np.array_equal(one[0, 0].numpy(), grey)


def test_a_flat_folder_has_no_labels(tmp_path: Path) -> None:
    (tmp_path / "flat").mkdir()
    for index in range(5):
        Image.new("RGB", (6, 6), (index, 0, 0)).save(tmp_path / "flat" / f"{index}.png")
    images = read_imagefolder(str(tmp_path / "flat"), Shape(), "here")
    assert images.labels is None and len(images.images) == 5


def test_training_images_need_no_labels(folders: Path) -> None:
    (folders / "flat").mkdir()
    for file in (folders / "train").rglob("*.png"):
        shutil.copy(file, folders / "flat" / f"{file.parent.name}{file.name}")
    splits = load(
        kind="imagefolder", train=str(folders / "flat"), evaluate=str(folders / "val"), search=6
    )
    assert not splits.train.labelled and splits.search.labelled
    assert splits.classes == ("ant", "bee", "cow")


def test_wrong_folders_are_told(folders: Path, tmp_path: Path) -> None:
    def told(path: Path) -> str:
        with pytest.raises(InputError) as caught:
            read_imagefolder(str(path), Shape(), "task.data.train")
        return str(caught.value)

    assert "does not exist" in told(tmp_path / "absent")
    assert "is a file" in told(folders / "val/ant/000.png")
    (tmp_path / "empty").mkdir()
    assert "holds no images" in told(tmp_path / "empty")
    (tmp_path / "one/only").mkdir(parents=True)
    assert "has one class folder only, 'only'" in told(tmp_path / "one")
    (folders / "val/dog").mkdir()
    assert "the class folder 'dog'" in told(folders / "val")
    (folders / "val/dog/x.png").write_bytes(b"not an image")
    assert "val/dog/x.png' cannot be read" in told(folders / "val")
    whole = (folders / "val/ant/000.png").read_bytes()
    (folders / "val/dog/x.png").write_bytes(whole[: len(whole) // 2])
    assert "val/dog/x.png' cannot be read" in told(folders / "val")
    shutil.copy(folders / "val/ant/000.png", folders / "val/dog/x.png")
    with pytest.raises(InputError, match="class folders differ from evaluate's: .'dog'."):
        load(kind="imagefolder", train=str(folders / "train"), evaluate=str(folders / "val"))


WRONG_KEYS = [
    ({"kind": "imagefoldr"}, "did you mean 'imagefolder'?"),
    ({"kind": "digits", "root": "/x"}, "task.data.root: 'root' means nothing for kind 'digits'"),
    ({"kind": "digits", "search": "/x"}, "for digits, it is a number of images"),
    ({"kind": "digits", "search": 1797}, "are left"),
    ({"kind": "digits", "search": 800, "evaluate": 997}, "no images are left for training"),
    ({"kind": "digits", "train_count": 1700}, "task.data.train_count: 1700 of 1079 examples"),
    ({"kind": "digits", "mean": (0.1, 0.2)}, "2 numbers for 1 channels"),
    ({"kind": "imagefolder", "train": "/x"}, "does not exist"),
    ({"kind": "imagefolder"}, "the key 'train' is missing"),
    ({"kind": "imagefolder", "train": 3}, "expected a folder, got 3"),
    ({"kind": "imagefolder", "resize": 8}, "task.data.resize: it means nothing without `size`"),
    ({"kind": "imagefolder", "resize": 8, "size": 9}, "of 8 pixels cannot be cropped to 9"),
    ({"kind": "torchvision"}, "the key 'dataset' is missing"),
    (
        {"kind": "torchvision", "dataset": "CIFAR10", "root": "/x", "resize": 8},
        "task.data.resize: the images of CIFAR10 have one size; remove it",
    ),
    ({"kind": "torchvision", "dataset": "CIFAR10"}, "the key 'root' is missing"),
    ({"kind": "torchvision", "dataset": "CIFAR11", "root": "/x"}, "did you mean 'CIFAR10'?"),
    ({"kind": "torchvision", "dataset": "CIFAR10", "root": "/x"}, "CIFAR10 is not in '/x'"),
    ({"kind": "torchvision", "dataset": "ImageNet", "root": "/x"}, "does not exist"),
    (
        {"kind": "torchvision", "dataset": "ImageNet", "root": "/x", "download": True},
        "cannot be downloaded freely",
    ),
    ({"kind": "no_such_module_z:f"}, "there is no module"),
    ({"kind": "math:sqrt", "args": {"x": 4}}, "raised TypeError"),
]


@pytest.mark.parametrize(("keys", "message"), WRONG_KEYS, ids=[m[:25] for _, m in WRONG_KEYS])
def test_wrong_descriptions_are_told(keys: dict, message: str) -> None:
    with pytest.raises(InputError) as caught:
        load(**keys)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_the_search_part_must_leave_something(folders: Path) -> None:
    with pytest.raises(InputError, match="18 examples for the search, of 18.*take 1 to 17"):
        load(
            kind="imagefolder",
            train=str(folders / "train"),
            evaluate=str(folders / "val"),
            search=18,
        )
    assert (
        len(
            load(
                kind="imagefolder", train=str(folders / "train"), evaluate=str(folders / "val")
            ).search
        )
        == 9
    )


def _write_cifar(root: Path, monkeypatch) -> np.ndarray:
    """The files of CIFAR-10's python version, with a few random images in each batch."""
    import torchvision

    base = root / "cifar-10-batches-py"
    base.mkdir(parents=True)
    rng = np.random.default_rng(3)
    test = rng.integers(0, 256, (20, 3072), dtype=np.uint8)
    kind = torchvision.datasets.CIFAR10
    for name, _ in [*kind.train_list, *kind.test_list]:
        data = test if name == "test_batch" else rng.integers(0, 256, (10, 3072), dtype=np.uint8)
        if name == "data_batch_1":
            data[0] = test[0]  # one image stands in both halves
        content = {"data": data, "labels": [i % 10 for i in range(len(data))]}
        (base / name).write_bytes(pickle.dumps(content))
    (base / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    monkeypatch.setattr(kind, "_check_integrity", lambda self: True)
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda *a: True)
    return test


def test_torchvision_sets(tmp_path: Path, monkeypatch) -> None:
    test = _write_cifar(tmp_path, monkeypatch)
    splits = load(kind="torchvision", dataset="CIFAR10", root=str(tmp_path), search=10)
    assert (len(splits.train), len(splits.search), len(splits.evaluate)) == (49, 10, 10)
    check_disjoint(splits.train, splits.search, splits.evaluate)
    got = {
        (x * 255).round().to(torch.uint8).numpy().tobytes()
        for s in (splits.search, splits.evaluate)
        for x in next(s.batches(99))[0]
    }
    assert got == {row.tobytes() for row in test}
    few = torchvision_images("CIFAR10", str(tmp_path), True, False, "here", Shape(), 20)
    assert np.bincount(few.labels).tolist() == [2] * 10


def test_a_download_that_fails_is_the_environments_fault(tmp_path: Path, monkeypatch) -> None:
    import torchvision

    def no_network(self: object) -> None:
        raise OSError("Network is unreachable")

    monkeypatch.setattr(torchvision.datasets.CIFAR10, "download", no_network)
    with pytest.raises(EnvironmentFault, match="CIFAR10 cannot be downloaded .*unreachable"):
        load(kind="torchvision", dataset="CIFAR10", root=str(tmp_path), download=True)


def test_imagenet_is_read_from_its_class_folders(tmp_path: Path) -> None:
    write_images(tmp_path / "train", 3, 1, (40, 30))
    write_images(tmp_path / "val", 4, 2, (40, 30))
    splits = load(
        kind="torchvision", dataset="ImageNet", root=str(tmp_path), size=16, search=6, train_count=3
    )
    assert next(splits.search.batches(1))[0].shape == (1, 3, 16, 16)
    assert (len(splits.train), len(splits.search), len(splits.evaluate)) == (3, 6, 6)


CALLABLES = """\
import torch
from torch.utils.data import TensorDataset

def part(seed, n=12):
    g = torch.Generator().manual_seed(seed)
    return TensorDataset(torch.randn(n, 5, generator=g), torch.arange(n) % 3)

def pair(n=12): return part(1, n), part(2, n)
def triple(): return [part(1), part(2), part(3)]
def mapping(): return {"evaluate": part(2), "train": part(1)}
def wrong(): return {"train": part(1), "test": part(2)}
def nothing(): return None
def boom(): raise RuntimeError("disk on fire")
"""


def test_data_from_a_callable(tmp_path: Path) -> None:
    (tmp_path / "sets.py").write_text(CALLABLES)
    pair = load(tmp_path, kind="sets.py:pair", args={"n": 20}, search=6, train_count=9)
    assert (len(pair.train), len(pair.search), len(pair.evaluate)) == (9, 6, 14)
    assert np.bincount(pair.search.labels).tolist() == [2, 2, 2]
    check_disjoint(pair.train, pair.search, pair.evaluate)
    triple = load(tmp_path, kind="sets.py:triple")
    assert (len(triple.train), len(triple.search), len(triple.evaluate)) == (12, 12, 12)
    assert len(load(tmp_path, kind="sets.py:mapping").search) == 6
    for name, message in (
        ("wrong", r"returned keys \['test', 'train'\]"),
        ("nothing", "returned NoneType"),
        ("boom", "RuntimeError: disk on fire"),
    ):
        with pytest.raises(InputError, match=message):
            load(tmp_path, kind=f"sets.py:{name}")
    with pytest.raises(InputError, match="already returns 'search'"):
        load(tmp_path, kind="sets.py:triple", search=3)
    with pytest.raises(InputError, match="with a callable, it is a number"):
        load(tmp_path, kind="sets.py:pair", search="folder")
