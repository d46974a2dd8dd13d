"""The state of a training on disk: one file that is the old one or all of the new one."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import EnvironmentFault

VERSION = 1
_META = "paretune"


@dataclass
class Position:
    """How far a training is.

    step: optimiser steps done; seconds: spent so far; scores: after each epoch, on the examples
    held out; losses: of the last steps of each epoch; first_score, first_loss: before training and
    of its first step; best: the epoch that is kept (0 = untrained) and its score;
    over: training has ended.
    """

    step: int = 0
    seconds: float = 0.0
    scores: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    first_score: float | None = None
    first_loss: float | None = None
    best_score: float | None = None
    best_epoch: int = 0
    over: bool = False


class TrainingState:
    """``path``: a safetensors file with every tensor of a training, and its position as JSON.

    key: what the training is of; a file of another key is as good as none. Nothing in the file is
    ever run. Random numbers need no state: they are drawn anew from (seed, step).
    """

    def __init__(self, path: Path | None, key: str) -> None:
        self.path, self.key = path, key

    def save(
        self,
        position: Position,
        modules: Mapping[str, nn.Module],
        best: Mapping[str, Tensor],
        optimiser: torch.optim.Optimizer,
        scaler: Mapping[str, Any],
    ) -> None:
        """Write it all; durable when this returns. Raises EnvironmentFault when the disk refuses.

        modules: name -> module; best: the tensors that would be kept now.
        """
        if self.path is None:
            return
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        tensors = {f"best.{k}": v for k, v in best.items()}
        for name, module in modules.items():
            tensors |= {f"{name}.{k}": v for k, v in module.state_dict().items()}
        numbers: dict[str, dict[str, Any]] = {}
        for index, slots in optimiser.state_dict()["state"].items():
            for slot, value in slots.items():
                if isinstance(value, Tensor):
                    tensors[f"optimiser.{index}.{slot}"] = value
                else:
                    numbers.setdefault(str(index), {})[slot] = value
        about = {
            "version": VERSION,
            "key": self.key,
            "position": asdict(position),
            "numbers": numbers,
            "scaler": dict(scaler),
        }
        plain = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.part")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            save_file(plain, temporary, metadata={_META: json.dumps(about)})
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, self.path)
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or error
            raise EnvironmentFault(
                f"{self.path}: the training's state cannot be written ({reason}); "
                "free space and run the same command again"
            ) from None
        finally:
            temporary.unlink(missing_ok=True)

    def load(
        self,
        modules: Mapping[str, nn.Module],
        optimiser: torch.optim.Optimizer,
        scaler: Any,
    ) -> tuple[Position, dict[str, Tensor]] | None:
        """Put the saved tensors where they belong; (position, tensors to keep).

        None when there is no file, or one that is damaged or of another training: nothing is
        changed then, and the training starts from its beginning.
        """
        found = self._read()
        if found is None:
            return None
        about, tensors = found
        groups: dict[str, dict[str, Tensor]] = {name: {} for name in (*modules, "best")}
        slots: dict[int, dict[str, Any]] = {
            int(index): dict(values) for index, values in about["numbers"].items()
        }
        for name, tensor in tensors.items():
            group, _, rest = name.partition(".")
            if group == "optimiser":
                index, _, slot = rest.partition(".")
                slots.setdefault(int(index), {})[slot] = tensor
            else:
                groups[group][rest] = tensor
        if any(set(groups[n]) != set(m.state_dict()) for n, m in modules.items()):
            return None
        for name, module in modules.items():
            module.load_state_dict(groups[name])
        _restore(optimiser, slots)
        if about["scaler"]:
            scaler.load_state_dict(about["scaler"])
        return Position(**about["position"]), groups["best"]

    def drop(self) -> None:
        """Remove the file."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def _read(self) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        if self.path is None or not self.path.is_file():
            return None
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path, framework="pt") as file:
                about = json.loads((file.metadata() or {})[_META])
                if about["version"] != VERSION or about["key"] != self.key:
                    return None
                return about, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, ValueError, KeyError, TypeError):
            return None


def _restore(optimiser: torch.optim.Optimizer, slots: Mapping[int, dict[str, Any]]) -> None:
    """Buffers get their parameter's device and memory format, so that no bit comes out otherwise
    than without the interruption."""
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    for index, values in slots.items():
        parameter = parameters[index]
        for slot, value in values.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                values[slot] = torch.empty_like(parameter).copy_(value)
        optimiser.state[parameter] = dict(values)
