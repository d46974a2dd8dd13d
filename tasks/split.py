"""Fixed, ordered sets of examples, and the checks that keep them apart."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from .task import Split
from .user_code import last_line

DIGEST_BYTES = 16
Batch = tuple[Tensor, Tensor | None]


class ImageSplit:
    """Images kept as bytes (possibly memory-mapped), normalised a batch at a time.

    images: uint8 (n, C, H, W). labels: class numbers, int64 (n,), or None. mean, std: one number a
    channel, for pixels / 255. digests: uint8 (n, 16) if they are known, else computed on demand.
    """

    def __init__(
        self,
        name: str,
        images: Tensor,
        labels: Tensor | None,
        mean: Sequence[float],
        std: Sequence[float],
        digests: np.ndarray | None = None,
        index: np.ndarray | None = None,
    ) -> None:
        self.name, self.images, self.all_labels = name, images, labels
        self.mean, self.std = tuple(mean), tuple(std)
        self.labelled = labels is not None
        self.black: Tensor | None = -torch.tensor(self.mean) / torch.tensor(self.std)
        self._digests, self._index = digests, index

    @property
    def labels(self) -> np.ndarray | None:
        """Class numbers (n,), in order, or None."""
        if self.all_labels is None:
            return None
        labels = self.all_labels.numpy()
        return labels if self._index is None else labels[self._index]

    def __len__(self) -> int:
        return len(self.images) if self._index is None else len(self._index)

    def batches(self, size: int, limit: int | None = None) -> Iterator[Batch]:
        """(inputs float32 (n, C, H, W), labels int64 (n,) or None), in order."""
        for start, stop in _spans(len(self), size, limit):
            rows: Any = slice(start, stop)
            if self._index is not None:
                rows = torch.from_numpy(self._index[start:stop])
            yield self._ready(rows)

    def take(self, rows: np.ndarray) -> Batch:
        """(inputs float32 (n, C, H, W), labels int64 (n,) or None) of the examples at ``rows``."""
        return self._ready(torch.from_numpy(rows if self._index is None else self._index[rows]))

    def _ready(self, rows: Any) -> Batch:
        mean = torch.tensor(self.mean, dtype=torch.float32).view(1, -1, 1, 1)
        std = torch.tensor(self.std, dtype=torch.float32).view(1, -1, 1, 1)
        inputs = self.images[rows].to(torch.float32).div_(255).sub_(mean).div_(std)
        return inputs, None if self.all_labels is None else self.all_labels[rows]

    def digest_rows(self) -> np.ndarray:
        """Digests as uint8 (n, 16)."""
        if self._digests is None:
            self._digests = image_digests(self.images.numpy())
        return self._digests if self._index is None else self._digests[self._index]

    def digests(self) -> list[bytes]:
        return [row.tobytes() for row in self.digest_rows()]

    def part(self, name: str, rows: np.ndarray) -> ImageSplit:
        """The examples at ``rows``, in that order, over the same memory."""
        self.digest_rows()
        index = rows if self._index is None else self._index[rows]
        return ImageSplit(
            name, self.images, self.all_labels, self.mean, self.std, self._digests, index
        )

    def tensors(self) -> dict[str, Tensor]:
        """What it is made of: images, and labels, digests and row numbers where it has them."""
        self.digest_rows()
        arrays = {"digests": self._digests, "index": self._index}
        found = {name: torch.from_numpy(a) for name, a in arrays.items() if a is not None}
        labels = {} if self.all_labels is None else {"labels": self.all_labels}
        return {"images": self.images, **labels, **found}

    @classmethod
    def of(
        cls, name: str, parts: Mapping[str, Tensor], mean: Sequence[float], std: Sequence[float]
    ) -> ImageSplit:
        """The split made of what :meth:`tensors` gave."""
        arrays = {key: parts[key].numpy() for key in ("digests", "index") if key in parts}
        return cls(name, parts["images"], parts.get("labels"), mean, std, **arrays)


class DatasetSplit:
    """A user's dataset of ``(x, y)`` or ``x``: anything with ``len`` and ``[index]``.

    x: a float tensor or array of one fixed shape, ready for the network; y: a class number or a
    target of any fixed shape. All are read once labels or digests are asked for; wrong and random
    ones raise InputError with their number.
    """

    def __init__(
        self, name: str, dataset: Any, where: str, index: np.ndarray | None = None
    ) -> None:
        if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
            kind = type(dataset).__name__
            raise InputError(where, f"{name!r} is a {kind}", "give a dataset with len and [index]")
        self.name, self.dataset, self.where = name, dataset, where
        self.black: Tensor | None = None
        self._index = np.arange(len(dataset)) if index is None else index
        self._scan: tuple[np.ndarray, np.ndarray | None] | None = None
        if not len(self):
            raise InputError(where, f"{name!r} holds no examples", "check the data")
        first, target = self._example(0)
        self.labelled, self._shape = target is not None, tuple(first.shape)
        self._target_shape = None if target is None else target.shape

    def __len__(self) -> int:
        return len(self._index)

    @property
    def labels(self) -> np.ndarray | None:
        """Class numbers (n,), or None where targets are absent or no class numbers."""
        return self._scanned()[1]

    def batches(self, size: int, limit: int | None = None) -> Iterator[Batch]:
        """(inputs float32 (n, ...), targets (n, ...) or None), in order."""
        for start, stop in _spans(len(self), size, limit):
            yield self.take(np.arange(start, stop))

    def take(self, rows: np.ndarray) -> Batch:
        """(inputs float32 (n, ...), targets (n, ...) or None) of the examples at ``rows``."""
        examples = [self._example(row) for row in rows]
        inputs = torch.stack([x for x, _ in examples])
        targets = [y for _, y in examples if y is not None]
        return inputs, torch.stack(targets) if len(targets) == len(examples) else None

    def digest_rows(self) -> np.ndarray:
        """Digests as uint8 (n, 16)."""
        return self._scanned()[0]

    def digests(self) -> list[bytes]:
        return [row.tobytes() for row in self.digest_rows()]

    def part(self, name: str, rows: np.ndarray) -> DatasetSplit:
        """The examples at ``rows``, in that order."""
        part = DatasetSplit(name, self.dataset, self.where, self._index[rows])
        digests, labels = self._scanned()
        part._scan = digests[rows], None if labels is None else labels[rows]
        return part

    def _scanned(self) -> tuple[np.ndarray, np.ndarray | None]:
        if self._scan is None:
            rows = np.empty((len(self), DIGEST_BYTES), dtype=np.uint8)
            labels: list[int] | None = []
            for row in range(len(self)):
                x, y = self._example(row)
                spot = f"example {self._index[row]} of {self.name!r}"
                if tuple(x.shape) != self._shape:
                    problem = f"{spot} is {list(x.shape)}, the first is {list(self._shape)}"
                    raise InputError(self.where, problem, "make all inputs the same shape")
                if not bool(torch.isfinite(x).all()):
                    raise InputError(self.where, f"{spot} holds NaN or infinity", "correct it")
                if (None if y is None else y.shape) != self._target_shape:
                    problem = f"{spot} differs in having a target, or in its target's shape"
                    raise InputError(self.where, problem, "make all examples alike")
                if row < 8 and not torch.equal(self._example(row)[0], x):
                    problem = f"{spot} differs when read again"
                    raise InputError(self.where, problem, "leave random augmentation out")
                rows[row] = np.frombuffer(_digest(x.numpy().tobytes()), dtype=np.uint8)
                if y is None or y.ndim or y.is_floating_point():
                    labels = None
                elif labels is not None:
                    labels.append(int(y))
            self._scan = rows, None if labels is None else np.asarray(labels, dtype=np.int64)
        return self._scan

    def _example(self, row: int) -> tuple[Tensor, Tensor | None]:
        spot = f"example {self._index[row]} of {self.name!r}"
        try:
            item = self.dataset[int(self._index[row])]
        except Exception as error:
            raise InputError(self.where, f"{spot} raised {last_line(error)}") from error
        x, y = item, None
        if isinstance(item, tuple | list) and len(item) in (1, 2):
            x, y = item[0], item[1] if len(item) == 2 else None
        if isinstance(x, np.ndarray | np.generic):
            x = torch.as_tensor(x)
        if not isinstance(x, Tensor) or not x.is_floating_point():
            kind = f"{x.dtype} tensor" if isinstance(x, Tensor) else type(x).__name__
            raise InputError(
                self.where, f"{spot} is a {kind}", "return a float tensor, or (tensor, target)"
            )
        try:
            target = None if y is None else torch.as_tensor(y)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(self.where, f"the target of {spot} is no number or tensor") from error
        mask = target is not None and target.dtype == torch.bool and target.ndim
        if target is not None and not (mask or target.is_floating_point()):
            target = target.long()  # class numbers as losses want them
        return x.detach().to("cpu", torch.float32).contiguous(), target


AnySplit = ImageSplit | DatasetSplit


def image_digests(images: np.ndarray) -> np.ndarray:
    """A 16-byte digest of each image's pixels: uint8 (n, C, H, W) -> uint8 (n, 16)."""
    shape = repr(images.shape[1:]).encode()
    out = np.empty((len(images), DIGEST_BYTES), dtype=np.uint8)
    for row, image in enumerate(images):
        out[row] = np.frombuffer(_digest(np.ascontiguousarray(image).data, shape), dtype=np.uint8)
    return out


def check_disjoint(train: Split, search: Split, evaluate: Split, where: str = "task.data") -> None:
    """Raise InputError, with counts, when an example stands in two of the splits by content."""
    leaks = []
    for first, second in ((train, search), (train, evaluate), (search, evaluate)):
        known = set(first.digests())
        count = sum(digest in known for digest in second.digests())
        if count:
            leaks.append(f"{count} of {second.name!r} are also in {first.name!r}")
    if leaks:
        problem = "the splits share examples: " + ", ".join(leaks)
        raise InputError(where, problem, "remove them from one of the two")


def balanced_part(labels: np.ndarray | Sequence[int], count: int, seed: int = 0) -> np.ndarray:
    """``count`` fixed row numbers, the same number from each class (within one), ascending.

    The choice depends on nothing but the labels, the count and the seed: rows are ranked within
    their class by a hash. Classes with too few examples are made up for by the others.
    """
    if not 0 <= count <= len(labels):
        raise InputError("balanced_part", f"{count} of {len(labels)} examples", "take fewer")
    return np.sort(balanced_order(labels, seed)[:count])


def balanced_order(labels: np.ndarray | Sequence[int], seed: int = 0) -> np.ndarray:
    """All row numbers in a fixed order of which every beginning is class-balanced."""
    labels = np.asarray(labels)
    ranked = sorted(
        range(len(labels)),
        key=lambda row: hashlib.blake2b(f"{seed}:{row}".encode(), digest_size=8).digest(),
    )
    turn: dict[int, int] = {}
    order: list[tuple[int, int, int]] = []
    for row in ranked:
        label = int(labels[row])
        turn[label] = turn.get(label, 0) + 1
        order.append((turn[label], label, row))
    return np.asarray([row for _, _, row in sorted(order)], dtype=np.int64)


def _digest(data: Any, key: bytes = b"") -> bytes:
    digest = hashlib.blake2b(data, digest_size=DIGEST_BYTES)
    digest.update(key)
    return digest.digest()


def _spans(count: int, size: int, limit: int | None) -> Iterator[tuple[int, int]]:
    if size < 1 or (limit is not None and limit < 1):
        raise InputError("batches", f"size={size!r}, limit={limit!r}", "both are at least 1")
    end = count if limit is None else min(count, limit)
    for start in range(0, end, size):
        yield start, min(end, start + size)
