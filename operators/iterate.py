"""Pruning in steps with recovery in between, instead of all at once."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from ..spaces.narrow import narrowed
from ..spaces.plan import CompressionPlan
from ..spaces.schedule import schedule
from ..spaces.space import require
from ..spaces.surgery import lost_entries
from .compress import Compressed, Compressor
from .sparsify import zeros_held


def iterate(
    compressor: Compressor,
    plan: CompressionPlan,
    steps: int,
    recover: Callable[[nn.Module], None],
    kind: str = "cubic",
) -> Compressed:
    """What ``compressor.compress(plan)`` gives, reached in ``steps`` prune-recover steps.

    recover: trains the network it is given, in place; called after every step, and zeros stay
    zeros meanwhile. Channels are ranked anew on each recovered network (Molchanov et al., "Pruning
    Convolutional Neural Networks", ICLR 2017, section 2). kind: "cubic" or "linear", see
    :func:`schedule`. Factors, bits and 2:4 zeros come with the last step, so the last recovery
    trains the final shapes. Raises CandidateError when the plan does not fit.
    """
    plan = require(plan, compressor.space)
    whole = compressor.space
    left = {group.name: list(range(group.channels)) for group in whole.groups}
    current = compressor
    stages = schedule(whole, plan, steps, kind)
    for number, stage in enumerate(stages, 1):
        made = current.compress(stage)
        for name, places in made.kept.items():
            left[name] = [left[name][i] for i in places]
        with zeros_held(made.network):
            recover(made.network)
        made.network.eval()
        if number < steps:
            current = current.on(made.network, narrowed(current.space, made.kept))
    lost = lost_entries(whole.groups, left)
    made.kept = left
    made.lost = {module: gone for (module, side), gone in lost.items() if side == "out"}
    return made
