"""Cutting channels out of a network in place, given which channels of each group stay."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import torch_pruning
from torch import nn
from torch_pruning.pruner.function import PrunerBox

from .trace import ChannelGroup


def lost_entries(
    groups: Iterable[ChannelGroup], kept: Mapping[str, Sequence[int]]
) -> dict[tuple[str, str], list[int]]:
    """Indices that go, for each ``(module, side)`` that loses some; side is ``"out"`` or ``"in"``.

    kept: group name -> channels that stay; groups not named stay whole.
    """
    lost: dict[tuple[str, str], set[int]] = defaultdict(set)
    for group in groups:
        stay = set(kept.get(group.name, range(group.channels)))
        if len(stay) == group.channels:
            continue
        for member in group.members:
            lost[member.module, member.side].update(
                entry
                for entry, channel in zip(member.entries, member.channels, strict=True)
                if channel not in stay
            )
    return {key: sorted(gone) for key, gone in lost.items() if gone}


def cut(
    network: nn.Module, groups: Iterable[ChannelGroup], kept: Mapping[str, Sequence[int]]
) -> dict[str, list[int]]:
    """Cut ``network`` in place; returns, per module, the output indices it lost.

    The slicing of each layer type is Torch-Pruning's.
    """
    lost = lost_entries(groups, kept)
    for (name, side), gone in lost.items():
        module = network.get_submodule(name)
        if side == "heads":
            _tell_heads(module, len(gone))
            continue
        pruner = PrunerBox[torch_pruning.ops.module2type(module)]
        if side == "out":
            pruner.prune_out_channels(module, gone)
        else:
            pruner.prune_in_channels(module, gone)
    return {name: gone for (name, side), gone in lost.items() if side == "out"}


HEAD_COUNTS = ("num_heads", "n_heads", "n_head", "nhead", "heads", "num_attention_heads")
"""Attributes that hold an attention's number of heads."""
HEAD_WIDTHS = ("attn_dim", "inner_dim", "all_head_size")
"""Attributes that hold the width of all its heads together."""


def head_count(module: nn.Module) -> int | None:
    """The number of attention heads that a module says it has."""
    for attribute in HEAD_COUNTS:
        value = getattr(module, attribute, None)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    return None


def _tell_heads(module: nn.Module, lost: int) -> None:
    """Correct the numbers by which an attention reshapes what its layers give."""
    before = head_count(module)
    if before is None or lost >= before:
        raise ValueError(f"{lost} of {before} heads cannot be cut")
    for attribute in HEAD_COUNTS:
        if getattr(module, attribute, None) == before:
            setattr(module, attribute, before - lost)
    for attribute in HEAD_WIDTHS:
        width = getattr(module, attribute, None)
        if isinstance(width, int) and width % before == 0:
            setattr(module, attribute, width // before * (before - lost))


def spread(order: Sequence[int], keep: int, blocks: int, channels: int) -> list[int]:
    """The ``keep`` most important channels, the same places in each of ``blocks`` equal parts.

    order: places within one part, most important first (``channels // blocks`` of them).
    """
    part = channels // blocks
    places = sorted(order[: keep // blocks])
    return [b * part + place for b in range(blocks) for place in places]
