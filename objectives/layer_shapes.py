"""What each layer of a plan looks like: channels, weights, positions; without a network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from ..spaces.plan import CompressionPlan, LayerChoice
from ..spaces.shortcut import ShortcutConv, of_siblings
from ..spaces.space import SearchSpace
from .counts import COUNTED


@dataclass(frozen=True)
class Factor:
    """One convolution or linear layer of a plan.

    suffix: "" for a layer as a whole, ".0", ".1" ... for the parts of a factorised one.
    shape: of its weight, output channels first. positions: outputs that each of its weights is
    used for, in one example. bias: whether the torch layer has one. groups: of a convolution.
    """

    suffix: str
    shape: tuple[int, ...]
    positions: int
    bias: bool
    groups: int = 1

    @cached_property
    def params(self) -> int:
        return prod(self.shape) + (self.shape[0] if self.bias else 0)

    @cached_property
    def macs(self) -> int:
        return prod(self.shape) * self.positions


@dataclass(frozen=True)
class _Module:
    """A module with parameters, as traced. positions: (input, output) positions, over its calls."""

    name: str
    out: int
    into: int
    kernel: tuple[int, ...]  # () for linear
    conv_groups: int
    stride: tuple[int, ...]
    bias: bool
    positions: tuple[int, int, int]  # at its input, at its output, and in between (k x 1 first)
    parts_out: Mapping[str, int]
    parts_in: Mapping[str, int]
    shortcut: bool


@dataclass(frozen=True)
class LayerShapes:
    """Every layer of one plan.

    layers: module name -> its factors. bits: module name -> (weight, activation) bits.
    kept: any other module with parameters -> (channels left, of). other_params: their parameters.
    """

    layers: dict[str, tuple[Factor, ...]]
    bits: dict[str, tuple[int, int]]
    kept: dict[str, tuple[int, int]]
    other_params: int

    @property
    def params(self) -> int:
        return self.other_params + sum(f.params for fs in self.layers.values() for f in fs)

    @property
    def macs(self) -> int:
        return sum(f.macs for fs in self.layers.values() for f in fs)


class ShapeTable:
    """Shapes of any plan's layers, from one run of the uncompressed network.

    space, network: as the compressor has them (shortcuts rewritten); example: (1, ...) float32.
    """

    def __init__(self, space: SearchSpace, network: nn.Module, example: Tensor) -> None:
        self.space = space
        positions = _positions(network, example)
        self._modules: dict[str, _Module] = {}
        self._others: dict[str, tuple[int, Mapping[str, int], int]] = {}
        out_parts, in_parts = _parts(space, "out"), _parts(space, "in")
        self._fixed_params = 0
        seen: set[int] = set()
        for name, module in network.named_modules():
            own = [p for p in module.parameters(recurse=False) if id(p) not in seen]
            seen.update(id(p) for p in own)
            if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear):
                self._modules[name] = _module(
                    name,
                    module,
                    positions.get(name, (0, 0, 0)),
                    out_parts.get(name, {}),
                    in_parts.get(name, {}),
                )
            elif name in out_parts:
                held = [t for t in (*own, *module.buffers(recurse=False)) if t.dim()]
                of = held[0].shape[0] if held else 1
                count = sum(p.numel() for p in own)
                self._others[name] = (count, out_parts[name], of)
            else:
                self._fixed_params += sum(p.numel() for p in own)
        self._memo: dict[tuple[object, ...], tuple[Factor, ...]] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """Convolutions and linear layers, in the network's order."""
        return tuple(self._modules)

    def shapes(self, plan: CompressionPlan) -> LayerShapes:
        """The layers of a canonical plan."""
        lost = {g: n - plan.groups.get(g, n) for g, n in self.space.full.items()}
        layers, kept, bits = {}, {}, {}
        whole = LayerChoice()
        chosen = {n: (c.weight_bits, c.activation_bits) for n, c in plan.layers.items()}
        for name, module in self._modules.items():
            out = module.out - sum(lost[g] * n for g, n in module.parts_out.items())
            into = module.into - sum(lost[g] * n for g, n in module.parts_in.items())
            choice = plan.layers.get(name, whole)
            key = (name, out, into, choice.method, choice.ranks)
            if key not in self._memo:
                self._memo[key] = _factors(module, out, into, choice)
            layers[name] = self._memo[key]
            kept[name] = (out, module.out)
            bits[name] = (
                of_siblings(name, chosen, (32, 32))
                if module.shortcut
                else chosen.get(name, (32, 32))
            )
        params = self._fixed_params
        for name, (count, parts, of) in self._others.items():
            left = of - sum(lost[g] * n for g, n in parts.items())
            kept[name] = (left, of)
            params += count * left // of
        return LayerShapes(layers, bits, kept, params)


def _parts(space: SearchSpace, side: str) -> dict[str, dict[str, int]]:
    """Module -> group -> entries of that side that one channel of the group accounts for."""
    found: dict[str, dict[str, int]] = {}
    for group in space.groups:
        for member in group.members:
            if member.side == side:
                found.setdefault(member.module, {})[group.name] = (
                    len(member.entries) // group.channels
                )
    return found


def _module(
    name: str,
    module: Any,
    positions: tuple[int, int, int],
    parts_out: Mapping[str, int],
    parts_in: Mapping[str, int],
) -> _Module:
    linear = isinstance(module, nn.Linear)
    return _Module(
        name=name,
        out=module.out_features if linear else module.out_channels,
        into=module.in_features if linear else module.in_channels,
        kernel=() if linear else tuple(module.kernel_size),
        conv_groups=1 if linear else module.groups,
        stride=() if linear else tuple(module.stride),
        bias=module.bias is not None,
        positions=positions,
        parts_out=parts_out,
        parts_in=parts_in,
        shortcut=isinstance(module, ShortcutConv),
    )


def _positions(network: nn.Module, example: Tensor) -> dict[str, tuple[int, int, int]]:
    """Positions at the input and the output of each layer, and of a k x 1 kernel's output."""
    found: dict[str, tuple[int, int, int]] = {}

    def watch(name: str, module: Any) -> None:
        def note(_: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
            given = args[0]
            if isinstance(module, nn.Linear):
                at = (given[0].numel() // given.shape[-1],) * 3
            else:
                between = prod(out.shape[2:3]) * prod(given.shape[3:])
                at = (prod(given.shape[2:]), prod(out.shape[2:]), between)
            before = found.get(name, (0, 0, 0))
            found[name] = (before[0] + at[0], before[1] + at[1], before[2] + at[2])

        hooks.append(module.register_forward_hook(note))

    hooks: list[Any] = []
    for name, module in network.named_modules():
        if isinstance(module, COUNTED):
            watch(name, module)
    with torch.inference_mode():
        network(example)
    for hook in hooks:
        hook.remove()
    return found


def _factors(module: _Module, out: int, into: int, choice: LayerChoice) -> tuple[Factor, ...]:
    """The layers that stand for one: shapes as :mod:`paretune.operators.factorise` makes them."""
    at_in, at_out, between = module.positions
    kernel, ones = module.kernel, (1,) * len(module.kernel)
    if choice.method is None:
        depthwise = module.conv_groups > 1 and module.conv_groups == module.out == module.into
        wide = 1 if depthwise else into // module.conv_groups
        groups = out if depthwise else module.conv_groups
        return (Factor("", (out, wide, *kernel), at_out, module.bias, groups),)
    if choice.method == "svd":
        (r,) = choice.ranks
        shapes = [((r, into, *ones), at_out), ((out, r, *ones), at_out)]
    elif choice.method == "tucker2":
        r_out, r_in = choice.ranks
        shapes = [
            ((r_in, into, *ones), at_in),
            ((r_out, r_in, *kernel), at_out),
            ((out, r_out, *ones), at_out),
        ]
    elif choice.method == "spatial_svd":
        (r,) = choice.ranks
        shapes = [((r, into, kernel[0], 1), between), ((out, r, 1, kernel[1]), at_out)]
    elif choice.method == "cp":
        (r,) = choice.ranks
        shapes = [
            ((r, into, 1, 1), at_in),
            ((r, 1, kernel[0], 1), between),
            ((r, 1, 1, kernel[1]), at_out),
            ((out, r, 1, 1), at_out),
        ]
    else:
        (r,) = choice.ranks
        shapes = [((into * r, 1, *kernel), at_out), ((out, into * r, *ones), at_out)]
    last = len(shapes) - 1
    split = {("depthwise", 0): into, ("cp", 1): shapes[0][0][0], ("cp", 2): shapes[0][0][0]}
    return tuple(
        Factor(f".{i}", shape, at, module.bias and i == last, split.get((choice.method, i), 1))
        for i, (shape, at) in enumerate(shapes)
    )
