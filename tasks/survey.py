"""What a folder of images looks like: its splits, classes and sizes, without decoding a pixel."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from .imagefolder import EXTENSIONS

_TRAIN = ("train", "training")
_EVALUATE = ("val", "valid", "validation", "test", "testing", "eval", "evaluate")
_LOOKED_AT = 200  # images whose size is read


@dataclass(frozen=True)
class Survey:
    """A folder of images. train, evaluate: its parts (``evaluate`` None: there is one part only).

    classes: class folders, in the order of their numbers. counts: images of each part. sizes:
    (width, height) -> how many of the images looked at.
    """

    train: Path
    evaluate: Path | None
    classes: tuple[str, ...]
    counts: tuple[int, int]
    sizes: Counter[tuple[int, int]]

    @property
    def common_size(self) -> int | None:
        """The side of the images where all are square and alike, else None."""
        if len(self.sizes) != 1:
            return None
        ((width, height),) = self.sizes
        return width if width == height else None

    @property
    def typical_side(self) -> int:
        """The median of the shorter sides."""
        sides = sorted(min(size) for size, count in self.sizes.items() for _ in range(count))
        return sides[len(sides) // 2]


def survey_images(folder: Path, where: str = "--data") -> Survey:
    """Look at a folder with a folder a class, or with two such folders in it (train/, val/).

    Raises InputError when it holds neither, or images of only one class.
    """
    if not folder.is_dir():
        kind = "is a file" if folder.exists() else "does not exist"
        raise InputError(where, f"{str(folder)!r} {kind}", "name a folder with a folder a class")
    below = {path.name.lower(): path for path in folder.iterdir() if path.is_dir()}
    train = next((below[name] for name in _TRAIN if name in below), None)
    evaluate = next((below[name] for name in _EVALUATE if name in below), None)
    if train is None and evaluate is not None:
        raise InputError(
            where,
            f"{str(folder)!r} has {evaluate.name!r}, but no 'train' beside it",
            "calibration needs training images",
        )
    train = train or folder
    classes = _classes(train, where)
    files = [_images(train / name) for name in classes] if classes else [_images(train)]
    if not any(files):
        raise InputError(where, f"{str(train)!r} holds no images", "check the path")
    held_out = len(_images(evaluate)) if evaluate is not None else 0
    total = sum(len(found) for found in files)
    each = max(1, _LOOKED_AT // len(files))
    sizes = Counter(_size(path, where) for found in files for path in found[:each])
    return Survey(train, evaluate, classes, (total, held_out), sizes)


def _classes(folder: Path, where: str) -> tuple[str, ...]:
    names = sorted(p.name for p in folder.iterdir() if p.is_dir() and p.name[0] not in "._")
    if len(names) == 1:
        raise InputError(
            where, f"{str(folder)!r} has one class folder only, {names[0]!r}", "name its parent?"
        )
    return tuple(names)


def _images(folder: Path) -> list[Path]:
    return [
        Path(parent, name)
        for parent, _, names in os.walk(folder)
        for name in sorted(names)
        if _is_image(name)
    ]


def _is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS) and not name.startswith(".")


def _size(path: Path, where: str) -> tuple[int, int]:
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.size
    except Exception as error:  # decoders of broken files raise almost anything
        line = " ".join(str(error).split())[:200]
        raise InputError(where, f"the image {str(path)!r} cannot be read ({line})", "") from None
