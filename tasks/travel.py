"""A task's network and decoded data as one file, so that workers neither load nor decode anew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..errors import InputError
from .data import Splits
from .split import ImageSplit
from .task import Task

_SPLITS = ("train", "search", "evaluate")


def pack_task(task: Task, path: Path) -> None:
    """Write the network's tensors and, where the data are images, the three splits: safetensors.

    Images that splits share are in it once, and no copy of them is made in memory. Data of other
    kinds stay with whoever loads them.
    """
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    for name, value in task.network.state_dict().items():
        if isinstance(value, Tensor):
            tensors[f"network.{name}"] = value.detach().clone().contiguous()
    said: dict[str, Any] = {"fingerprint": task.fingerprint, "splits": {}}
    said["classes"] = list(task.description.get("classes", ()))
    splits = {name: getattr(task, name) for name in _SPLITS}
    if all(isinstance(split, ImageSplit) for split in splits.values()):
        known: dict[int, str] = {}
        for name, split in splits.items():
            parts = {}
            for part, tensor in split.tensors().items():
                place = known.setdefault(tensor.data_ptr(), f"data.{len(known)}")
                parts[part] = place
                tensors.setdefault(place, tensor.contiguous())
            stated = {"parts": parts, "mean": split.mean, "std": split.std}
            said["splits"][name] = stated
    save_file(tensors, path, {"task": json.dumps(said)})


def unpack_task(path: Path, network: nn.Module) -> tuple[Splits | None, str]:
    """Fill ``network`` from a packed file; (the splits, if they are in it; the fingerprint).

    The data stay in the file, mapped into memory: processes of one machine share them.
    Raises InputError when the network is not the one that was packed.
    """
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        said = json.loads(file.metadata()["task"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (no mapping)
    state = {
        key.removeprefix("network."): tensor.clone()
        for key, tensor in tensors.items()
        if key.startswith("network.")
    }
    own = {n: t.shape for n, t in network.state_dict().items() if isinstance(t, Tensor)}
    differing = dict(own.items() ^ {n: t.shape for n, t in state.items()}.items())
    if differing:
        raise InputError(
            "task.model",
            f"the network built here is another than the packed one, e.g. in {min(differing)!r}",
            "give all machines the same code",
        )
    network.load_state_dict(state, strict=False)
    if not said["splits"]:
        return None, said["fingerprint"]
    splits = {}
    for name, stated in said["splits"].items():
        found = {part: tensors[place] for part, place in stated["parts"].items()}
        splits[name] = ImageSplit.of(name, found, stated["mean"], stated["std"])
    return Splits(**splits, classes=tuple(said["classes"])), said["fingerprint"]
