"""A convolution or linear layer of the network, and what may be done to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .factors import RankOption, Shape, factor_weights, full_ranks, methods_for


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer and what may be done to it.

    bits: (weight_bits, activation_bits) options, the unchanged one first.
    rank_options: ways to factorise it, most weights first; () = not factorised.
    zeros: (per cent, pattern) of zero weights offered, for a smaller packed file only.
    parts_out, parts_in: how many of its output (input) entries one channel of a group accounts for.
    """

    name: str
    kind: str  # "conv" or "linear"
    out_channels: int
    in_channels: int
    kernel: int  # kernel area, 1 for linear and 1x1
    conv_groups: int
    bits: tuple[tuple[int, int], ...]
    rank_options: tuple[RankOption, ...]
    parts_out: Mapping[str, int]
    parts_in: Mapping[str, int]
    kernel_size: tuple[int, ...] = (1, 1)
    zeros: tuple[tuple[int, str], ...] = ()

    def surviving(self, groups: Mapping[str, int], full: Mapping[str, int]) -> tuple[int, int]:
        """(out, in) channels left when ``groups`` are kept (``full``: their original counts)."""
        out = self.out_channels - sum(
            (full[g] - groups.get(g, full[g])) * n for g, n in self.parts_out.items()
        )
        into = self.in_channels - sum(
            (full[g] - groups.get(g, full[g])) * n for g, n in self.parts_in.items()
        )
        return out, out if self.is_depthwise else into

    @property
    def is_depthwise(self) -> bool:
        return 1 < self.conv_groups == self.in_channels == self.out_channels

    @property
    def methods(self) -> tuple[str, ...]:
        """The factorisations that fit it, offered or not."""
        return methods_for(self.kind, self.kernel_size, self.conv_groups)

    def shape(self, out: int, into: int) -> Shape:
        """Its shape with so many channels left."""
        return Shape(out, into, (self.kernel_size[0], self.kernel_size[-1]))

    def saves(self, method: str, ranks: tuple[int, ...], out: int, into: int) -> bool:
        """Whether the factors hold fewer weights than the layer they replace."""
        shape = self.shape(out, into)
        return factor_weights(method, ranks, shape) < shape.weights

    def most_ranks(self, method: str, out: int, into: int) -> tuple[int, ...]:
        """The full ranks: what a factorisation without loss would need."""
        return full_ranks(method, self.shape(out, into))
