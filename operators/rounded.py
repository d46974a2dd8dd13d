"""A layer that computes in float32 what its quantised file computes, with ranges set from outside.

The same arithmetic as :mod:`paretune.operators.fake_quantise`, for a network that is rounded in
many ways one after another: nothing is copied, each layer is told its bits and ranges.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..targets.onnx_scales import Affine

Range = tuple[float, float]


def affine_of(low: float, high: float) -> Affine:
    """The unsigned 8-bit scale of a range, widened to hold zero (ONNX Runtime's rule)."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / 255 or 1.0
    return Affine(scale, round(-low / scale), 0, 255)


class RoundedLayer(nn.Module):
    """A convolution or linear layer that is rounded when it is told to be.

    layer: the float32 layer, BatchNorm folded.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer: Any = layer
        self._input: Affine | None = None
        self._output: Affine | None = None
        self.restore()

    def forward(self, x: Tensor) -> Tensor:
        if self._input is not None:
            x = _rounded(x, self._input)
        if isinstance(self.layer, nn.Linear):
            out = F.linear(x, self._weight, self._bias)
        else:
            out = self.layer._conv_forward(x, self._weight, self._bias)
        return out if self._output is None else _rounded(out, self._output)

    def restore(self) -> None:
        """Plain float32 again."""
        bias = self.layer.bias
        self._weight: Tensor = self.layer.weight.detach()
        self._bias: Tensor | None = None if bias is None else bias.detach()
        self._input = self._output = None

    def round(
        self, weight_bits: int, given: Range | None, made: Range | None, most: int = 0
    ) -> None:
        """Round weights to ``weight_bits``, the input to 8 bits of its range ``given`` and the
        output of its range ``made`` (None: not rounded). most: the largest integer of a weight
        (0: what the bits allow)."""
        weight, bias = self.layer.weight.detach(), self.layer.bias
        most = most or 2 ** (weight_bits - 1) - 1
        flat = weight.flatten(1).abs().amax(1).clamp_min(1e-12) / most
        scale = flat.reshape(-1, *[1] * (weight.dim() - 1))
        self._weight = torch.round(weight / scale).clamp_(-most, most).mul_(scale)
        self._bias = None if bias is None else bias.detach()
        self._input = None if given is None else affine_of(*given)
        self._output = None if made is None else affine_of(*made)
        if self._input is not None and self._bias is not None:
            step = flat * self._input.scale
            self._bias = torch.round(self._bias / step).mul_(step)


def _rounded(x: Tensor, affine: Affine) -> Tensor:
    low, high = affine.low - affine.zero_point, affine.high - affine.zero_point
    return (x / affine.scale).round_().clamp_(low, high).mul_(affine.scale)


def fold(network: nn.Module, pairs: dict[str, str]) -> None:
    """Fold BatchNorms into the convolutions before them, in place. pairs: BatchNorm ->
    convolution; a factorised convolution takes it in its last factor."""
    for bn_name, conv_name in pairs.items():
        bn: Any = network.get_submodule(bn_name)
        conv: Any = network.get_submodule(conv_name)
        if isinstance(conv, nn.Sequential):
            conv[-1] = fuse_conv_bn_eval(conv[-1], bn)  # type: ignore[type-var]
        else:
            _put(network, conv_name, fuse_conv_bn_eval(conv, bn))
        _put(network, bn_name, nn.Identity())


def wrap_layers(network: nn.Module, names: Container[str] | None = None) -> dict[str, RoundedLayer]:
    """Put every convolution and linear layer (or those in ``names``) into a
    :class:`RoundedLayer`, in place; by name."""
    found = {
        name: RoundedLayer(module)
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear)
        and (names is None or name in names)
    }
    for name, layer in found.items():
        _put(network, name, layer)
    return found


def _put(network: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    network.get_submodule(parent)._modules[leaf] = module
