"""Data sets that need no description: scikit-learn's digits and torchvision's well-known ones."""

from __future__ import annotations

import os

import numpy as np
import torch

from ..errors import EnvironmentFault, InputError, nearest
from .imagefolder import Images, Shape, read_imagefolder
from .split import balanced_part
from .user_code import last_line

TORCHVISION = ("CIFAR10", "CIFAR100", "FashionMNIST", "ImageNet")


def digits() -> Images:
    """scikit-learn's 1,797 handwritten digits: uint8 (n, 1, 8, 8), 10 classes; no download."""
    from sklearn.datasets import load_digits

    data = load_digits()
    pixels = np.rint(data.images * (255 / 16)).astype(np.uint8)[:, None]
    labels = torch.from_numpy(np.asarray(data.target, dtype=np.int64))
    return Images(torch.from_numpy(pixels), labels, tuple(str(c) for c in data.target_names))


def torchvision_images(
    dataset: str,
    root: str,
    train: bool,
    download: bool,
    where: str,
    shape: Shape,
    count: int | None = None,
) -> Images:
    """One half of a torchvision data set; ``count``: a class-balanced part of it.

    ImageNet is read from the class folders ``root/train`` and ``root/val`` (shorter side 256,
    centre crop 224 unless the shape says otherwise) and is never downloaded.
    Raises InputError when the set is unknown or absent, EnvironmentFault when a download fails.
    """
    if dataset not in TORCHVISION:
        raise InputError(where, f"unknown data set {dataset!r:.80}", nearest(dataset, TORCHVISION))
    if dataset == "ImageNet":
        if download:
            raise InputError(where, "ImageNet cannot be downloaded freely", "give `root` only")
        size = shape.size or 224
        shape = Shape(size, shape.resize or round(size / 0.875))
        half = os.path.join(root, "train" if train else "val")
        return read_imagefolder(half, shape, where, count)
    import torchvision

    kind = getattr(torchvision.datasets, dataset)
    try:
        data = kind(root, train=train, download=download)
    except Exception as error:
        if download:
            raise EnvironmentFault(
                f"{where}: {dataset} cannot be downloaded into {root} ({last_line(error)}); "
                "check the network, or put the files there"
            ) from error
        raise InputError(
            where, f"{dataset} is not in {root!r}", "correct `root`, or allow `download: true`"
        ) from error
    pixels = np.asarray(data.data, dtype=np.uint8)
    pixels = pixels[:, None] if pixels.ndim == 3 else pixels.transpose(0, 3, 1, 2)
    labels = np.asarray(data.targets, dtype=np.int64)
    if count is not None:
        if count > len(labels):
            raise InputError(where, f"{dataset} has {len(labels)} images, {count} asked for", "")
        rows = balanced_part(labels, count)
        pixels, labels = pixels[rows], labels[rows]
    return Images(
        torch.from_numpy(np.ascontiguousarray(pixels)),
        torch.from_numpy(labels),
        tuple(str(c) for c in data.classes),
    )
