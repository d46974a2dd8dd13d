"""What each layer of an exported ONNX file looks like, and what it takes of the file."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .onnx_session import parse_model

if TYPE_CHECKING:
    from onnx import ModelProto

_STORED_BITS = {1: 32, 10: 16, 16: 16, 2: 8, 3: 8, 21: 4, 22: 4, 25: 2, 26: 2}
_WEIGHT = re.compile(r"^(?P<owner>.+)\.weight(?:_quantized)?$")


@dataclass(frozen=True)
class FileLayer:
    """One layer as it lies in a file.

    shapes: of its weights, output channels first; several where the layer was factorised, none
    where they are stored in packed blocks.
    bits: stored per weight. size_bytes: of all its tensors, with their scales and zero points.
    """

    name: str
    shapes: tuple[tuple[int, ...], ...]
    bits: int
    size_bytes: int


def file_layers(path: Path, names: Iterable[str] = ()) -> list[FileLayer]:
    """The layers of an ONNX file in the order in which it runs them.

    names: the original network's layers, so that the parts of a factorised one (``conv.0``,
    ``conv.1``) count for the layer; default: every weight is a layer of its own.
    Raises CandidateError when it is no ONNX file, OSError when it cannot be read.
    """
    model = parse_model(path.read_bytes(), path.name)
    owners = owners_of(model, list(names))
    shapes: dict[str, list[tuple[int, ...]]] = {}
    bits: dict[str, int] = {}
    sizes: dict[str, int] = {}
    order = _first_use(model)
    for tensor in sorted(model.graph.initializer, key=lambda t: order.get(t.name, len(order))):
        owner = owners.get(tensor.name)
        if owner is None:
            continue
        sizes[owner] = sizes.get(owner, 0) + tensor.ByteSize()
        found = shapes.setdefault(owner, [])
        if is_weight(tensor.name):
            if _WEIGHT.match(tensor.name):
                found.append(tuple(tensor.dims))
            stored = _STORED_BITS.get(tensor.data_type, 32)
            bits[owner] = min(bits.get(owner, stored), stored)
    return [FileLayer(n, tuple(s), bits.get(n, 32), sizes[n]) for n, s in shapes.items()]


def is_weight(constant: str) -> bool:
    """Whether a constant holds a layer's weights, not their scales or a bias."""
    return ".weight" in constant and not constant.endswith(("_scale", "_scales", "_zero_point"))


def owners_of(model: ModelProto, names: list[str]) -> dict[str, str]:
    """Constant -> the layer that it belongs to; constants of the rest of the graph are left out."""
    constants = [tensor.name for tensor in model.graph.initializer]
    if not names:
        found = (_WEIGHT.match(name) for name in constants)
        names = list(dict.fromkeys(m["owner"] for m in found if m))
    known = sorted(names, key=len, reverse=True)  # the longest name that fits is meant
    return {
        constant: owner
        for constant in constants
        if (owner := next((n for n in known if constant.startswith((f"{n}.", f"{n}_"))), None))
    }


def _first_use(model: ModelProto) -> dict[str, int]:
    order: dict[str, int] = {}
    for node in model.graph.node:
        for name in node.input:
            order.setdefault(name, len(order))
    return order
