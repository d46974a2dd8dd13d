"""Which channels of a group matter: the order in which they are kept.

Every method gives one number per channel of a group, higher = keep. Scores of the layers that
share a group are added after dividing each by its mean, so that no layer outvotes the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..spaces.trace import ROOTS, ChannelGroup

Rms = Mapping[str, Tensor]
"""Root mean square of each layer's input, per input channel: module name -> (channels,)."""


def _l1(weight: Tensor) -> Tensor:
    return weight.abs().sum(1)


def _l2(weight: Tensor) -> Tensor:
    return weight.square().sum(1).sqrt()


MAGNITUDES: dict[str, Callable[[Tensor], Tensor]] = {"l1": _l1, "l2": _l2}


def channel_importance(
    network: nn.Module, group: ChannelGroup, method: str, rms: Rms | None = None
) -> Tensor:
    """Importance of each channel of ``group``, shape (channels,).

    method: ``"l1"`` or ``"l2"``, the norm of the weights that make and read the channel (Li et al.,
    "Pruning Filters for Efficient ConvNets", ICLR 2017; grouped as in DepGraph, CVPR 2023), or
    ``"activation"``: what the channel contributes to its readers, ||W[:, c]|| times the root mean
    square of its activations (Sun et al., "A Simple and Effective Pruning Approach", ICLR 2024,
    section 3, taken per channel). ``rms`` is needed for the latter only.
    """
    total = torch.zeros(group.channels)
    for member in group.members:
        module = network.get_submodule(member.module)
        if not isinstance(module, ROOTS):
            continue
        if method == "activation":
            if member.side == "out" or rms is None or member.module not in rms:
                continue
            scores = _l2(_rows(module, "in")) * rms[member.module]
        else:
            scores = MAGNITUDES[method](_rows(module, member.side))
        part = torch.zeros(group.channels)
        entries = torch.tensor(member.entries)
        if scores.shape[0] <= int(entries.max()):
            entries = entries % scores.shape[0]  # a grouped convolution reads within its part
        part.index_add_(0, torch.tensor(member.channels), scores[entries])
        total += part / part.mean().clamp_min(1e-12)
    if method == "activation" and not bool(total.any()):
        return channel_importance(network, group, "l2")
    return total


def _rows(module: Any, side: str) -> Tensor:
    weight: Tensor = module.weight.detach()
    rows = weight if side == "out" else weight.transpose(0, 1)
    return rows.reshape(rows.shape[0], -1).float()


def input_rms(network: nn.Module, inputs: Tensor) -> dict[str, Tensor]:
    """Root mean square of every layer's input channels over ``inputs`` (n, ...) float32."""
    found: dict[str, Tensor] = {}
    hooks = []
    for name, module in network.named_modules():
        if not isinstance(module, ROOTS):
            continue

        def record(module: nn.Module, args: tuple[Tensor, ...], name: str = name) -> None:
            x = args[0].detach()
            axis = x.dim() - 1 if isinstance(module, nn.Linear) else 1
            others = [d for d in range(x.dim()) if d != axis]
            rms = x.square().mean(others).sqrt()
            groups = getattr(module, "groups", 1)
            found[name] = rms if groups == 1 else rms.reshape(groups, -1).mean(0)

        hooks.append(module.register_forward_pre_hook(record))
    with torch.inference_mode():
        network(inputs)
    for hook in hooks:
        hook.remove()
    return {name: rms.clone() for name, rms in found.items()}
