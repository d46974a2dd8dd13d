"""What each way of factorising a layer takes and weighs: ranks, limits, weights, energy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from ..errors import InputError
from .plan import METHODS

SHARE_OF_RANK = ("svd", "tucker2")
"""Methods whose ratio is a share of the full ranks; the others' is a share of the weights, because
at their full rank they hold more weights than the layer itself."""


@dataclass(frozen=True)
class Shape:
    """A layer's surviving channels and its kernel's sides; linear and 1x1: (1, 1)."""

    out: int
    into: int
    kernel: tuple[int, int] = (1, 1)

    @property
    def weights(self) -> int:
        """Weights of the layer itself."""
        return self.out * self.into * prod(self.kernel)


@dataclass(frozen=True)
class RankOption:
    """One way to factorise a layer that the space offers.

    shares: each rank as a share of the layer's full rank, which :func:`full_ranks` gives, so that
    the option keeps its meaning when channels are cut. label: for people, e.g. ``"tucker2 0.5"``.
    """

    method: str
    shares: tuple[float, ...]
    label: str

    def ranks(self, shape: Shape, step: int = 1) -> tuple[int, ...]:
        """Whole ranks for a shape, multiples of ``step`` where the rank is large enough."""
        most = full_ranks(self.method, shape)
        return tuple(
            on_grid(share * m, m, step if self.method != "depthwise" else 1)
            for share, m in zip(self.shares, most, strict=True)
        )


def on_grid(rank: float, most: int, step: int) -> int:
    """The nearest multiple of ``step`` (of 1 where ``most`` is small) from it to ``most``."""
    step = step if most >= 2 * step else 1
    return max(step, min(most, step * round(rank / step)))


def rank_options(
    methods: Sequence[str],
    ratios: Sequence[float],
    energies: Sequence[float],
    shape: Shape,
    weight: Tensor,
    step: int,
) -> tuple[RankOption, ...]:
    """The options of one layer, most weights first; those that would save none are left out.

    methods: those that fit the layer. ratios: see :data:`SHARE_OF_RANK`. energies: shares of the
    squared weights to keep, resolved to ranks here, on the uncut layer. Raises InputError where the
    energies are asked of a method that has none.
    """
    found: dict[tuple[str, tuple[int, ...]], RankOption] = {}
    for method in methods:
        most = full_ranks(method, shape)
        wanted: list[tuple[tuple[float, ...], str]] = [
            (ranks_at(method, ratio, shape), f"{method} {ratio:g}") for ratio in ratios
        ]
        for energy in energies:
            kept = ranks_keeping(method, energy, weight)
            if kept is None:
                raise InputError(
                    "space.rank.energy",
                    f"retained energy is not defined for {method!r}",
                    "give `ratios` for it",
                )
            wanted.append((tuple(map(float, kept)), f"{method} {100 * energy:g}% energy"))
        for ranks, label in wanted:
            option = RankOption(
                method, tuple(min(1.0, r / m) for r, m in zip(ranks, most, strict=True)), label
            )
            whole = option.ranks(shape, step)
            fewest = 1 if method == "depthwise" else 2
            if min(whole) >= fewest and factor_weights(method, whole, shape) < shape.weights:
                found.setdefault((method, whole), option)
    order = sorted(found, key=lambda key: -factor_weights(key[0], key[1], shape))
    return tuple(found[key] for key in order)


def methods_for(kind: str, kernel: tuple[int, ...], conv_groups: int) -> tuple[str, ...]:
    """The methods that fit a layer, the default one first. kind: ``"linear"`` or ``"conv"``.

    Grouped convolutions take none; neither do convolutions that are not two-dimensional.
    """
    if conv_groups != 1 or len(kernel) != 2:
        return ()
    if kind == "linear" or prod(kernel) == 1:
        return ("svd",)
    return ("tucker2", "spatial_svd", "cp", "depthwise")


def check_factors(
    method: str, ranks: tuple[int, ...], fitting: tuple[str, ...], shape: Shape, where: str
) -> None:
    """Refuse a method that is not among the ``fitting`` ones, and ranks above the full ones.

    shape: of the uncut layer. Raises InputError, which starts with ``where``.
    """
    if method not in fitting:
        remedy = "use " + " or ".join(fitting) if fitting else "leave it whole"
        problem = f"it cannot take {method!r}"
        if not fitting:
            problem += " (a grouped or one-dimensional convolution is not factorised)"
        raise InputError(where, problem, remedy)
    most = full_ranks(method, shape)
    if any(r > m for r, m in zip(ranks, most, strict=True)):
        given, limit = ("x".join(map(str, r)) for r in (ranks, most))
        raise InputError(where, f"{method} rank {given} exceeds its {limit}", "lower it")


def full_ranks(method: str, shape: Shape) -> tuple[int, ...]:
    """The largest ranks that mean anything: at them the factors lose nothing."""
    high, wide = shape.kernel
    taps = high * wide
    return {
        "svd": (min(shape.out, shape.into),),
        "spatial_svd": (min(shape.out * wide, shape.into * high),),
        "tucker2": (shape.out, shape.into),
        "cp": (shape.weights // max(shape.out, shape.into, taps),),
        "depthwise": (min(shape.out, taps),),
    }[method]


def factor_weights(method: str, ranks: tuple[int, ...], shape: Shape) -> int:
    """Weights of the factors together (a bias is not counted)."""
    high, wide = shape.kernel
    taps, r = high * wide, ranks[0]
    if method == "tucker2":
        r_in = ranks[1]
        return shape.into * r_in + r_in * r * taps + r * shape.out
    one = {
        "svd": shape.into + shape.out,
        "spatial_svd": shape.into * high + shape.out * wide,
        "cp": shape.into + taps + shape.out,
        "depthwise": shape.into * (taps + shape.out),
    }[method]
    return r * one


def ranks_at(method: str, ratio: float, shape: Shape) -> tuple[float, ...]:
    """Ranks (not yet whole numbers) of a ratio: see :data:`SHARE_OF_RANK`."""
    if method in SHARE_OF_RANK:
        return tuple(ratio * most for most in full_ranks(method, shape))
    one = factor_weights(method, (1,) * METHODS[method], shape)
    return (ratio * shape.weights / one,)


def ranks_keeping(method: str, energy: float, weight: Tensor) -> tuple[int, ...] | None:
    """The smallest ranks that keep ``energy`` of the squared weights; None: not defined for it.

    weight: (out, in) or (out, in, kh, kw). svd, spatial_svd, depthwise: of the sum of squared
    singular values (depthwise: of all channels together); tucker2: in each of the two channel
    unfoldings, so that the loss is at most twice 1 - energy (De Lathauwer et al., 2000, section 3).
    CP terms are not orthogonal, so they have no energies to add up.
    """
    kernel = weight.detach().double()
    kernel = kernel[:, :, None, None] if kernel.dim() == 2 else kernel
    out, into, high, wide = kernel.shape
    if method == "svd":
        return (_enough(torch.linalg.svdvals(kernel.flatten(1)), energy),)
    if method == "spatial_svd":
        matrix = kernel.permute(0, 3, 1, 2).reshape(out * wide, into * high)
        return (_enough(torch.linalg.svdvals(matrix), energy),)
    if method == "tucker2":
        sides = (kernel.flatten(1), kernel.transpose(0, 1).flatten(1))
        r_out, r_in = (_enough(torch.linalg.svdvals(side), energy) for side in sides)
        return r_out, r_in
    if method == "depthwise":
        values = torch.linalg.svdvals(kernel.permute(1, 0, 2, 3).reshape(into, out, high * wide))
        return (_enough(values.square().sum(0).sqrt(), energy),)
    return None


def _enough(values: Tensor, energy: float) -> int:
    """How many of the descending ``values`` hold ``energy`` of their squares' sum."""
    held = values.square().cumsum(0)
    return int((held < energy * held[-1] * (1 - 1e-12)).sum()) + 1
