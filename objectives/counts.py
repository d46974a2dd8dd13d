"""Parameters and multiply-accumulates of a network, counted by running it once."""

from __future__ import annotations

import torch
from torch import Tensor, nn

COUNTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


def count_params(network: nn.Module) -> int:
    """Number of parameters (buffers such as BatchNorm statistics are not parameters)."""
    return sum(p.numel() for p in network.parameters())


def count_macs(network: nn.Module, example: Tensor) -> int:
    """Multiply-accumulates of convolutions and linear layers for one example.

    example: (1, ...) float32. Each output counts the weights that make it: kernel area times the
    input channels of its group. Biases, normalisation and activations are not counted (the usual
    convention).
    """
    total = 0

    def add(module: nn.Module, _: tuple[Tensor, ...], out: Tensor) -> None:
        nonlocal total
        weight = module.weight
        if isinstance(weight, Tensor):
            total += out[0].numel() * weight[0].numel()

    hooks = [m.register_forward_hook(add) for m in network.modules() if isinstance(m, COUNTED)]
    with torch.inference_mode():
        network(example)
    for hook in hooks:
        hook.remove()
    return total
