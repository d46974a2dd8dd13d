"""Folders of images, a folder a class, decoded once into a memory-mapped array."""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from .image_cache import ImageCache
from .split import balanced_part

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")


@dataclass(frozen=True)
class Images:
    """Decoded images: uint8 (n, C, H, W); labels int64 (n,) or None; digests uint8 (n, 16)."""

    images: Tensor
    labels: Tensor | None
    classes: tuple[str, ...]
    digests: np.ndarray | None = None


@dataclass(frozen=True)
class Shape:
    """How images are brought to one shape. ``size`` None: they must all have the same.

    Images that are not ``size`` x ``size`` are resized (bilinear, shorter side to ``resize``) and
    their centre is cropped, to the pixel as torchvision's ``Resize`` and ``CenterCrop`` do it.
    """

    size: int | None = None
    resize: int | None = None
    channels: int = 3


def read_imagefolder(
    folder: str, shape: Shape, where: str, count: int | None = None, cache: Path | None = None
) -> Images:
    """The images of ``folder``, class numbers in the alphabetical order of its subfolders.

    A folder with images and no subfolders gives unlabelled data. count: only a class-balanced part.
    cache: where decoded arrays are kept (default: the user's cache folder, or PARETUNE_CACHE); they
    are found again by the files' names, sizes and times.
    Raises InputError for a missing or empty folder, one class, an unreadable image (named) or
    images of different sizes; EnvironmentFault when the cache cannot be written.
    """
    classes, files = _listed(folder, where)
    labels = None if not classes else np.asarray([f.label for f in files], dtype=np.int64)
    if count is not None and count < len(files):
        rows = balanced_part(np.zeros(len(files)) if labels is None else labels, count)
        files = [files[row] for row in rows]
        labels = None if labels is None else labels[rows]
    elif count is not None and count > len(files):
        raise InputError(where, f"{folder!r} has {len(files)} images, {count} asked for", "")
    rule = "" if shape.size is None else "2"  # the second way of resizing: arrays of the first stay
    key = hashlib.sha256(repr((os.path.abspath(folder), shape)).encode() + rule.encode())
    for file in files:
        key.update(f"{file.path}\0{file.bytes}\0{file.modified_ns}\n".encode(errors="replace"))
    store = ImageCache(cache)
    found = store.find(key.hexdigest(), len(files))
    if found is None:
        found = store.write(key.hexdigest(), _decoded(files, shape, where), len(files))
    images, digests = found
    return Images(
        torch.from_numpy(images),
        None if labels is None else torch.from_numpy(labels),
        classes,
        digests,
    )


@dataclass(frozen=True)
class _File:
    path: str
    label: int
    bytes: int
    modified_ns: int


def _listed(folder: str, where: str) -> tuple[tuple[str, ...], list[_File]]:
    if not os.path.isdir(folder):
        kind = "is a file" if os.path.exists(folder) else "does not exist"
        raise InputError(where, f"{folder!r} {kind}", "name a folder with a folder a class")
    try:
        with os.scandir(folder) as entries:
            names = sorted(e.name for e in entries if e.is_dir() and e.name[0] not in "._")
        if not names:
            files = list(_images_below(folder, 0))
            if not files:
                raise InputError(where, f"{folder!r} holds no images", "check the path")
            return (), files
        if len(names) == 1:
            raise InputError(
                where, f"{folder!r} has one class folder only, {names[0]!r}", "name its parent?"
            )
        files = []
        for label, name in enumerate(names):
            found = list(_images_below(os.path.join(folder, name), label))
            if not found:
                raise InputError(
                    where, f"the class folder {name!r} of {folder!r} holds no images", "remove it"
                )
            files += found
    except OSError as error:
        raise InputError(where, f"{folder!r} cannot be read ({error})", "") from error
    return tuple(names), files


def _images_below(folder: str, label: int) -> Iterator[_File]:
    for parent, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            if name.lower().endswith(EXTENSIONS) and not name.startswith("."):
                path = os.path.join(parent, name)
                state = os.stat(path)
                yield _File(path, label, state.st_size, state.st_mtime_ns)


def _decoded(files: list[_File], shape: Shape, where: str) -> Iterator[np.ndarray]:
    """The images as uint8 (C, H, W), in order, decoded by a few threads."""
    progress = _Progress(len(files))
    first: tuple[int, ...] = ()
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        waiting = iter(files)
        while chunk := list(islice(waiting, 256)):
            decoded = pool.map(lambda file: _decode(file.path, shape, where), chunk)
            for file, image in zip(chunk, decoded, strict=True):
                first = first or image.shape
                if image.shape != first:
                    raise InputError(
                        where,
                        f"{file.path!r} is {image.shape[2]}x{image.shape[1]} pixels, "
                        f"{files[0].path!r} is {first[2]}x{first[1]}",
                        "give `size:` to resize and crop them",
                    )
                yield image
            progress.advance(len(chunk))
    progress.finish()


def _decode(path: str, shape: Shape, where: str) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(path) as opened:
            image = opened.convert("L" if shape.channels == 1 else "RGB")
    except Exception as error:  # decoders of broken files raise almost anything
        line = " ".join(str(error).split())[:200]
        raise InputError(
            where, f"the image {path!r} cannot be read ({line})", "remove it"
        ) from error
    size = shape.size
    if size is not None and image.size != (size, size):
        shorter, least = shape.resize or size, min(image.size)
        width, height = (shorter * side // least for side in image.size)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
        left, top = (round((side - size) / 2) for side in image.size)
        image = image.crop((left, top, left + size, top + size))
    pixels = np.asarray(image)
    return pixels[None] if shape.channels == 1 else pixels.transpose(2, 0, 1)


class _Progress:
    """Tells on stderr how far a long decoding is; silent for the first two seconds."""

    def __init__(self, total: int) -> None:
        self.total, self.done, self.shown = total, 0, False
        self.next_s = time.monotonic() + 2.0

    def advance(self, count: int) -> None:
        self.done += count
        if time.monotonic() < self.next_s:
            return
        end = "\r" if sys.stderr.isatty() else "\n"
        self.next_s = time.monotonic() + (0.5 if end == "\r" else 15.0)
        self.shown = True
        print(f"decoding images: {self.done:,} of {self.total:,}", end=end, file=sys.stderr)

    def finish(self) -> None:
        if self.shown:
            print(f"decoding images: {self.done:,} of {self.total:,}, kept", file=sys.stderr)
