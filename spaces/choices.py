"""What a target can use: the grid from which a search space takes its options."""

from __future__ import annotations

from dataclasses import dataclass
from math import lcm


@dataclass(frozen=True)
class Choices:
    """The options worth offering on one target.

    channel_step: kept channels are multiples of this (smaller only where a group would otherwise
        have fewer than four choices).
    wide_step, wide_from: groups of ``wide_from`` channels or more use multiples of ``wide_step``.
    smallest_keep: the smallest share of a group's channels that is offered.
    most_keeps: at most this many kept-channel options a group.
    bits: (weight_bits, activation_bits) pairs that the target stores and runs, float32 first.
    rank_ratios, rank_energies: ranks offered, as a ratio (see factors.py) or as the share of the
        squared weights that they keep. rank_methods: how layers may be factorised, each by those
        of them that fit it; None = svd for linear and 1x1, tucker2 for k x k.
    more_bits: further pairs, offered only where a job names them (``bits: [4, 8, 32]``, or
        ``w4a32``); of one weight width the usual one first.
    without: (weight bits, why): what the target could run elsewhere and does not offer here.
    zeros: (per cent, pattern) of zero weights, fewest first; they bring no speed.
    """

    channel_step: int = 4
    wide_step: int = 16
    wide_from: int = 64
    smallest_keep: float = 0.25
    most_keeps: int = 8
    bits: tuple[tuple[int, int], ...] = ((32, 32), (8, 8))
    more_bits: tuple[tuple[int, int], ...] = ()
    rank_ratios: tuple[float, ...] = (0.75, 0.5, 0.25)
    rank_energies: tuple[float, ...] = ()
    rank_methods: tuple[str, ...] | None = None
    without: tuple[tuple[int, str], ...] = ()
    zeros: tuple[tuple[int, str], ...] = ()

    def kept(self, channels: int, multiple_of: int = 1) -> tuple[int, ...]:
        """Kept-channel options for a group, most first, always starting with ``channels``.

        >>> Choices().kept(16)
        (16, 12, 8, 4)
        >>> Choices().kept(64)
        (64, 48, 32, 16)
        """
        smallest = max(1, round(channels * self.smallest_keep))
        step = self.wide_step if channels >= self.wide_from else self.channel_step
        options: list[int] = []
        while True:
            unit = lcm(step, multiple_of)
            options = [k for k in range(unit, channels, unit) if k >= smallest]
            if len(options) >= 3 or step == 1:
                break
            step = max(1, step // 2)
        options.append(channels)
        if len(options) > self.most_keeps:
            picks = [
                round(i * (len(options) - 1) / (self.most_keeps - 1))
                for i in range(self.most_keeps)
            ]
            options = [options[i] for i in sorted(set(picks))]
        return tuple(sorted(set(options), reverse=True))
