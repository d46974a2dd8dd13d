"""Loading weights into a network: everything is checked before anything is copied."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import EnvironmentFault, InputError, nearest
from .checkpoint import (
    Header,
    RefusedCode,
    read_safetensors,
    read_torch,
    safetensors_header,
    tensor_header,
)
from .user_code import last_line

_SHOWN = 5


def load_weights(
    network: nn.Module,
    spec: str,
    where: str,
    model: str = "",
    model_args: Mapping[str, Any] | None = None,
) -> None:
    """Fill ``network`` with the weights that ``spec`` names.

    spec: a ``.safetensors`` file, a ``.pt`` or ``.pth`` file that holds a state_dict, or
    ``torchvision:IMAGENET1K_V1`` for a ``model`` that is ``torchvision:NAME`` (built with
    ``model_args``). Names and shapes are compared with the network first, then values are read and
    checked to be finite, then copied.

    Raises InputError on anything wrong with the file, EnvironmentFault when torchvision's weights
    cannot be downloaded. A file that needs code to load is refused.
    """
    if spec.startswith("torchvision:"):
        tensors = _torchvision_weights(spec.removeprefix("torchvision:"), where, model, model_args)
        _check_names_and_shapes(network, tensor_header(tensors), where)
    else:
        path = _checked_file(Path(spec), where)
        if path.suffix == ".safetensors":
            _check_names_and_shapes(network, safetensors_header(path, where), where)
            tensors = read_safetensors(path, where)
        elif path.suffix in (".pt", ".pth", ".bin", ".ckpt"):
            state = [t for t in network.state_dict().values() if isinstance(t, Tensor)]
            capacity = sum(t.numel() * t.element_size() for t in state)
            tensors = read_torch(path, where, capacity)
            _check_names_and_shapes(network, tensor_header(tensors), where)
        else:
            raise InputError(
                where, f"{path.name!r} is no weights file", "use .safetensors, .pt or .pth"
            )
    check_finite(tensors, where)
    try:
        network.load_state_dict(tensors, strict=False)
    except Exception as error:
        raise InputError(where, f"the network refuses the weights: {last_line(error)}") from error


def _checked_file(path: Path, where: str) -> Path:
    try:
        if path.is_dir():
            raise InputError(where, f"{str(path)!r} is a folder", "name a weights file")
        if not path.is_file():
            beside = [p.name for p in path.parent.glob("*") if p.is_file()][:1000]
            close = nearest(path.name, beside)
            remedy = close if close.startswith("did") else "correct the path"
            raise InputError(where, f"no such file {str(path)!r}", remedy)
        with open(path, "rb") as stream:
            start = stream.read(64)
    except (OSError, ValueError) as error:
        raise InputError(where, f"{str(path)!r} cannot be read ({error})") from error
    if not start:
        raise InputError(where, f"{path.name!r} is empty", "fetch or save it again")
    if start.startswith(b"version https://git-lfs"):
        raise InputError(where, f"{path.name!r} is a git-lfs pointer", "run `git lfs pull`")
    if start.lstrip()[:1] == b"<":
        raise InputError(where, f"{path.name!r} is a web page", "download the file itself")
    return path


def _check_names_and_shapes(network: nn.Module, header: Header, where: str) -> None:
    want = {n: t for n, t in network.state_dict().items() if isinstance(t, Tensor)}
    given = {(t.data_ptr(), t.shape) for n, t in want.items() if n in header and t.numel()}
    missing = [
        name
        for name, tensor in want.items()
        if name not in header
        and not name.endswith("num_batches_tracked")
        and (tensor.data_ptr(), tensor.shape) not in given  # shared with one that is there
    ]
    extra = [name for name in header if name not in want]
    if missing or extra:
        parts = []
        if missing:
            parts.append(f"{len(missing)} of the network's tensors are missing: {_some(missing)}")
        if extra:
            parts.append(f"{len(extra)} are not in the network: {_some(extra)}")
        raise InputError(where, "; ".join(parts), _names_hint(set(want), list(header)))
    wrong = [
        f"{name} is {list(shape)}, the network's is {list(want[name].shape)}"
        for name, (shape, _) in header.items()
        if tuple(want[name].shape) != shape
    ]
    if wrong:
        more = f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise InputError(
            where, "; ".join(wrong[:_SHOWN]) + more, "check model_args (classes, depth, width)"
        )
    for name, (_, floating) in header.items():
        if floating != want[name].is_floating_point():
            kind = "floating" if floating else "whole"
            raise InputError(
                where, f"{name} holds {kind} numbers, the network's does not", "save float weights"
            )


def _names_hint(want: set[str], given: list[str]) -> str:
    """What to do when the names do not fit."""
    for prefix in sorted({name.split(".", 1)[0] + "." for name in given if "." in name}):
        if any(name.startswith(prefix) and name[len(prefix) :] in want for name in given):
            return f"the names carry the prefix {prefix!r}; save the state_dict of the inner module"
    for name in want:
        inner = name.split(".", 1)[-1]
        if inner != name and inner in given and inner not in want:
            return f"the network's names carry the prefix {name[: -len(inner)]!r}"
    return "check that model and model_args fit these weights"


def _some(names: list[str]) -> str:
    shown = ", ".join(repr(n)[1:-1][:100] for n in names[:_SHOWN])
    return shown + (" ..." if len(names) > _SHOWN else "")


def check_finite(tensors: Mapping[str, Any], where: str) -> None:
    """Raise InputError naming the first tensor that holds NaN or infinity."""
    bad, first = 0, ""
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            continue
        if not bool(torch.isfinite(tensor).all()):
            bad += int((~torch.isfinite(tensor)).sum())
            first = first or name
    if bad:
        raise InputError(
            where, f"{bad} weights are NaN or infinite, first in {first!r}", "train it again"
        )


def _torchvision_weights(
    name: str, where: str, model: str, model_args: Mapping[str, Any] | None
) -> dict[str, Tensor]:
    import torchvision

    if not model.startswith("torchvision:"):
        raise InputError(
            where, "torchvision's weights fit torchvision's networks only", "name a weights file"
        )
    network = model.removeprefix("torchvision:")
    known = torchvision.models.get_model_weights(network)
    name = name.rpartition(".")[2]
    if name not in known.__members__:
        raise InputError(
            where, f"{network!r} has no weights {name!r:.80}", nearest(name, known.__members__)
        )
    chosen = known[name]
    try:  # a file that lies in the store already is not hashed: it may hold weights only, too
        chosen.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except RefusedCode:
        raise InputError(
            where,
            f"the file of {name} in {torch.hub.get_dir()}/checkpoints holds code, not only weights",
            "remove it; it is fetched again",
        ) from None
    except (OSError, RuntimeError) as error:
        raise EnvironmentFault(
            f"{where}: {chosen.url} cannot be downloaded ({last_line(error)}); "
            f"fetch it elsewhere and put it into {torch.hub.get_dir()}/checkpoints"
        ) from error
    try:
        built = torchvision.models.get_model(network, weights=chosen, **(model_args or {}))
    except Exception as error:
        raise InputError(
            where, f"{name} does not fit these model_args: {last_line(error)}"
        ) from error
    return dict(built.state_dict())
