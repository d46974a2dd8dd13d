"""A layer that computes in float32 what its quantised file computes, with ranges set from outside.

The same arithmetic as :mod:`paretune.operators.fake_quantise`, for a network that is rounded in
many ways one after another: nothing is copied, each layer is told its bits and ranges.
"""

from __future__ import annotations

import copy
from collections.abc import Container
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_weights

from ..targets.onnx_scales import Affine
from ..targets.uniform import limits, to_floats, to_integers, weight_grid

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
        self._grids: dict[tuple[int, bool], tuple[Tensor, Tensor]] = {}
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
        self,
        weight_bits: int,
        given: Range | None,
        made: Range | None,
        reduce_range: bool = False,
    ) -> None:
        """Round weights to ``weight_bits``, the input to 8 bits of its range ``given`` and the
        output of its range ``made`` (None: not rounded). reduce_range: 7-bit weights for 8-bit
        activations."""
        weight, bias = self.layer.weight.detach(), self.layer.bias
        if weight_bits == 8 and given is not None:  # the exporter's own rule
            most = 64 if reduce_range else 127
            flat = weight.flatten(1).abs().amax(1).clamp_min(1e-12) / most
            scale = flat.reshape(-1, *[1] * (weight.dim() - 1))
            self._weight = torch.round(weight / scale).clamp_(-most, most).mul_(scale)
        else:
            self._weight, flat = self._on_grid(weight_bits, reduce_range and given is not None)
        self._bias = None if bias is None else bias.detach()
        self._input = None if given is None else affine_of(*given)
        self._output = None if made is None else affine_of(*made)
        if self._input is not None and self._bias is not None:
            step = flat * self._input.scale
            self._bias = torch.round(self._bias / step).mul_(step)

    def _on_grid(self, bits: int, reduce_range: bool) -> tuple[Tensor, Tensor]:
        """Weights on the grid that a packed file stores, and their scales (found once)."""
        if (bits, reduce_range) not in self._grids:
            weight = self.layer.weight.detach().numpy()
            grid = weight_grid(weight, bits, reduce_range=reduce_range)
            integers = to_integers(weight, grid, *limits(bits, True, reduce_range))
            rounded = torch.from_numpy(to_floats(integers, grid))
            self._grids[bits, reduce_range] = rounded, torch.from_numpy(grid.weight_scale)
        return self._grids[bits, reduce_range]


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
            conv[-1] = _fused(conv[-1], bn)
        else:
            network.set_submodule(conv_name, _fused(conv, bn))
        network.set_submodule(bn_name, nn.Identity())


def _fused(conv: nn.Module, bn: Any) -> nn.Module:
    """A layer of the same settings with the BatchNorm in its weights; ``conv`` stays as it is. (As
    ``fuse_conv_bn_eval``, without its deep copies, which took most of the time.)"""
    fused: Any = copy.copy(conv)
    fused._parameters = dict(conv._parameters)
    fused.weight, fused.bias = fuse_conv_bn_weights(
        fused.weight, fused.bias, bn.running_mean, bn.running_var, bn.eps, bn.weight, bn.bias
    )
    return fused  # type: ignore[no-any-return]


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
        network.set_submodule(name, layer)
    return found
