"""Random changes to training inputs: crops and flips of images, or what a user's function does."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import InputError, nearest
from ..tasks.user_code import is_code, load_callable, run_code

Augment = Callable[[Tensor, torch.Generator], Tensor]
"""(inputs (n, ...) float32 on the CPU, source of randomness) -> inputs of the same shape."""

KINDS = ("crop_flip", "none")
_CROP = 8  # images are moved by up to an eighth of their height (4 pixels of 32)


def make_augment(
    kind: str | None,
    example: Tensor,
    where: str = "augment",
    folder: Path | None = None,
    black: Tensor | None = None,
) -> Augment:
    """The augmentation of a job: ``crop_flip``, ``none``, a user's ``module:callable``, or None:
    crop_flip for images (1, C, H, W), nothing for other inputs.

    folder: for a user's modules. black: see :func:`crop_flip`. Raises InputError for an unknown
    word, or code that is missing.
    """
    if kind is not None and is_code(kind):
        return _checked(load_callable(kind, where, folder), kind, where)
    if kind not in (None, *KINDS):
        raise InputError(
            where, f"unknown augmentation {kind!r:.80}", nearest(kind, (*KINDS, "module:callable"))
        )
    if kind == "none" or (kind is None and example.ndim != 4):
        return unchanged
    if example.ndim != 4:
        raise InputError(
            where,
            f"crop_flip is for images, the inputs are {list(example.shape[1:])}",
            "write augment: none, or name your own module:callable",
        )
    return functools.partial(crop_flip, black=black)


def crop_flip(inputs: Tensor, generator: torch.Generator, black: Tensor | None = None) -> Tensor:
    """Each image moved by up to an eighth of its sides, and flipped or not.

    inputs: (n, C, H, W). black: the pixel (C,) that fills the gap; None: the edges are mirrored.
    Networks trained with black borders (He et al. 2015, section 4.2) have them in their BatchNorm
    statistics: with mirrored ones the CIFAR-10 ResNet-56 disagrees with itself by 1.4 nats
    (softened, T = 4) when it is put into training mode, with black ones by 0.07.
    """
    count, channels, height, width = inputs.shape
    up, left = height // _CROP, width // _CROP
    sides = (left, left, up, up)
    if black is None:
        padded = F.pad(inputs, sides, mode="reflect") if up or left else inputs
    else:
        shift = black.view(1, -1, 1, 1)
        padded = F.pad(inputs - shift, sides) + shift
    down = torch.randint(0, 2 * up + 1, (count, 1), generator=generator)
    across = torch.randint(0, 2 * left + 1, (count, 1), generator=generator)
    flipped = torch.rand(count, 1, generator=generator) < 0.5
    span = torch.arange(width).expand(count, width)
    rows = down + torch.arange(height)
    columns = across + torch.where(flipped, width - 1 - span, span)
    return padded[
        torch.arange(count).view(-1, 1, 1, 1),
        torch.arange(channels).view(1, -1, 1, 1),
        rows.view(count, 1, height, 1),
        columns.view(count, 1, 1, width),
    ]


def unchanged(inputs: Tensor, generator: torch.Generator) -> Tensor:
    """The inputs as they are."""
    return inputs


def _checked(function: Callable[..., Any], spec: str, where: str) -> Augment:
    def augment(inputs: Tensor, generator: torch.Generator) -> Tensor:
        shape = inputs.shape
        made = run_code(function, spec, where, inputs, generator)
        if not isinstance(made, Tensor) or made.shape != shape or not made.is_floating_point():
            got = list(made.shape) if isinstance(made, Tensor) else type(made).__name__
            raise InputError(
                where, f"{spec!r} returned {got} for {list(shape)}", "return a float tensor alike"
            )
        return made

    return augment
