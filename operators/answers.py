"""What the original network gives, layer by layer, at a few places of the calibration inputs."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from .curvature import output_curvature
from .hooked import run_hooked
from .sampling import Places, by_token, is_sampled
from .sums import BatchNorm, WatchedSums

PLACES = 64
"""Outputs an image and layer that the fit looks at, where they are not too many to hold."""
MOST_BYTES = 1 << 30
"""Of the outputs that are held; sums behind residual branches come on top."""


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

    def first(self, inputs: int, of: int) -> Answers:
        """Those on the first ``inputs`` of the ``of`` that were run; a layer may see several parts
        of each, e.g. windows."""

        def cut(tensor: Tensor) -> Tensor:
            return tensor[: len(tensor) * min(inputs, of) // of]

        places = {n: Places(cut(p.rows), cut(p.columns)) for n, p in self.places.items()}
        outputs = {n: cut(out) for n, out in self.outputs.items()}
        sums = {n: cut(out) for n, out in self.sums.items()}
        return replace(self, places=places, outputs=outputs, sums=sums)


def record_answers(
    network: nn.Module, inputs: Tensor, places: int = PLACES, *, curved: bool = True
) -> Answers:
    """Run ``network`` once on ``inputs`` (n, ...) and note what every layer gives; ``curved``: and
    how much its answers mind errors there, which only whitened factors ask for. Of many wide layers
    fewer than ``places`` are noted, so that they take at most :data:`MOST_BYTES`."""
    places = _held(network, inputs, places)
    where: dict[str, Places] = {}
    outputs: dict[str, Tensor] = {}
    normed: set[str] = set()
    sums: dict[str, Tensor] = {}
    made: dict[int, tuple[str, Tensor]] = {}
    generator = torch.Generator().manual_seed(0)

    def note(module: nn.Module, _: tuple[Tensor, ...], out: Tensor, name: str) -> None:
        if name in where:
            return  # a layer that is called again keeps its first answers
        tokens = by_token(module, out)
        where[name] = Places.draw(tokens, places, generator)
        outputs[name] = where[name].outputs(tokens).clone()
        made.clear()
        made[id(out)] = (name, out)

    def follow(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        if id(args[0]) in made:
            normed.add(made[id(args[0])][0])

    def on_sum(layer: str, norm: str | None, rest: Tensor, total: Tensor) -> Tensor:
        sums[layer] = where[layer].outputs(by_token(network.get_submodule(layer), total)).clone()
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


def _held(network: nn.Module, inputs: Tensor, most: int) -> int:
    """Places an image, at most ``most``, whose outputs of all layers can be held."""
    sizes: dict[nn.Module, tuple[int, int, int]] = {}

    def note(module: Any, _: tuple[Tensor, ...], out: Tensor) -> None:
        tokens, channels = by_token(module, out), len(module.weight)
        sizes[module] = len(tokens), tokens[0].numel() // channels, channels

    hooks = [m.register_forward_hook(note) for m in network.modules() if is_sampled(m)]
    run_hooked(network, inputs[:1], hooks)
    while most > 1:
        values = sum(images * min(most, there) * wide for images, there, wide in sizes.values())
        if 4 * len(inputs) * values <= MOST_BYTES:
            break
        most -= 1
    return most
