"""The search space of a network that was already cut: what is left of its groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from .space import SearchSpace
from .surgery import lost_entries
from .trace import ChannelGroup, Member


def narrowed(space: SearchSpace, kept: Mapping[str, Sequence[int]]) -> SearchSpace:
    """``space`` as it is after :func:`cut` with ``kept`` (group name -> channels that stay).

    Groups keep their names, channels and entries are numbered anew, and a group's only remaining
    option above its old ones is its new full count. Groups not named in ``kept`` stay whole.
    """
    lost = lost_entries(space.groups, kept)
    groups = tuple(_group(g, kept.get(g.name), lost) for g in space.groups)
    left = {g.name: g.channels for g in groups}
    layers = []
    for layer in space.layers:
        out, into = layer.surviving(left, space.full)
        parts = out if layer.is_depthwise else layer.conv_groups
        layers.append(replace(layer, out_channels=out, in_channels=into, conv_groups=parts))
    return replace(
        space,
        groups=groups,
        keeps={
            n: (left[n], *(k for k in keeps if k < left[n])) for n, keeps in space.keeps.items()
        },
        layers=tuple(layers),
    )


def _group(
    group: ChannelGroup,
    kept: Sequence[int] | None,
    lost: Mapping[tuple[str, str], Sequence[int]],
) -> ChannelGroup:
    stay = range(group.channels) if kept is None else sorted(kept)
    place = {channel: i for i, channel in enumerate(stay)}
    members = []
    for member in group.members:
        gone = set(lost.get((member.module, member.side), ()))
        last = max(member.entries, default=0)
        number, renumbered = 0, {}
        for entry in range(last + 1):
            if entry not in gone:
                renumbered[entry] = number
                number += 1
        pairs = [
            (renumbered[e], place[c])
            for e, c in zip(member.entries, member.channels, strict=True)
            if c in place
        ]
        members.append(
            Member(
                member.module,
                member.side,
                tuple(e for e, _ in pairs),
                tuple(c for _, c in pairs),
            )
        )
    return replace(group, channels=len(stay), members=tuple(members))
