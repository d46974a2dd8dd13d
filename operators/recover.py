"""Winning accuracy back: a compressed network trained on the task, learning from the original."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from ..spaces.shortcut import ShortcutConv
from ..targets.target import Bits, Grid
from ..tasks.recover_section import RecoverSection
from ..tasks.task import Task
from .augment import make_augment
from .compress import Compressed
from .learned_step import prepare, settle
from .train import Training, Watcher

_VERSION = 1


@dataclass(frozen=True)
class Recovered:
    """A trained network. network: eval mode, CPU, float32 modules.

    grids: the learned quantisation steps by module name, for the export (empty without bits < 32).
    rounded: then, the network as it was trained, which rounds what its exported file rounds.
    scores: on the held-out training examples after each epoch; best_epoch: the one delivered, which
    is the last (with ``patience`` the best scored), or 0, the network as it came, where the
    training's loss did not fall. seconds: of training, interruptions excluded.
    """

    network: nn.Module
    grids: Mapping[str, Grid] = field(default_factory=dict)
    rounded: nn.Module | None = None
    scores: tuple[float, ...] = ()
    first_score: float | None = None
    best_epoch: int = 0
    steps: int = 0
    seconds: float = 0.0


def recover(
    made: Compressed,
    task: Task,
    options: RecoverSection | None = None,
    *,
    state: Path | None = None,
    folder: Path | None = None,
    watcher: Watcher | None = None,
) -> Recovered:
    """Train a compressed network on the task's training split; ``made`` is not modified.

    made: from :meth:`Compressor.compress`; layers with fewer than 32 bits are trained with their
    rounding (learned steps, :mod:`.learned_step`). options: the job's ``recover``
    section. state: a file in which the training is kept every two minutes and after each epoch;
    a training that finds its own state there goes on from it and gives the same tensors as without
    the interruption. folder: for a user's augmentation. watcher: hears of the progress.

    Raises InputError for options that do not fit the task or the machine, CandidateError when the
    training diverges, EnvironmentFault when the state cannot be written.
    """
    options = options or RecoverSection()
    if options.method == "none":
        return Recovered(made.network)
    spot, black = "recover.augment", task.train.black
    augment = make_augment(options.augment, task.example, spot, folder, black)
    network = copy.deepcopy(made.network).requires_grad_(True)
    for module in network.modules():
        if isinstance(module, ShortcutConv):
            module.weight.requires_grad_(False)
    low = any(bits != Bits() for bits in made.bits.values())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        if low:
            network = prepare(network, made.bits, torch.cat(task.calibration()))
        original = task.network if options.method == "distil" else None
        key = _key(network, made.bits, task, options)
        training = Training(network, original, task, options, augment, state, key, watcher)
    at = training.run()
    network.eval().requires_grad_(False)
    rounded, grids = None, dict[str, Grid]()
    if low:
        rounded, (network, grids) = network, settle(network)
    return Recovered(
        network=network,
        grids=grids,
        rounded=rounded,
        first_score=at.first_score,
        scores=tuple(at.scores),
        best_epoch=at.best_epoch,
        steps=at.step,
        seconds=at.seconds,
    )


def _key(network: nn.Module, bits: Mapping[str, Bits], task: Task, options: RecoverSection) -> str:
    """What makes a training another one: shapes, bits, task, and all options that matter."""
    said = options.model_dump(mode="json", exclude={"top", "device"})
    shapes = {name: list(tensor.shape) for name, tensor in network.state_dict().items()}
    widths = {name: [b.weight, b.activation] for name, b in bits.items()}
    text = json.dumps([_VERSION, task.fingerprint, shapes, widths, said], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
