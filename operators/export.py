"""A compressed torch network, perhaps trained further by its owner, as a runtime's file again."""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..spaces.plan import CompressionPlan
from ..spaces.shortcut import ShortcutConv
from ..targets.catalogue import make_target
from ..targets.target import Grid, Target
from ..tasks.compress_section import CompressSection
from .compress import NORMALISE_EXAMPLES
from .layer_bits import bits_by_layer, choice_of, weighted_layers
from .quantise import quantise
from .trained_file import on_grids, read_grids

_BATCH = 64  # as in Task.calibration


def export(
    network: nn.Module,
    example: Tensor,
    plan: CompressionPlan | Mapping[str, Any],
    target: Target | str = "onnxruntime-cpu",
    path: Path | str = "model.onnx",
    calibration: Tensor | None = None,
    *,
    options: CompressSection | None = None,
    checkpoint: Path | str | None = None,
) -> Path:
    """Write the network that :func:`paretune.apply` gave as the file that a runtime loads.

    network: on the CPU, not modified; with the plan's shapes. example: one input (1, ...) float32.
    plan: says each layer's bits. target: a name or a :class:`Target`. calibration: (n, ...)
    float32 inputs for activation ranges and rounding; needed where activations have 8 bits.
    options: the search's ``compress`` section (``job.compress``). checkpoint: the file that the
    weights were loaded from: the steps it was trained with are used as long as the weights lie on
    them; once you trained further, ranges come from ``calibration``.

    The same weights, calibration inputs, options and target as in the search give the same bytes
    that were measured there. Raises InputError when plan and network do not fit, CandidateError
    naming a layer that the target cannot write.

    >>> small = paretune.apply(network, plan, example, calibration)
    >>> train(small)                                                    # your own code
    >>> paretune.export(small, example, plan, "onnxruntime-cpu", "small.onnx", calibration)
    """
    if not isinstance(plan, CompressionPlan):
        plan = CompressionPlan.from_json(plan)
    if isinstance(target, str):
        target = make_target(target)
    network, path = copy.deepcopy(network).eval(), Path(path)
    names = weighted_layers(network)
    _check_fit(plan, names)
    shortcuts = {n for n, m in network.named_modules() if isinstance(m, ShortcutConv)}
    bits = bits_by_layer(plan, names, shortcuts)
    if calibration is None and any(b.activation < 32 for b in bits.values()):
        raise InputError(
            "calibration", "the plan has 8-bit activations", "give some of the training inputs"
        )
    grids: Mapping[str, Grid] = read_grids(checkpoint) if checkpoint is not None else {}
    if not grids or not on_grids(network, grids):
        kinds = {name: choice_of(name, plan).quantizer for name in names}
        inputs = None if calibration is None else calibration[:NORMALISE_EXAMPLES]
        with torch.random.fork_rng(devices=[]):
            grids = quantise(network, bits, kinds, options or CompressSection(), inputs)
    batches = [] if calibration is None else [b.numpy() for b in torch.split(calibration, _BATCH)]
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".export-") as folder:
        made = Path(folder) / f"model.{target.format}"
        target.export(network, example, bits, batches, made, grids=grids)
        os.replace(made, path)
    return path


def _check_fit(plan: CompressionPlan, names: list[str]) -> None:
    """Whether the plan's layers are the network's, factorised where the plan says so."""
    owners = set(names) | {name.rpartition(".")[0] for name in names}
    for name, choice in plan.layers.items():
        if name not in owners or (choice.method is not None and name in names):
            raise InputError(
                "plan",
                f"its layer {name!r} is not in this network"
                + (", or not factorised" if choice.method else ""),
                "export the network that paretune.apply gave for this plan",
            )
