"""Training towards zeros: terms that a training loop adds to its loss before pruning."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..errors import InputError, nearest
from ..spaces.trace import ROOTS

Penalty = Callable[[nn.Module], Tensor]
"""The network in training -> a scalar to add to the loss."""
KINDS = ("weights", "bn_scale")


def sparsity_penalty(kind: str, strength: float) -> Penalty:
    """``strength`` times the sum of absolute values of what should become small.

    weights: of convolutions and linear layers (L1, Han et al., "Learning both Weights and
    Connections", NeurIPS 2015, section 3.1), before unstructured zeros. bn_scale: of BatchNorm
    scales, so that channels can be told apart by them (Liu et al., "Network Slimming", ICCV 2017,
    equation 1), before pruning with importance bn_scale.

    >>> loss = task_loss + sparsity_penalty("bn_scale", 1e-4)(network)
    """
    if kind not in KINDS:
        raise InputError("penalty", f"unknown {kind!r}", nearest(kind, KINDS))
    if isinstance(strength, bool) or not 0 <= strength < float("inf"):
        raise InputError("penalty", f"strength {strength!r}", "give a number of at least 0")
    types: tuple[type[nn.Module], ...] = (
        ROOTS if kind == "weights" else (nn.modules.batchnorm._BatchNorm,)
    )

    def penalty(network: nn.Module) -> Tensor:
        total = torch.zeros((), device=next(network.parameters()).device)
        for module in network.modules():
            if isinstance(module, types) and isinstance(module.weight, Tensor):
                total = total + module.weight.abs().sum()
        return strength * total

    return penalty
