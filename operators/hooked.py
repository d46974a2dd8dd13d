"""A network run once while hooks listen."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


def run_hooked(network: nn.Module, inputs: Tensor, hooks: Iterable[RemovableHandle]) -> None:
    """Run ``network`` on ``inputs`` (n, ...) without gradients, then take ``hooks`` off it, also
    when it fails."""
    hooks = list(hooks)
    try:
        with torch.no_grad():
            network(inputs)
    finally:
        for hook in hooks:
            hook.remove()
