"""What calibration inputs show about a network: how strong its channels are, how much they matter.

Everything is measured in eval mode and leaves the network as it is; no labels are needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from ..spaces.trace import ROOTS

Loss = Callable[[Tensor], Tensor]
"""Outputs (n, ...) -> one loss for each example, shape (n,)."""
BATCH = 32  # examples of one backward pass


def own_loss(outputs: Tensor) -> Tensor:
    """A loss that needs no labels, shape (n,).

    Outputs (n, classes): cross-entropy against the class the network itself finds most probable.
    Anything else: the outputs projected on one fixed random direction, whose gradient is a random
    part of the outputs' own sensitivity.
    """
    if outputs.dim() == 2 and outputs.shape[1] > 1:
        return F.cross_entropy(outputs, outputs.detach().argmax(1), reduction="none")
    flat = outputs.flatten(1)
    direction = torch.randn(flat.shape[1], generator=torch.Generator().manual_seed(0))
    return flat @ direction.to(flat)


def input_rms(network: nn.Module, inputs: Tensor) -> dict[str, Tensor]:
    """Root mean square of every layer's input channels over ``inputs`` (n, ...) float32."""
    return _averages(network, inputs, lambda x: x.square(), lambda mean: mean.sqrt())


def input_means(network: nn.Module, inputs: Tensor) -> dict[str, Tensor]:
    """Mean absolute value of every layer's input channels over ``inputs`` (n, ...) float32."""
    return _averages(network, inputs, lambda x: x.abs(), lambda mean: mean)


def input_slopes(network: nn.Module, inputs: Tensor, loss: Loss = own_loss) -> dict[str, Tensor]:
    """First-order change of each example's loss per layer and input channel: name -> (n, channels).

    It is x times dloss/dx, summed over positions; summed over the examples it is the weights that
    read the channel times their gradient.
    """
    parts: dict[str, list[Tensor]] = {}
    with torch.inference_mode(False), torch.enable_grad():
        for batch in torch.split(inputs, BATCH):
            gates: dict[str, list[Tensor]] = {}
            with _hooked(network, partial(_gated, gates)):
                losses = loss(network(batch.clone()))
            flat = [gate for of_layer in gates.values() for gate in of_layer]
            slopes = iter(torch.autograd.grad(losses.sum(), flat, allow_unused=True))
            for name, of_layer in gates.items():
                found = [next(slopes) for _ in of_layer]
                total = sum((s for s in found if s is not None), torch.zeros_like(of_layer[0]))
                parts.setdefault(name, []).append(total.detach())
    return {name: torch.cat(of_layer) for name, of_layer in parts.items()}


def weight_slopes(network: nn.Module, inputs: Tensor, loss: Loss = own_loss) -> dict[str, Tensor]:
    """Weight times gradient of the mean loss, for every layer's weight: name -> weight's shape."""
    layers = {n: m for n, m in network.named_modules() if isinstance(m, ROOTS)}
    before = {n: m.weight.requires_grad for n, m in layers.items()}
    totals = {n: torch.zeros_like(m.weight) for n, m in layers.items()}
    with torch.inference_mode(False), torch.enable_grad():
        try:
            for layer in layers.values():
                layer.weight.requires_grad_(True)
            weights = [layer.weight for layer in layers.values()]
            for batch in torch.split(inputs, BATCH):
                total = loss(network(batch.clone())).sum() / len(inputs)
                found = torch.autograd.grad(total, weights, allow_unused=True)
                for name, slope in zip(layers, found, strict=True):
                    if slope is not None:
                        totals[name] += slope
        finally:
            for name, layer in layers.items():
                layer.weight.requires_grad_(before[name])
    return {n: totals[n] * layers[n].weight.detach() for n in layers}


def _averages(
    network: nn.Module,
    inputs: Tensor,
    measure: Callable[[Tensor], Tensor],
    finish: Callable[[Tensor], Tensor],
) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}

    def watch(module: nn.Module, name: str) -> RemovableHandle:
        def record(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
            x = args[0].detach()
            axis = _channel_axis(layer, x)
            found[name] = finish(measure(x).mean([d for d in range(x.dim()) if d != axis]))

        return module.register_forward_pre_hook(record)

    with _hooked(network, watch), torch.inference_mode():
        network(inputs)
    return {name: value.clone() for name, value in found.items()}


def _gated(gates: dict[str, list[Tensor]], module: nn.Module, name: str) -> RemovableHandle:
    return module.register_forward_pre_hook(_gate(name, gates))


def _gate(name: str, gates: dict[str, list[Tensor]]) -> Callable[..., tuple[Tensor, ...]]:
    """A hook that multiplies a layer's input by ones that can be differentiated."""

    def multiply(layer: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x = args[0]
        axis = _channel_axis(layer, x)
        shape = [1] * x.dim()
        shape[0], shape[axis] = x.shape[0], x.shape[axis]
        gate = torch.ones(x.shape[0], x.shape[axis], requires_grad=True)
        gates.setdefault(name, []).append(gate)
        return (x * gate.reshape(shape), *args[1:])

    return multiply


def _channel_axis(layer: nn.Module, x: Tensor) -> int:
    return x.dim() - 1 if isinstance(layer, nn.Linear) else 1


@contextmanager
def _hooked(network: nn.Module, watch: Callable[[Any, str], RemovableHandle]) -> Iterator[None]:
    """``watch(layer, name)`` on every convolution and linear layer, taken off again."""
    hooks: list[RemovableHandle] = []
    try:
        for name, module in network.named_modules():
            if isinstance(module, ROOTS):
                hooks.append(watch(module, name))
        yield
    finally:
        for hook in hooks:
            hook.remove()
