"""The three splits of a job's data: train, search and evaluate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ..errors import InputError, nearest
from .imagefolder import Images, Shape, read_imagefolder
from .published import digits, torchvision_images
from .sections import DataSection
from .split import AnySplit, DatasetSplit, ImageSplit, balanced_order, balanced_part
from .user_code import is_code, load_callable, run_code

DEFAULT_SEARCH = 1000
KINDS = ("digits", "imagefolder", "torchvision")
_COMMON = {"kind", "search", "train_count"}
_KEYS = {
    "digits": _COMMON | {"train", "evaluate", "mean", "std"},
    "imagefolder": _COMMON | {"train", "evaluate", "size", "resize", "channels", "mean", "std"},
    "torchvision": _COMMON | {"dataset", "root", "download", "size", "resize", "mean", "std"},
    "callable": _COMMON | {"args"},
}

Where = Callable[[str], str]
S = TypeVar("S", ImageSplit, DatasetSplit)


@dataclass(frozen=True)
class Splits:
    """train: calibration and recovery; search: scores during the search; evaluate: the figures."""

    train: AnySplit
    search: AnySplit
    evaluate: AnySplit
    classes: tuple[str, ...] = ()


def load_splits(data: DataSection, where: Where, folder: Path | None = None) -> Splits:
    """The splits that ``data`` describes (see :class:`.sections.DataSection`).

    where: a key of the section -> its place for messages. folder: for a callable's modules.
    Raises InputError for data that are missing, empty or do not fit together. Whether the splits
    overlap is checked by the caller (:func:`.split.check_disjoint`).
    """
    kind = "callable" if is_code(data.kind) else data.kind
    if kind not in _KEYS:
        remedy = nearest(kind, (*KINDS, "module:callable"))
        raise InputError(where("kind"), f"unknown kind of data {kind!r:.80}", remedy)
    used = {k for k in type(data).model_fields if getattr(data, k) not in (None, False, {})}
    for key in sorted(used - _KEYS[kind]):
        raise InputError(where(key), f"{key!r} means nothing for kind {data.kind!r}", "remove it")
    if kind == "digits":
        splits = _digits(data, where)
    elif kind == "imagefolder":
        splits = _imagefolder(data, where)
    elif kind == "torchvision":
        splits = _torchvision(data, where)
    else:
        splits = _called(data, where, folder)
    return replace(splits, train=_mixed(splits.train), search=_mixed(splits.search))


def _mixed(split: AnySplit) -> AnySplit:
    """The split in an order of which every beginning is class-balanced (for calibration)."""
    return split.part(split.name, balanced_order(_classes_of(split)))


def _digits(data: DataSection, where: Where) -> Splits:
    for key in ("train", "search", "evaluate"):
        if isinstance(getattr(data, key), str):
            raise InputError(where(key), "for digits, it is a number of images", "")
    images = digits()
    whole = _image_split("digits", images, data, where)
    labels = _classes_of(whole)
    rest = np.arange(len(whole))
    parts: dict[str, np.ndarray] = {}
    for key in ("evaluate", "search", "train"):
        stated = getattr(data, key)
        count = stated if stated is not None else len(rest) if key == "train" else len(whole) // 5
        if count > len(rest):
            raise InputError(
                where(key), f"{count} images asked for, {len(rest)} of 1797 are left", "take fewer"
            )
        picked = balanced_part(labels[rest], count)
        parts[key] = rest[picked]
        rest = np.delete(rest, picked)
    if not len(parts["train"]):
        raise InputError(where("train"), "no images are left for training", "take fewer elsewhere")
    train = _limited(whole.part("train", parts["train"]), data, where)
    search = whole.part("search", parts["search"])
    return Splits(train, search, whole.part("evaluate", parts["evaluate"]), images.classes)


def _imagefolder(data: DataSection, where: Where) -> Splits:
    _check_resize(data, data.size, where)
    shape = Shape(data.size, data.resize, data.channels or 3)
    read: dict[str, Images] = {}
    for key in ("train", "search", "evaluate"):
        path = getattr(data, key)
        if key == "search" and not isinstance(path, str):
            continue
        if path is None:
            raise InputError(where("kind"), f"the key {key!r} is missing", "name an image folder")
        if key == "evaluate" and isinstance(path, int):
            continue
        if not isinstance(path, str):
            raise InputError(where(key), f"expected a folder, got {path!r}", "name a folder")
        whole = key != "train" or isinstance(data.evaluate, int)  # divided first, then limited
        read[key] = read_imagefolder(path, shape, where(key), None if whole else data.train_count)
    other = "evaluate" if "evaluate" in read else "train"
    classes = read[other].classes
    for key, images in read.items():
        differing = sorted(set(images.classes) ^ set(classes))
        if differing and (images.classes or key != "train"):
            raise InputError(
                where(key),
                f"its class folders differ from {other}'s: {differing[:3]}",
                "give both the same class folders",
            )
    train = _image_split("train", read["train"], data, where)
    if "evaluate" in read:
        evaluate = _image_split("evaluate", read["evaluate"], data, where)
    else:
        train, evaluate = _held_out(train, data, where)
        train = _limited(train, data, where)
    if "search" in read:
        search = _image_split("search", read["search"], data, where)
        return Splits(train, search, evaluate, classes)
    return Splits(train, *_divided(evaluate, data, where), classes)


def _held_out(train: ImageSplit, data: DataSection, where: Where) -> tuple[ImageSplit, ImageSplit]:
    """(train, evaluate): as many images as ``evaluate`` says are taken out, class-balanced.

    Copies of an image of the evaluation part are left out of the training part.
    """
    count, total = data.evaluate, len(train)
    if not isinstance(count, int) or not 2 <= count < total:
        remedy = f"take 2 to {total - 1}, or name a folder"
        raise InputError(where("evaluate"), f"{count!r} of the {total} images of train", remedy)
    rows = balanced_part(_classes_of(train), count)
    evaluate = train.part("evaluate", rows)
    rest = train.part("train", np.delete(np.arange(total), rows))
    kept = _not_in(rest, evaluate)
    if not len(kept):
        raise InputError(where("train"), "all images are copies of a few", "check the data")
    return (rest if len(kept) == len(rest) else rest.part("train", kept)), evaluate


def _torchvision(data: DataSection, where: Where) -> Splits:
    if data.dataset is None or data.root is None:
        key = "dataset" if data.dataset is None else "root"
        raise InputError(where("kind"), f"the key {key!r} is missing", "add it")
    if isinstance(data.search, str):
        raise InputError(where("search"), "for torchvision, it is a number of images", "")
    if data.dataset == "ImageNet":
        _check_resize(data, data.size or 224, where)
    for key in ("size", "resize"):
        if getattr(data, key) and data.dataset != "ImageNet":
            problem = f"the images of {data.dataset} have one size"
            raise InputError(where(key), problem, "remove it")
    halves = [
        torchvision_images(
            data.dataset,
            data.root,
            train,
            data.download,
            where("dataset"),
            Shape(data.size, data.resize),
            data.train_count if train else None,
        )
        for train in (True, False)
    ]
    train = _image_split("train", halves[0], data, where)
    evaluate = _image_split("evaluate", halves[1], data, where)
    # published sets hold a few images twice; the copies in the test half stay
    kept = _not_in(train, evaluate)
    train = train if len(kept) == len(train) else train.part("train", kept)
    return Splits(train, *_divided(evaluate, data, where), halves[0].classes)


def _called(data: DataSection, where: Where, folder: Path | None) -> Splits:
    spot = where("kind")
    if isinstance(data.search, str):
        raise InputError(where("search"), "with a callable, it is a number of examples", "")
    function = load_callable(data.kind, spot, folder)
    result: Any = run_code(function, data.kind, spot, **data.args)
    names = {2: ("train", "evaluate"), 3: ("train", "search", "evaluate")}
    if isinstance(result, tuple | list) and len(result) in names:
        result = dict(zip(names[len(result)], result, strict=True))
    if not isinstance(result, Mapping) or not {"train", "evaluate"} <= set(result):
        kind = f"keys {sorted(map(str, result))}" if isinstance(result, Mapping) else None
        raise InputError(
            spot,
            f"{data.kind!r} returned {kind or type(result).__name__}",
            "return {'train': ..., 'search': ..., 'evaluate': ...}, 'search' may be left out",
        )
    if "search" in result and data.search is not None:
        raise InputError(where("search"), f"{data.kind!r} already returns 'search'", "remove it")
    train = _limited(DatasetSplit("train", result["train"], spot), data, where)
    evaluate = DatasetSplit("evaluate", result["evaluate"], spot)
    if "search" in result:
        return Splits(train, DatasetSplit("search", result["search"], spot), evaluate)
    return Splits(train, *_divided(evaluate, data, where))


def _image_split(name: str, images: Images, data: DataSection, where: Where) -> ImageSplit:
    channels = images.images.shape[1]
    mean = data.mean if data.mean is not None else (0.0,) * channels
    std = data.std if data.std is not None else (1.0,) * channels
    for key, values in (("mean", mean), ("std", std)):
        if len(values) != channels:
            raise InputError(
                where(key), f"{len(values)} numbers for {channels} channels", "one a channel"
            )
    return ImageSplit(name, images.images, images.labels, mean, std, images.digests)


def _check_resize(data: DataSection, size: int | None, where: Where) -> None:
    """Refuse a ``resize`` that would go unheard."""
    if data.resize is not None and size is None:
        raise InputError(where("resize"), "it means nothing without `size`", "give `size` too")
    if data.resize is not None and size is not None and data.resize < size:
        problem = f"images of {data.resize} pixels cannot be cropped to {size}"
        raise InputError(where("resize"), problem, "make it at least `size`")


def _limited(train: S, data: DataSection, where: Where) -> S:
    """The class-balanced part that ``train_count`` asks for."""
    count = data.train_count
    if count is None:
        return train
    if count > len(train):
        raise InputError(where("train_count"), f"{count} of {len(train)} examples", "take fewer")
    return train.part("train", balanced_part(_classes_of(train), count))


def _divided(evaluate: S, data: DataSection, where: Where) -> tuple[S, S]:
    """(search, evaluate): a class-balanced part of the evaluation data, and the rest of it.

    An example of the rest that equals one of the search by content is left out.
    """
    total = len(evaluate)
    count = data.search if isinstance(data.search, int) else min(DEFAULT_SEARCH, total // 2)
    if not 1 <= count < total:
        raise InputError(
            where("search"),
            f"{count} examples for the search, of {total} for evaluation",
            f"take 1 to {total - 1}" if total > 1 else "give more evaluation data",
        )
    rows = balanced_part(_classes_of(evaluate), count)
    search = evaluate.part("search", rows)
    rest = evaluate.part("evaluate", np.delete(np.arange(total), rows))
    kept = _not_in(rest, search)
    if not len(kept):
        raise InputError(where("evaluate"), "all examples are copies of a few", "check the data")
    return search, rest if len(kept) == len(rest) else rest.part("evaluate", kept)


def _classes_of(split: AnySplit) -> np.ndarray:
    labels = split.labels
    return np.zeros(len(split), dtype=np.int64) if labels is None else labels


def _not_in(split: AnySplit, other: AnySplit) -> np.ndarray:
    """Rows of ``split`` whose content does not stand in ``other``."""
    known = set(other.digests())
    return np.asarray([r for r, d in enumerate(split.digests()) if d not in known], dtype=np.int64)
