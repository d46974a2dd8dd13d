"""Structured channel pruning over dependency groups: whole channels go, the network stays dense."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from ..spaces.surgery import spread
from ..spaces.trace import ChannelGroup


def choose_channels(
    groups: Iterable[ChannelGroup], keep: Mapping[str, int], importance: Mapping[str, torch.Tensor]
) -> dict[str, list[int]]:
    """The channels each group keeps: the most important ones, ascending.

    keep: group name -> how many. importance: group name -> (channels,), higher = keep. Groups cut
    in ``blocks`` equal parts keep the same places in each (their importance is added).
    """
    kept: dict[str, list[int]] = {}
    for group in groups:
        count = keep.get(group.name, group.channels)
        if count >= group.channels:
            continue
        score = importance[group.name].reshape(group.blocks, -1).sum(0)
        order = torch.argsort(score, descending=True, stable=True).tolist()
        kept[group.name] = spread(order, count, group.blocks, group.channels)
    return kept
