"""Which bits a plan gives each layer of the network that it was carried out on."""

from __future__ import annotations

from collections.abc import Container, Iterable

from torch import nn

from ..spaces.plan import CompressionPlan, LayerChoice
from ..spaces.shortcut import of_siblings
from ..targets.target import Bits


def weighted_layers(network: nn.Module) -> list[str]:
    """Names of the convolutions and linear layers, which have bits."""
    layers = (nn.Conv1d, nn.Conv2d, nn.Linear)
    return [name for name, module in network.named_modules() if isinstance(module, layers)]


def bits_by_layer(
    plan: CompressionPlan, names: Iterable[str], shortcuts: Container[str]
) -> dict[str, Bits]:
    """Bits of each layer of a compressed network. shortcuts: names of its :class:`ShortcutConv`."""
    chosen = {n: Bits(c.weight_bits, c.activation_bits) for n, c in plan.layers.items()}
    out = {}
    for name in names:
        if name in shortcuts:
            out[name] = of_siblings(name, chosen, Bits())
        else:
            owner = name if name in chosen else name.rpartition(".")[0]
            out[name] = chosen.get(owner, Bits())
    return out


def choice_of(name: str, plan: CompressionPlan) -> LayerChoice:
    """The choice of a layer, of the layer whose factor it is, or none."""
    return plan.layers.get(name) or plan.layers.get(name.rpartition(".")[0]) or LayerChoice()
