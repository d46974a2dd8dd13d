"""What the original network gives, layer by layer, at a few places of the calibration inputs."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from .curvature import output_curvature
from .sampling import Places, is_sampled
from .sums import BatchNorm, WatchedSums

PLACES = 64
"""Outputs an image and layer that the fit looks at."""


@dataclass(frozen=True)
class Answers:
    """What the original network gives on the calibration inputs, at sampled places.

    places, outputs: by layer; outputs (images, places, channels). sums: by layer that ends a
    residual branch, the sum, at the same places. curvature: by layer, see curvature.py.
    normed: layers with a BatchNorm right behind them.
    """

    places: Mapping[str, Places]
    outputs: Mapping[str, Tensor]
    sums: Mapping[str, Tensor]
    curvature: Mapping[str, Tensor]
    normed: frozenset[str]

    def first(self, images: int) -> Answers:
        """Those on the first ``images`` inputs."""
        return replace(
            self,
            places={n: Places(p.rows[:images], p.columns[:images]) for n, p in self.places.items()},
            outputs={n: out[:images] for n, out in self.outputs.items()},
            sums={n: out[:images] for n, out in self.sums.items()},
        )


def record_answers(
    network: nn.Module, inputs: Tensor, places: int = PLACES, *, curved: bool = True
) -> Answers:
    """Run ``network`` once on ``inputs`` (n, ...) and note what every layer gives; ``curved``: and
    how much its answers mind errors there, which only whitened factors ask for."""
    where: dict[str, Places] = {}
    outputs: dict[str, Tensor] = {}
    normed: set[str] = set()
    sums: dict[str, Tensor] = {}
    made: dict[int, tuple[str, Tensor]] = {}
    generator = torch.Generator().manual_seed(0)

    def note(_: nn.Module, __: tuple[Tensor, ...], out: Tensor, name: str) -> None:
        if name in where:
            return  # a layer that is called again keeps its first answers
        where[name] = Places.draw(out, places, generator)
        outputs[name] = where[name].outputs(out).clone()
        made.clear()
        made[id(out)] = (name, out)

    def follow(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        if id(args[0]) in made:
            normed.add(made[id(args[0])][0])

    def on_sum(layer: str, norm: str | None, rest: Tensor, total: Tensor) -> Tensor:
        sums[layer] = where[layer].outputs(total).clone()
        return total

    with ExitStack() as watching:
        for name, module in network.named_modules():
            if is_sampled(module):
                hook = module.register_forward_hook(lambda m, a, o, n=name: note(m, a, o, n))
                watching.callback(hook.remove)
            elif isinstance(module, BatchNorm):
                watching.callback(module.register_forward_pre_hook(follow).remove)
        watching.enter_context(WatchedSums(network, is_sampled, on_sum))
        watching.enter_context(torch.no_grad())
        network(inputs)
    curvature = output_curvature(network, inputs) if curved else {}
    return Answers(where, outputs, sums, curvature, frozenset(normed))
