"""Building the network that a job names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import InputError, nearest
from .user_code import last_line, load_callable, run_code


def build_network(
    spec: str, args: Mapping[str, Any], where: str, folder: Path | None = None
) -> nn.Module:
    """The network of ``module:callable``, ``file.py:callable`` or ``torchvision:resnet18``.

    Called with ``args`` as keyword arguments; the result is in eval mode, on the CPU, float32;
    ``requires_grad`` is as the factory left it. Torchvision networks come with random weights; all
    random weights are drawn from the same seed, so that every process has the same network.
    Raises InputError (at ``where``) when the factory is missing, raises, or does not return an
    nn.Module that has parameters.
    """
    factory = None
    if not spec.startswith("torchvision:"):
        factory = load_callable(spec, where, folder)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        if factory is None:
            network = _torchvision_network(spec.removeprefix("torchvision:"), args, where)
        else:
            network = run_code(factory, spec, where, **args)
    if not isinstance(network, nn.Module):
        kind = type(network).__name__
        raise InputError(where, f"{spec!r} returned a {kind}", "return a torch.nn.Module")
    if next(network.parameters(), None) is None:
        raise InputError(where, f"{spec!r} has no parameters", "there is nothing to compress")
    try:
        network = network.cpu().float()
    except Exception as error:
        raise InputError(
            where, f"{spec!r} cannot be moved to the CPU as float32: {last_line(error)}", ""
        ) from error
    return network.eval()


def torchvision_names() -> list[str]:
    """Names of torchvision's classifiers."""
    import torchvision

    return list(torchvision.models.list_models(module=torchvision.models))


def _torchvision_network(name: str, args: Mapping[str, Any], where: str) -> Any:
    import torchvision

    known = torchvision_names()
    if name not in known:
        raise InputError(where, f"torchvision has no classifier {name!r:.80}", nearest(name, known))
    for key in ("weights", "progress"):
        if key in args:
            raise InputError(where, f"{key!r} among the arguments of the model", "use task.weights")
    return run_code(
        torchvision.models.get_model, f"torchvision:{name}", where, name, weights=None, **args
    )
