"""Carrying a plan out on a network: prune, factorise, re-estimate; then the bits for the export."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..spaces.discover import discover
from ..spaces.plan import CompressionPlan
from ..spaces.shortcut import ShortcutConv, rewrite_shortcuts
from ..spaces.space import SearchSpace, require
from ..targets.target import Bits
from ..tasks.sections import CompressSection
from ..tasks.weights import load_weights
from .factorise import FactorCache
from .importance import channel_importance, input_rms
from .normalise import input_moments, reestimate
from .prune import prune

NORMALISE_EXAMPLES = 128
"""Calibration inputs that BatchNorm statistics are re-estimated on (64 give as good results as
512; more only cost time)."""


@dataclass
class Compressed:
    """A network on its way through the steps.

    network: the compressed copy, eval mode. lost: output channels each module lost.
    bits: module name in ``network`` -> Bits, for every convolution and linear layer.
    """

    network: nn.Module
    lost: dict[str, list[int]] = field(default_factory=dict)
    bits: dict[str, Bits] = field(default_factory=dict)


class Compressor:
    """Carries plans out on one network; what they share is computed once.

    network: eval mode, CPU; never modified. space: from :func:`discover` on the same network.
    calibration: (n, ...) float32 inputs for activation-aware importance and for BatchNorm, or None
        (then magnitudes rank the channels and BatchNorm statistics stay).
    options: how plans are carried out, the job's ``compress`` section.
    """

    def __init__(
        self,
        network: nn.Module,
        example: Tensor,
        space: SearchSpace,
        calibration: Tensor | None = None,
        options: CompressSection | None = None,
    ) -> None:
        options = options or CompressSection()
        self.space = space
        self.original = rewrite_shortcuts(network, example)
        self.normalise = options.normalise if calibration is not None else "none"
        method: str = options.importance
        if method == "activation" and calibration is None:
            method = "l2"
        rms = None
        if method == "activation" and calibration is not None:
            rms = input_rms(self.original, calibration)
        self._importance = {
            g.name: channel_importance(self.original, g, method, rms) for g in space.groups
        }
        self._inputs = None if calibration is None else calibration[:NORMALISE_EXAMPLES]
        self._moments = (
            input_moments(self.original, self._inputs)
            if self._inputs is not None and self.normalise != "none"
            else {}
        )
        self._factors = FactorCache()

    def compress(self, plan: CompressionPlan) -> Compressed:
        """A compressed copy of the network. Raises CandidateError naming the layer that refuses."""
        plan = require(plan, self.space)
        work = Compressed(copy.deepcopy(self.original))
        for step in STEPS:
            step(self, plan, work)
        return work

    def _prune(self, plan: CompressionPlan, work: Compressed) -> None:
        work.lost = prune(work.network, self.space.groups, plan.groups, self._importance)

    def _factorise(self, plan: CompressionPlan, work: Compressed) -> None:
        for name, choice in plan.layers.items():
            if choice.method is not None:
                parent, _, leaf = name.rpartition(".")
                module = work.network.get_submodule(name)
                factors = self._factors.factorise(module, choice.method, choice.ranks, name)
                setattr(work.network.get_submodule(parent), leaf, factors)

    def _normalise(self, plan: CompressionPlan, work: Compressed) -> None:
        changed = work.lost or any(c.method for c in plan.layers.values())
        if self._inputs is not None and self.normalise != "none" and changed:
            reestimate(work.network, self._inputs, self._moments, work.lost, self.normalise)

    def _assign_bits(self, plan: CompressionPlan, work: Compressed) -> None:
        chosen = {n: Bits(c.weight_bits, c.activation_bits) for n, c in plan.layers.items()}
        for name, module in work.network.named_modules():
            if isinstance(module, ShortcutConv):
                work.bits[name] = _of_siblings(name, chosen)
            elif isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear):
                owner = name if name in chosen else name.rpartition(".")[0]
                work.bits[name] = chosen.get(owner, Bits())


STEPS: tuple[Callable[[Compressor, CompressionPlan, Compressed], None], ...] = (
    Compressor._prune,
    Compressor._factorise,
    Compressor._normalise,
    Compressor._assign_bits,
)
"""The order in which a plan is carried out; quantisation itself happens in the exported file."""


def _of_siblings(name: str, chosen: Mapping[str, Bits]) -> Bits:
    """A rewritten shortcut is quantised when every layer of its block is."""
    parent, dot, _ = name.rpartition(".")
    block = {b for n, b in chosen.items() if n.startswith(parent + dot)}
    return block.pop() if len(block) == 1 else Bits()


@torch.inference_mode(False)
def apply(
    network: nn.Module,
    plan: CompressionPlan | Mapping[str, Any],
    example: Tensor,
    calibration: Tensor | None = None,
    options: CompressSection | None = None,
    checkpoint: Path | str | None = None,
) -> nn.Module:
    """The compressed torch network of ``plan``, for your own training code.

    network: the trained original, not modified. plan: a :class:`CompressionPlan` or the content of
    a ``plan.json``. example: one input (1, ...) float32. calibration: (n, ...) float32 inputs; the
    same ones that the search used give the same channels and BatchNorm statistics. options: the
    search's ``compress`` section (``job.compress``). Bit-widths are carried out by the export, so
    the network returned is float32. checkpoint: trained tensors of this plan, a
    ``.safetensors`` file (a recovered point's lie in the study, at
    ``study.artifact_path(point.evaluation.weights)``).

    Raises InputError when the plan does not fit the network (the layer is named), or the checkpoint
    does not fit the plan.

    >>> small = paretune.apply(network, json.load(open("plan.json")), torch.zeros(1, 3, 32, 32))
    """
    if not isinstance(plan, CompressionPlan):
        plan = CompressionPlan.from_json(plan)
    network = copy.deepcopy(network).eval()
    space = discover(network, example, freeze=[], prune=bool(plan.groups))
    space = space.only(plan)
    space.check(plan)
    with torch.random.fork_rng():
        made = Compressor(network, example, space, calibration, options)
        small = made.compress(plan).network
    if checkpoint is not None:
        load_weights(small, str(checkpoint), "checkpoint")
    return small
