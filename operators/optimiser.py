"""The optimiser of a training."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..errors import CandidateError
from ..tasks.recover_section import RecoverSection

_RATES = {"sgd": 0.01, "adamw": 0.001}


def make_optimiser(
    network: nn.Module, match: nn.Module, options: RecoverSection
) -> torch.optim.Optimizer:
    """For what of ``network`` is trained, and what only matches its features to the original's.

    Weights decay; biases, normalisation and quantisation steps do not. Raises CandidateError where
    there is nothing to train.
    """
    rate = options.lr or _RATES[options.optimiser]
    trained = [p for p in network.parameters() if p.requires_grad]
    decayed = [p for p in trained if p.ndim > 1] + list(match.parameters())
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": options.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if not trained:
        raise CandidateError("the network has nothing to train")
    if options.optimiser == "adamw":
        return torch.optim.AdamW(groups, lr=rate)
    return torch.optim.SGD(
        groups, lr=rate, momentum=options.momentum, nesterov=options.momentum > 0
    )
