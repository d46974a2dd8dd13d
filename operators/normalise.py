"""BatchNorm statistics after compression, re-estimated on a few unlabelled images.

The *differential* kind moves the stored statistics by as much as compression moved the measured
ones: mean += cal_mean(compressed) - cal_mean(original), var *= cal_var(compressed) /
cal_var(original). It changes nothing when nothing was compressed, and needs only some 64 images;
replacing the statistics outright costs a trained CIFAR-10 ResNet-20 2.6 to 4.4 points by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

Moments = Mapping[str, tuple[Tensor, Tensor]]
"""Mean and biased variance of each BatchNorm's input, per channel: name -> (mean, var)."""

BatchNorm = nn.modules.batchnorm._BatchNorm
_FLOOR = 1e-6


def input_moments(network: nn.Module, inputs: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Moments of every BatchNorm's input over ``inputs`` (n, ...), the network left as it is."""
    found: dict[str, tuple[Tensor, Tensor]] = {}
    hooks = []
    for name, module in network.named_modules():
        if not isinstance(module, BatchNorm):
            continue

        def record(_: nn.Module, args: tuple[Tensor, ...], name: str = name) -> None:
            if name not in found:  # a layer that is called again keeps its first moments
                found[name] = _moments(args[0])

        hooks.append(module.register_forward_pre_hook(record))
    if hooks:
        with torch.inference_mode():
            network(inputs)
    for hook in hooks:
        hook.remove()
    return {name: (mean.clone(), var.clone()) for name, (mean, var) in found.items()}


@contextmanager
def reestimating(
    network: nn.Module,
    original: Moments,
    lost: Mapping[str, Sequence[int]],
    kind: str = "differential",
) -> Iterator[None]:
    """While ``network`` runs once on the calibration inputs, re-estimate its BatchNorm statistics.

    In place, each layer seeing the corrected ones before it.
    original: :func:`input_moments` of the uncompressed network on the same inputs.
    lost: output channels that each module lost by pruning. kind: ``"differential"``, ``"plain"``
    or ``"none"``.
    """
    hooks, done = [], set[str]()
    for name, module in network.named_modules():
        if not isinstance(module, BatchNorm) or module.running_mean is None:
            continue
        if kind == "none" or (kind == "differential" and name not in original):
            continue

        def correct(module: Any, args: tuple[Tensor, ...], name: str = name) -> None:
            if name in done:
                return
            done.add(name)
            mean, var = _moments(args[0])
            if kind == "plain":
                module.running_mean.copy_(mean)
                module.running_var.copy_(var)
                return
            stay = _staying(original[name][0].shape[0], lost.get(name, ()))
            old_mean, old_var = (t[stay] for t in original[name])
            module.running_mean.add_(mean - old_mean)
            module.running_var.mul_(var.clamp_min(_FLOOR) / old_var.clamp_min(_FLOOR))

        hooks.append(module.register_forward_pre_hook(correct))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    flat = x.detach().transpose(0, 1).reshape(x.shape[1], -1)
    mean = flat.mean(1)  # two passes: torch.var_mean is ten times slower than both on a CPU
    return mean, (flat - mean[:, None]).square_().mean(1)


def _staying(count: int, lost: Sequence[int]) -> Tensor:
    keep = torch.ones(count, dtype=torch.bool)
    keep[list(lost)] = False
    return keep
