"""The pretrained CIFAR-10 ResNets and their data, as the benchmarks of techniques use them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from paretune.tasks.load import load_task
from paretune.tasks.task import Examples, Task


def resnet(depth: int) -> Task:
    """A ResNet with its weights from the folder PARETUNE_DATA; 1,000 images of ``val`` are the
    search split, the others the evaluate split."""
    data = os.environ.get("PARETUNE_DATA")
    if not data:
        sys.exit("PARETUNE_DATA names no folder with train/, val/ and the weights")
    job: dict[str, object] = {
        "name": f"resnet{depth}",
        "task": {
            "model": "paretune.tasks.vision:cifar_resnet",
            "model_args": {"depth": depth},
            "weights": str(Path(data) / f"cifar10_resnet{depth}.safetensors"),
            "data": {
                "kind": "imagefolder",
                "train": str(Path(data) / "train"),
                "evaluate": str(Path(data) / "val"),
                "search": 1000,
                "size": 32,
                "mean": [0.485, 0.456, 0.406],
                "std": [0.229, 0.224, 0.225],
            },
        },
    }
    return load_task(job)


@dataclass(frozen=True)
class Together:
    """Several splits as one, for figures on the whole of ``val``."""

    parts: tuple[Examples, ...]
    name: str = "val"
    labelled: bool = True

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def batches(
        self, size: int, limit: int | None = None
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        """As :meth:`paretune.tasks.task.Examples.batches`, one part after another."""
        left = len(self) if limit is None else limit
        for part in self.parts:
            yield from part.batches(size, limit=min(left, len(part)))
            left -= min(left, len(part))


def whole_val(task: Task) -> Together:
    """All 5,000 images of ``val``."""
    return Together((task.search, task.evaluate))
