"""The order in which channels go when what reads them is refitted after every cut.

Structured Optimal Brain Surgeon: cutting the inputs S of a reader W (out, d) whose patches have
second moments C, and refitting the rest of W by least squares, leaves the error
tr(W_S ([C^-1]_SS)^-1 W_S^T). Channels go one after another, the cheapest first, with W and C^-1
brought up to date after each (Hassibi and Stork, "Optimal Brain Surgeon", NeurIPS 1992; whole
channels at once: Kurtic et al., "ZipLM", NeurIPS 2023, section 3.1). Unlike importances that look
at each channel alone, it knows which channels the others can stand in for.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..spaces.trace import ROOTS, ChannelGroup
from .hooked import run_hooked
from .sampling import Places, by_token, is_fitted, is_sampled

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
MOST_BYTES = 256 << 20
"""Of inverses that are remembered, for the groups that share a reader behind a concatenation."""


@dataclass(frozen=True)
class _Whole:
    """Of a layer, before anything is cut. inverse: (d, d) float64, of its moments with the ridge;
    size: the mean square of its outputs."""

    inverse: Tensor
    size: float

    @classmethod
    def of(cls, weight: Tensor, second: Tensor) -> _Whole:
        """weight: (out, d); second: (d, d) moments of the patches."""
        weight, moments = weight.double(), second.double()
        lift = RIDGE * moments.diagonal().mean().clamp_min(1e-12)
        moments = moments + lift * torch.eye(len(moments)).double()
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(moments))
        return cls(inverse, float((weight @ moments * weight).sum()) + 1e-30)


class PatchMoments(dict[str, Tensor]):
    """What :func:`patch_moments` found; a layer that several groups feed is inverted once."""

    def __init__(self) -> None:
        super().__init__()
        self._whole: OrderedDict[str, _Whole] = OrderedDict()

    def whole(self, name: str, weight: Tensor, *, shared: bool) -> _Whole:
        """The layer ``name`` of ``weight`` (out, d); remembered where it is ``shared``."""
        if name not in self._whole:
            made = _Whole.of(weight, self[name])
            if not shared:
                return made
            self._whole[name] = made
        self._whole.move_to_end(name)
        while len(self._whole) > 1 and self._bytes() > MOST_BYTES:
            self._whole.popitem(last=False)
        return self._whole[name]

    def _bytes(self) -> int:
        return sum(whole.inverse.nbytes for whole in self._whole.values())


def patch_moments(network: nn.Module, inputs: Tensor) -> PatchMoments:
    """Second moments about the mean, (d, d) float32, of the patches that layers read.

    inputs: (n, ...) float32. d = in * kh * kw, channels slowest. The mean is left out because a
    bias or BatchNorm takes it up. Of very wide layers (see sampling.py) only the root mean squares
    of the channels, (in,); depthwise and grouped layers are not looked at.
    """
    found = PatchMoments()
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
        for _, patches in Places.draw(by_token(module, out), PLACES, generator).patches(
            module, args[0]
        ):
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


def removal_order(network: nn.Module, group: ChannelGroup, moments: PatchMoments) -> Tensor | None:
    """When each channel of ``group`` goes, (channels,) float32: 0 = first; higher = keep longer.

    moments: from :func:`patch_moments`. Several readers' errors are added, each divided by the
    size of its outputs. None where a reader was not looked at, or readers are so many and wide that
    it would take more than :data:`MOST_FLOPS`.
    """
    read: list[tuple[str, Tensor, list[list[int]]]] = []
    flops = 0.0
    for member in group.members:
        layer: Any = network.get_submodule(member.module)
        if member.side != "in" or not isinstance(layer, ROOTS):
            continue
        second = moments.get(member.module)
        if second is None or second.dim() == 1:
            return None
        taps = second.shape[0] // layer.weight.shape[1]
        columns = taps * len(member.entries)
        flops += len(second) ** 3 + 2.0 * columns**2 * len(member.entries)
        if flops > MOST_FLOPS:
            return None
        places: list[list[int]] = [[] for _ in range(group.channels)]
        for channel, entry in zip(member.channels, member.entries, strict=True):
            places[channel] += range(entry * taps, (entry + 1) * taps)
        read.append((member.module, layer.weight.detach().flatten(1), places))
    if not read:
        return None
    readers = []
    for name, weight, places in read:
        shared = sum(map(len, places)) < weight.shape[1]
        readers.append(_Reader(weight, moments.whole(name, weight, shared=shared), places))
    when = torch.zeros(group.channels)
    left, each = list(range(group.channels)), -(-group.channels // STEPS)
    while left:
        errors: Any = sum(reader.errors(left) for reader in readers)
        going = [left[place] for place in errors.float().argsort(stable=True)[:each].tolist()]
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

    weight: (out, d). places: its columns that read each channel. Only these are looked at again,
    and brought up to date: what the layer reads besides stays, and cannot change their errors.
    """

    def __init__(self, weight: Tensor, whole: _Whole, places: Sequence[Sequence[int]]) -> None:
        self._weight, self._inverse, self._size = weight.double(), whole.inverse, whole.size
        self._places = [list(columns) for columns in places]
        self._keep(sorted(column for columns in places for column in columns))

    def _keep(self, columns: Sequence[int]) -> None:
        """Forget all columns but these."""
        place = {column: i for i, column in enumerate(columns)}
        self._places = [[place[column] for column in of_one] for of_one in self._places]
        self._weight = self._weight[:, columns]
        self._inverse = self._inverse[columns][:, columns]

    def errors(self, channels: Sequence[int]) -> Tensor:
        """What is lost when each of ``channels`` goes too, as a share of the layer's outputs:
        (channels,) float64."""
        found = torch.zeros(len(channels)).double()
        for taps in {len(self._places[channel]) for channel in channels} - {0}:
            which = [i for i, c in enumerate(channels) if len(self._places[c]) == taps]
            columns = torch.tensor([self._places[channels[i]] for i in which])
            weight = self._weight[:, columns].permute(1, 2, 0)  # (channels, taps, out)
            among = self._inverse[columns[:, :, None], columns[:, None, :]]
            found[which] = (weight * torch.linalg.solve(among, weight)).sum((1, 2)) / self._size
        return found

    def cut(self, channels: Sequence[int]) -> None:
        columns = [column for channel in channels for column in self._places[channel]]
        if not columns:
            return
        rows = self._inverse[columns]
        gain = torch.linalg.solve(rows[:, columns], rows)  # (columns, d)
        self._weight.addmm_(self._weight[:, columns], gain, alpha=-1)
        self._inverse.addmm_(rows.T, gain, alpha=-1)
        for channel in channels:
            self._places[channel] = []
        left = sorted(column for of_one in self._places for column in of_one)
        if len(left) < 0.8 * len(self._inverse):
            self._keep(left)
