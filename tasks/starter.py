"""A first job file for a network and its data: what can be found out is, the rest is explained."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from .imagefolder import Shape, read_imagefolder
from .model import build_network
from .split import balanced_part
from .survey import Survey, survey_images
from .user_code import is_code, last_line
from .weights import load_weights

_SIZES = (32, 64, 96, 128, 160, 192, 224, 256, 299, 384)
_TRIED = 256  # training images that the normalisations are compared on
NORMALISATIONS: dict[str, tuple[tuple[float, ...], tuple[float, ...]] | None] = {
    "none (pixels from 0 to 1)": None,
    "ImageNet's": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "CIFAR-10's": ((0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)),
    "mean 0.5, std 0.5": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "MNIST's": ((0.1307,), (0.3081,)),
}
"""Known ways to bring pixels to the network; the one that it answers best with is taken."""


@dataclass
class Found:
    """What was found out about a network and its data, for the job file and for the terminal."""

    data: dict[str, Any]
    notes: dict[str, str] = field(default_factory=dict)  # key of ``data`` -> why
    lines: list[str] = field(default_factory=list)  # what a person should know
    warnings: list[str] = field(default_factory=list)
    score: str = "accuracy"


def look(
    model: str,
    data: str,
    weights: str | None,
    model_args: Mapping[str, Any],
    folder: Path,
) -> Found:
    """Load the network, look at the data and try them together.

    model, weights: as in a job. data: an image folder, ``digits``, or a callable. folder: what
    relative paths start from. Raises InputError naming the option when something is wrong.
    """
    network = build_network(model, model_args, "--model", folder)
    if weights is not None:
        path = weights if weights.startswith("torchvision:") else str(Path(folder, weights))
        load_weights(network, path, "--weights", model, dict(model_args))
    params = sum(p.numel() for p in network.parameters())
    told = f"network   {model}: {type(network).__name__}, {params:,} parameters"
    if data == "digits" or (is_code(data) and not Path(folder, data).exists()):
        return Found({"kind": data}, lines=[told])
    survey = survey_images(Path(folder, data))
    found = _images_found(network, survey)
    found.lines.insert(0, told)
    if weights is None:
        found.warnings.append(
            "no --weights: the network answers at random unless its callable loads some"
        )
    return found


def _images_found(network: nn.Module, survey: Survey) -> Found:
    channels = _channels(network)
    shape, outputs = _fitting(network, survey, channels)
    data: dict[str, Any] = {"kind": "imagefolder", "train": survey.train}
    notes, total = {}, survey.counts[0]
    if survey.evaluate is not None:
        data["evaluate"], held_out = survey.evaluate, survey.counts[1]
    else:
        held_out = data["evaluate"] = max(2, total // 5)
        notes["evaluate"] = (
            "images taken out of `train`, which the network must not have been trained on"
        )
    data["search"] = max(1, min(1000, held_out // 2))
    notes["search"] = "examples of `evaluate` that score the search; the figures are from the rest"
    data["size"] = shape.size
    if shape.resize:
        data["resize"] = shape.resize
    if channels == 1:
        data["channels"] = 1
    found = Found(data, notes)
    widths = ", ".join(f"{w}x{h}" for (w, h), _ in survey.sizes.most_common(3))
    more = " ..." if len(survey.sizes) > 3 else ""
    parts = f"{total:,} images" + (f" + {held_out:,} to evaluate" if survey.evaluate else "")
    found.lines.append(
        f"data      {parts}, {len(survey.classes) or 'no'} classes, pixels {widths}{more}"
    )
    found.lines.append(f"input     {channels}x{shape.size}x{shape.size}, {outputs} outputs")
    if survey.classes:
        _normalise(network, survey, shape, found)
    else:
        found.score = "fidelity"
        found.warnings.append("no class folders: the score is fidelity to the original network")
    if survey.classes and outputs != len(survey.classes):
        found.warnings.append(
            f"the network has {outputs} outputs, the data {len(survey.classes)} classes: class "
            "numbers are the alphabetical order of the folders"
        )
    return found


def _channels(network: nn.Module) -> int:
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            return 1 if module.in_channels == 1 else 3
    return 3


def _fitting(network: nn.Module, survey: Survey, channels: int) -> tuple[Shape, int]:
    """The input size: the images' own, else one near it that the network runs on; its outputs."""
    own, side = survey.common_size, survey.typical_side
    smaller = sorted((s for s in _SIZES if s <= side), reverse=True)
    likely = [224, *smaller] if side >= 200 else smaller
    sizes = list(dict.fromkeys([*([own] if own else []), *likely, *_SIZES]))
    reason = ""
    for size in sizes:
        try:
            with torch.inference_mode():
                outputs = network(torch.zeros(2, channels, size, size))
        except Exception as error:
            reason = reason or last_line(error)
            continue
        if not isinstance(outputs, Tensor) or outputs.ndim != 2 or len(outputs) != 2:
            raise InputError(
                "--model",
                f"for two images it gives {_shown(outputs)}",
                "it must return one tensor (images, classes)",
            )
        resize = round(size / 0.875) if size == 224 and own != size else None
        return Shape(size, resize, channels), int(outputs.shape[1])
    raise InputError(
        "--model",
        f"it runs on no square input from {min(sizes)} to {max(sizes)} pixels: {reason}",
        "name your own data with --data file.py:callable",
    )


def _normalise(network: nn.Module, survey: Survey, shape: Shape, found: Found) -> None:
    """Choose mean and std by the accuracy that each gives on a few training images."""
    count = min(_TRIED, survey.counts[0])
    part = read_imagefolder(str(survey.train), shape, "--data", count)
    if part.labels is None:
        return
    pixels, labels = part.images.float() / 255, part.labels
    rows = torch.from_numpy(balanced_part(labels.numpy(), min(count, len(labels))))
    pixels, labels = pixels[rows], labels[rows]
    known = dict(NORMALISATIONS)
    known["the data's own"] = (
        tuple(round(float(v), 4) for v in pixels.mean((0, 2, 3))),
        tuple(round(max(float(v), 1e-4), 4) for v in pixels.std((0, 2, 3))),
    )
    scores: dict[str, float] = {}
    for name, values in known.items():
        if values is not None and len(values[0]) != shape.channels:
            continue
        inputs = pixels
        if values is not None:
            mean, std = (torch.tensor(v).reshape(1, -1, 1, 1) for v in values)
            inputs = (pixels - mean) / std
        with torch.inference_mode():
            right = [
                (network(x).argmax(1) == y)
                for x, y in zip(torch.split(inputs, 64), torch.split(labels, 64), strict=True)
            ]
        scores[name] = float(torch.cat(right).float().mean())
    best = max(scores, key=lambda name: scores[name])
    chosen = known[best]
    if chosen is not None:
        found.data |= {"mean": list(chosen[0]), "std": list(chosen[1])}
    rest = ", ".join(f"{name}: {100 * s:.0f} %" for name, s in scores.items() if name != best)
    found.notes["mean" if chosen is not None else "size"] = (
        f"normalisation guessed: {best}, {100 * scores[best]:.0f} % right on {len(labels)} "
        f"training images ({rest}); put in what the network was trained with"
    )
    found.lines.append(f"pixels    normalised with {best}: {100 * scores[best]:.0f} % right")
    if scores[best] < 2 / max(2, len(survey.classes)) and scores[best] < 0.6:
        found.warnings.append(
            f"only {100 * scores[best]:.0f} % right with the best normalisation: check the "
            "weights, the order of the classes and how the network was trained to see pixels"
        )


def _shown(outputs: Any) -> str:
    if isinstance(outputs, Tensor):
        return f"shape {list(outputs.shape)}"
    return f"a {type(outputs).__name__}"


def relative(path: Path, folder: Path) -> str:
    """``path`` as a job file in ``folder`` names it: relative where it lies below."""
    full, start = os.path.abspath(path), os.path.abspath(folder)
    return os.path.relpath(full, start) if full.startswith(start + os.sep) else full
