"""Which channels of a group matter: the order in which they are kept.

Every method gives one number per channel of a group, higher = keep. Scores of the layers that
share a group are added after dividing each by its mean, so that no layer outvotes the others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..spaces.trace import ROOTS, ChannelGroup
from .evidence import Loss, input_means, input_rms, input_slopes, own_loss
from .sampling import affordable
from .surgeon import PatchMoments, channel_rms, patch_moments, removal_order

Evidence = Mapping[str, Tensor]
"""What calibration showed of each layer's inputs: module name -> (..., channels)."""
BatchNorm = nn.modules.batchnorm._BatchNorm

WEIGHTS_ONLY = ("l1", "l2", "bn_scale", "fpgm", "random")
"""Methods that look at no data."""
_GATHER: dict[str, Callable[[nn.Module, Tensor], dict[str, Tensor]]] = {
    "activation": input_rms,
    "weight_activation": input_rms,
    "activation_mean": input_means,
    "obs": patch_moments,
}
METHODS = (*WEIGHTS_ONLY, *_GATHER, "taylor")


class Importances(Mapping[str, Tensor]):
    """The importance of each group's channels, found when it is asked for."""

    def __init__(
        self, find: Callable[[ChannelGroup], Tensor], groups: Iterable[ChannelGroup]
    ) -> None:
        self._find, self._groups = find, {group.name: group for group in groups}
        self._known: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._known:
            self._known[name] = self._find(self._groups[name])
        return self._known[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._groups)

    def __len__(self) -> int:
        return len(self._groups)


def gather(
    network: nn.Module, method: str, inputs: Tensor | None, loss: Loss = own_loss
) -> tuple[str, Evidence]:
    """The method that can be carried out, and what it needs to know of the inputs (n, ...).

    Without inputs a method that looks at data becomes ``"l2"``. All inputs go through the network
    at once, fewer where its layers' outputs are large.
    """
    if method in WEIGHTS_ONLY:
        return method, {}
    if inputs is None:
        return "l2", {}
    if method == "taylor":
        return method, input_slopes(network, inputs, loss)
    count = affordable(network, inputs[:1], len(inputs))
    return method, _GATHER[method](network, inputs[:count])


def channel_importance(
    network: nn.Module,
    group: ChannelGroup,
    method: str,
    evidence: Evidence | None = None,
    *,
    mix: float = 0.5,
    seed: int = 0,
) -> Tensor:
    """Importance of each channel of ``group``, shape (channels,). ``evidence``: see :func:`gather`.

    l1, l2: norms of the weights that make and read the channel (Li et al., "Pruning Filters for
        Efficient ConvNets", ICLR 2017, section 3; grouped as in DepGraph, CVPR 2023).
    bn_scale: size of its BatchNorm scales (Liu et al., "Network Slimming", ICCV 2017, section 3);
        l2 in a group that has none.
    fpgm: sum of the distances from the filter to the group's others, so that filters which others
        can replace go first (He et al., "Filter Pruning via Geometric Median", CVPR 2019, eq. 5).
    taylor: mean over examples of the squared first-order change of the loss without the channel
        (Molchanov et al., "Importance Estimation for Neural Network Pruning", CVPR 2019, eq. 8,
        with the channel's readers as the gate).
    activation: what it contributes to its readers, ||W[:, c]|| times the root mean square of its
        activations (Sun et al., "A Simple and Effective Pruning Approach", ICLR 2024, section 3,
        taken per channel). weight_activation: ||W[:, c]||**(1 - mix) * rms**mix, from weights alone
        (mix 0) to activations alone (1); 0.5 orders the channels of one reader as activation does.
    obs: the order in which they would go if their readers were refitted after each (see
        surgeon.py); right with ``reconstruct``.
    activation_mean: mean absolute activation (Molchanov et al., "Pruning Convolutional Neural
        Networks", ICLR 2017, section 2.2).
    random: drawn from ``seed`` and the group's name.
    """
    evidence = evidence or {}
    if method == "random":
        digest = hashlib.sha256(f"{seed} {group.name}".encode()).digest()
        source = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        return torch.rand(group.channels, generator=source)
    if method == "taylor":
        return _taylor(group, evidence)
    if method == "obs":
        if isinstance(evidence, PatchMoments):
            order = removal_order(network, group, evidence)
            if order is not None:
                return order
        method, evidence = "activation", channel_rms(evidence, network)
    total = torch.zeros(group.channels)
    for member in group.members:
        module = network.get_submodule(member.module)
        scores = _scores(module, member.side, method, evidence.get(member.module), mix)
        if scores is not None:
            part = torch.zeros(group.channels)
            part.index_add_(0, torch.tensor(member.channels), scores[torch.tensor(member.entries)])
            total += part / part.mean().clamp_min(1e-12)
    if method not in ("l1", "l2") and not bool(total.any()):
        return channel_importance(network, group, "l2")
    return total


def _scores(module: Any, side: str, method: str, seen: Tensor | None, mix: float) -> Tensor | None:
    """One number per entry of one side of a layer; None where the method has nothing to say."""
    if method == "bn_scale":
        if not isinstance(module, BatchNorm) or module.weight is None:
            return None
        scale: Tensor = module.weight.detach().abs().float()
        return scale
    if not isinstance(module, ROOTS):
        return None
    if method == "l1":
        return _rows(module, side).abs().sum(1)
    if method == "l2":
        return _norms(_rows(module, side))
    if method == "fpgm":
        rows = _rows(module, "out")
        return torch.cdist(rows, rows).sum(1) if side == "out" else None
    if side == "out" or seen is None:
        return None
    norms = _norms(_rows(module, "in"))
    if method == "activation":
        return norms * seen
    if method == "weight_activation":
        return torch.pow(norms, 1 - mix) * torch.pow(seen, mix)
    return seen


def _norms(rows: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(rows, dim=1)
    return norms


def _taylor(group: ChannelGroup, slopes: Evidence) -> Tensor:
    """Changes of the loss at all readers of a channel add up, example by example."""
    total: Tensor | None = None
    for member in group.members:
        if member.side == "in" and member.module in slopes:
            seen = slopes[member.module][:, torch.tensor(member.entries)]
            part = torch.zeros(len(seen), group.channels)
            part.index_add_(1, torch.tensor(member.channels), seen)
            total = part if total is None else total + part
    return torch.ones(group.channels) if total is None else total.square().mean(0)


def _rows(module: Any, side: str) -> Tensor:
    """The weights that make each output channel, or that read each input channel, as rows."""
    weight: Tensor = module.weight.detach().float()
    if side == "out":
        return weight.flatten(1)
    parts = getattr(module, "groups", 1)
    blocks = weight.reshape(parts, weight.shape[0] // parts, weight.shape[1], -1)
    return blocks.transpose(1, 2).reshape(parts * weight.shape[1], -1)
