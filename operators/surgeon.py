"""The order in which channels go when what reads them is refitted after every cut.

Structured Optimal Brain Surgeon: cutting the inputs S of a reader W (out, d) whose patches have
second moments C, and refitting the rest of W by least squares, leaves the error
tr(W_S ([C^-1]_SS)^-1 W_S^T). Channels go one after another, the cheapest first, with W and C^-1
brought up to date after each (Hassibi and Stork, "Optimal Brain Surgeon", NeurIPS 1992; whole
channels at once: Kurtic et al., "ZipLM", NeurIPS 2023, section 3.1). Unlike importances that look
at each channel alone, it knows which channels the others can stand in for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..spaces.trace import ROOTS, ChannelGroup
from .hooked import run_hooked
from .sampling import Places, is_fitted, is_sampled

EXAMPLES = 256
"""Inputs that are looked at."""
PLACES = 32
"""Outputs an image and layer whose patches are looked at."""
RIDGE = 1e-3
"""Added to the moments' diagonal, as a share of its mean."""
MOST_FLOPS = 1e10
"""Multiply-accumulates that one group's order may take (seconds)."""
STEPS = 64
"""A group goes in at most so many steps; wider ones lose several channels at each."""


def patch_moments(network: nn.Module, inputs: Tensor) -> dict[str, Tensor]:
    """Second moments about the mean, (d, d) float32, of the patches that layers read.

    inputs: (n, ...) float32. d = in * kh * kw, channels slowest. The mean is left out because a
    bias or BatchNorm takes it up. Of very wide layers (see sampling.py) only the root mean squares
    of the channels, (in,); depthwise and grouped layers are not looked at.
    """
    found: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(0)

    def note(module: nn.Module, args: tuple[Tensor, ...], out: Tensor, name: str) -> None:
        if name in found:
            return
        if not is_fitted(module):
            x = args[0] if isinstance(module, nn.Linear) else args[0].movedim(1, -1)
            found[name] = x.square().mean(list(range(x.dim() - 1))).sqrt()
            return
        second: Any = 0.0
        mean: Any = 0.0
        count, shift = 0, None
        for _, patches in Places.draw(out, PLACES, generator).patches(module, args[0]):
            shift = patches.mean(0) if shift is None else shift  # nearly the mean: nothing cancels
            patches = patches - shift
            second = second + (patches.T @ patches).double()
            mean = mean + patches.sum(0).double()
            count += len(patches)
        mean = mean / count
        found[name] = (second / count - torch.outer(mean, mean)).float()

    hooks = [
        m.register_forward_hook(lambda m, a, o, name=n: note(m, a, o, name))
        for n, m in network.named_modules()
        if is_sampled(m)
    ]
    run_hooked(network, inputs[:EXAMPLES], hooks)
    return found


def removal_order(
    network: nn.Module, group: ChannelGroup, moments: Mapping[str, Tensor]
) -> Tensor | None:
    """When each channel of ``group`` goes, (channels,) float32: 0 = first; higher = keep longer.

    moments: from :func:`patch_moments`. Several readers' errors are added, each divided by the
    size of its outputs. None where a reader was not looked at, or readers are so many and wide that
    it would take more than :data:`MOST_FLOPS`.
    """
    readers: list[_Reader] = []
    flops = 0.0
    for member in group.members:
        layer: Any = network.get_submodule(member.module)
        if member.side != "in" or not isinstance(layer, ROOTS):
            continue
        second = moments.get(member.module)
        if second is None or second.dim() == 1:
            return None
        flops += len(second) ** 2 * (len(second) + 2.0 * len(member.entries))
        if flops > MOST_FLOPS:
            return None
        taps = second.shape[0] // layer.weight.shape[1]
        places: list[list[int]] = [[] for _ in range(group.channels)]
        for channel, entry in zip(member.channels, member.entries, strict=True):
            places[channel] += range(entry * taps, (entry + 1) * taps)
        readers.append(_Reader(layer.weight.detach().flatten(1), second, places))
    if not readers:
        return None
    when = torch.zeros(group.channels)
    left, each = list(range(group.channels)), -(-group.channels // STEPS)
    while left:
        errors = torch.tensor(
            [sum(reader.error(channel) for reader in readers) for channel in left]
        )
        going = [left[place] for place in errors.argsort(stable=True)[:each].tolist()]
        for channel in going:
            when[channel] = group.channels - len(left)
            left.remove(channel)
        for reader in readers:
            reader.cut(going)
    return when


def channel_rms(moments: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """What :func:`patch_moments` found, as one number a channel: about the mean, or of a very wide
    layer about zero."""
    found = {}
    for name, second in moments.items():
        layer: Any = network.get_submodule(name)
        taps = layer.weight[0, 0].numel()
        of_taps = second.diagonal().reshape(-1, taps) if second.dim() == 2 else second[:, None] ** 2
        found[name] = of_taps.mean(1).clamp_min(0).sqrt()
    return found


class _Reader:
    """One layer that reads the group, as more and more of its inputs are gone.

    weight: (out, d), brought up to date in place. places: its columns that read each channel.
    """

    def __init__(self, weight: Tensor, second: Tensor, places: list[list[int]]) -> None:
        self._weight, moments = weight.double(), second.double()
        self._places = places
        lift = RIDGE * moments.diagonal().mean().clamp_min(1e-12)
        moments = moments + lift * torch.eye(len(moments)).double()
        self._inverse = torch.cholesky_inverse(torch.linalg.cholesky(moments))
        self._size = float((self._weight @ moments * self._weight).sum()) + 1e-30

    def error(self, channel: int) -> float:
        """What is lost when ``channel`` goes too, as a share of the layer's outputs."""
        columns = self._places[channel]
        if not columns:
            return 0.0
        weight = self._weight[:, columns]
        solved = torch.linalg.solve(self._inverse[columns][:, columns], weight.T)
        return float((weight.T * solved).sum()) / self._size

    def cut(self, channels: list[int]) -> None:
        columns = [column for channel in channels for column in self._places[channel]]
        if not columns:
            return
        rows = self._inverse[columns]
        gain = torch.linalg.solve(rows[:, columns], rows)  # (columns, d)
        self._weight = self._weight - self._weight[:, columns] @ gain
        self._inverse = self._inverse - rows.T @ gain
