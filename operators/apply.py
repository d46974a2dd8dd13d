"""A plan carried out on the user's own network, without a study."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..spaces.discover import discover
from ..spaces.plan import CompressionPlan
from ..tasks.compress_section import CompressSection
from ..tasks.weights import load_weights
from .compress import Compressor


@torch.inference_mode(False)
def apply(
    network: nn.Module,
    plan: CompressionPlan | Mapping[str, Any],
    example: Tensor,
    calibration: Tensor | None = None,
    options: CompressSection | None = None,
    checkpoint: Path | str | None = None,
    *,
    rounded: bool = False,
) -> nn.Module:
    """The compressed torch network of ``plan``, for your own training code.

    network: the trained original, not modified. plan: a :class:`CompressionPlan` or the content of
    a ``plan.json``. example: one input (1, ...) float32. calibration: (n, ...) float32 inputs; the
    same ones that the search used give the same channels and BatchNorm statistics. options: the
    search's ``compress`` section (``job.compress``).
    checkpoint: trained tensors of this plan, a ``.safetensors`` file: a recovered point's
    ``weights.safetensors`` in its bundle, or your own.
    rounded: put weights of fewer than 8 bits on the grid that their file stores, to look at what
    it computes; without it they stay float32, for training, and :func:`paretune.export` rounds.

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
        small = made.compress(plan, quantised=rounded).network
    if checkpoint is not None:
        load_weights(small, str(checkpoint), "checkpoint")
    return small
