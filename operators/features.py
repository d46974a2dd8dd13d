"""Matching a network's inner feature maps with those of the original it learns from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import InputError, nearest
from .hooked import run_hooked


class Taps:
    """Keeps the latest outputs of some modules: ``taps.outputs[name]``. Close it afterwards."""

    def __init__(self, network: nn.Module, names: Sequence[str]) -> None:
        self.outputs: dict[str, Tensor] = {}
        self._hooks = []
        modules = dict(network.named_modules())
        for name in names:

            def keep(_: nn.Module, __: Any, out: Any, name: str = name) -> None:
                if isinstance(out, Tensor):
                    self.outputs[name] = out

            self._hooks.append(modules[name].register_forward_hook(keep))

    def close(self) -> None:
        """Take the hooks off the network."""
        for hook in self._hooks:
            hook.remove()


def stages(network: nn.Module, example: Tensor) -> list[str]:
    """The modules that give the last feature map of each resolution, in order.

    example: (1, ...) float32. A feature map is a tensor (1, C, H, W) of more than one pixel, or
    (1, tokens, C).
    """
    last: dict[tuple[int, ...], str] = {}
    shapes: list[tuple[str, tuple[int, ...]]] = []
    hooks = [
        module.register_forward_hook(
            lambda _, __, out, name=name: shapes.append(
                (name, tuple(out.shape) if isinstance(out, Tensor) else ())
            )
        )
        for name, module in network.named_modules()
        if name
    ]
    run_hooked(network, example, hooks)
    for name, shape in shapes:
        resolution = shape[2:] if len(shape) == 4 else shape[1:2] if len(shape) == 3 else ()
        if resolution and max(resolution) > 1:
            last.pop(resolution, None)
            last[resolution] = name
    return list(last.values())


@dataclass(frozen=True)
class Pairs:
    """Which module of the network is to give what which module of the original gives."""

    mine: tuple[str, ...] = ()
    theirs: tuple[str, ...] = ()
    where: str = field(default="recover.features", compare=False)

    @classmethod
    def find(
        cls,
        wanted: str | Sequence[str],
        network: nn.Module,
        original: nn.Module,
        example: Tensor,
        where: str = "recover.features",
    ) -> Pairs:
        """``auto``: the last feature map of each resolution; else these names in both networks.

        Raises InputError for a name that one of them lacks, naming the nearest.
        """
        if wanted == "auto":
            mine, theirs = stages(network, example), stages(original, example)
            count = min(len(mine), len(theirs))
            return cls(tuple(mine[-count:]), tuple(theirs[-count:]), where) if count else cls()
        for name in wanted:
            for modules in (dict(original.named_modules()), dict(network.named_modules())):
                if not name or name not in modules:
                    raise InputError(
                        where, f"there is no module {name!r:.80}", nearest(name, modules)
                    )
        return cls(tuple(wanted), tuple(wanted), where)


class FeatureMatch(nn.Module):
    """The distance of feature maps, through learned 1x1 projections where widths differ.

    Each pair's mean squared error is divided by the mean square of the original's map, so that
    pairs weigh alike whatever their scale. Romero et al. 2015 (FitNets), section 2.2.
    """

    def __init__(self, pairs: Pairs, network: nn.Module, original: nn.Module, example: Tensor):
        super().__init__()
        self.pairs = pairs
        self.projections = nn.ModuleList()
        if not pairs.mine:
            return
        mine, theirs = Taps(network, pairs.mine), Taps(original, pairs.theirs)
        with torch.no_grad():
            network(example)
            original(example)
        mine.close()
        theirs.close()
        for here, there in zip(pairs.mine, pairs.theirs, strict=True):
            got, want = mine.outputs.get(here), theirs.outputs.get(there)
            if got is None or want is None or got.ndim not in (2, 3, 4):
                raise InputError(pairs.where, f"{here!r} gives no feature map", "name another")
            if got.ndim != want.ndim or _places(got) != _places(want):
                raise InputError(
                    pairs.where,
                    f"{here!r} gives {list(got.shape[1:])}, the original {list(want.shape[1:])}",
                    "name modules of the same resolution",
                )
            self.projections.append(_projection(got, want))

    def forward(self, mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> Tensor:
        """The mean over pairs. mine, theirs: module name -> output of one batch."""
        total: Tensor = torch.zeros(())
        for here, there, project in zip(
            self.pairs.mine, self.pairs.theirs, self.projections, strict=True
        ):
            want = theirs[there].detach().float()
            apart = F.mse_loss(project(mine[here].float()), want)
            total = total.to(want.device) + apart / want.square().mean().clamp_min(1e-12)
        return total / max(1, len(self.projections))


def _places(feature: Tensor) -> tuple[int, ...]:
    return tuple(feature.shape[2:] if feature.ndim == 4 else feature.shape[1:-1])


def _projection(got: Tensor, want: Tensor) -> nn.Module:
    axis = 1 if got.ndim == 4 else -1
    inputs, outputs = got.shape[axis], want.shape[axis]
    if inputs == outputs:
        return nn.Identity()
    if got.ndim == 4:
        return nn.Conv2d(inputs, outputs, 1, bias=False)
    return nn.Linear(inputs, outputs, bias=False)
