"""Attention heads as channel groups: whole heads are cut, the width of the network stays.

Found by structure, not by class: a module that knows its number of heads, the linear layers that
make queries, keys and values, and the linear layer that reads the heads' results. This covers
:class:`SelfAttention`, timm's blocks (one ``qkv`` layer) and BERT's (three layers, the reader in
another module). A candidate is offered only if cutting heads gives the numbers that silencing them
gives; so a layout that is not understood is left alone instead of being cut wrongly.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .surgery import cut, head_count
from .trace import ChannelGroup, Member

LAYOUTS = ("queries, keys, values", "head by head")


@dataclass(frozen=True)
class _Attention:
    """module: what knows its heads; makers: one fused layer or three; reader: reads the heads."""

    module: str
    heads: int
    makers: tuple[str, ...]
    reader: str
    width: int  # of one head


def head_groups(
    network: nn.Module, example: Tensor
) -> tuple[tuple[ChannelGroup, ...], dict[str, str]]:
    """Groups whose channels are attention heads, and the attentions that cannot be cut, with why.

    network: eval mode, rewritten (see attention.py), not modified; example: (1, ...) float32. The
    second value is keyed by the layer that the group would have been named after.
    """
    groups: list[ChannelGroup] = []
    refused: dict[str, str] = {}
    for found in _attentions(network, _calls(network, example)):
        for layout in LAYOUTS[: 2 if len(found.makers) == 1 else 1]:
            group = _group(found, layout)
            if _cuts_like_silence(network, example, group, found):
                groups.append(group)
                break
        else:
            refused[found.makers[0]] = "cutting its heads does not give the numbers it should"
    return tuple(groups), refused


def without_heads(
    groups: Iterable[ChannelGroup], network: nn.Module, example: Tensor
) -> list[ChannelGroup]:
    """The traced ``groups`` that touch no attention's inside: those widths follow the heads."""
    inside: set[tuple[str, str]] = set()
    for found in _attentions(network, _calls(network, example)):
        inside |= {(maker, "out") for maker in found.makers} | {(found.reader, "in")}
    return [g for g in groups if not inside & {(m.module, m.side) for m in g.members}]


def _calls(network: nn.Module, example: Tensor) -> list[str]:
    """Names of the linear layers in the order in which they are called."""
    order: list[str] = []
    hooks = [
        module.register_forward_hook(lambda *_, name=name: order.append(name))  # type: ignore[misc]
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear)
    ]
    with torch.no_grad():
        network(example)
    for hook in hooks:
        hook.remove()
    return order


def _attentions(network: nn.Module, calls: Sequence[str]) -> list[_Attention]:
    linear = {n: m for n, m in network.named_modules() if isinstance(m, nn.Linear)}
    found: dict[str, _Attention] = {}
    for name, module in network.named_modules():
        heads = head_count(module)
        below = [c for c in dict.fromkeys(calls) if c.startswith(f"{name}." if name else "")]
        if heads is None or heads < 2 or calls.count(below[0] if below else "") != 1:
            continue
        for place, first in enumerate(below):
            start = calls.index(first)
            layer, then = linear[first], calls[start + 1 :]
            if layer.out_features % (3 * heads) == 0 and then[:1]:
                wide = layer.out_features // 3
                if linear[then[0]].in_features == wide:
                    found[first] = _Attention(name, heads, (first,), then[0], wide // heads)
                    break
            three = tuple(below[place : place + 3])
            wide = layer.out_features
            same = len(three) == 3 and all(
                linear[t].out_features == wide and linear[t].in_features == layer.in_features
                for t in three
            )
            if same and wide % heads == 0 and then[2:3] and linear[then[2]].in_features == wide:
                found[first] = _Attention(name, heads, three, then[2], wide // heads)
                break
    return list(found.values())


def _group(found: _Attention, layout: str) -> ChannelGroup:
    heads, width = found.heads, found.width
    each = range(heads * width)
    if len(found.makers) == 3:
        made = [(e, e // width) for e in each]
    elif layout == LAYOUTS[0]:
        made = [(part * len(each) + e, e // width) for part in range(3) for e in each]
    else:
        made = [(e, e // (3 * width)) for e in range(3 * len(each))]
    members = [
        Member(maker, "out", tuple(e for e, _ in made), tuple(h for _, h in made))
        for maker in found.makers
    ]
    members.append(Member(found.reader, "in", tuple(each), tuple(e // width for e in each)))
    members.append(Member(found.module, "heads", tuple(range(heads)), tuple(range(heads))))
    return ChannelGroup(found.makers[0], heads, tuple(members), unit="heads")


def _cuts_like_silence(
    network: nn.Module, example: Tensor, group: ChannelGroup, found: _Attention
) -> bool:
    """Whether cutting every second head equals zeroing what reads it."""
    kept: Mapping[str, Sequence[int]] = {group.name: range(0, group.channels, 2)}
    small, silent = copy.deepcopy(network), copy.deepcopy(network)
    reader = silent.get_submodule(found.reader)
    columns = [e for e in range(found.heads * found.width) if e // found.width % 2]
    with torch.no_grad():
        reader.weight[:, columns] = 0  # type: ignore[index, operator]
        try:
            cut(small, [group], kept)
            inputs = torch.randn_like(example)
            try:
                expected = silent(inputs)
            except (RuntimeError, IndexError):  # inputs that are not free numbers, e.g. tokens
                inputs = example
                expected = silent(inputs)
            made = small(inputs)
        except Exception:  # whatever the network's own code makes of the cut
            return False
    if made.shape != expected.shape:
        return False
    return bool((made - expected).abs().max() <= 1e-4 * expected.abs().max().clamp_min(1e-6))
