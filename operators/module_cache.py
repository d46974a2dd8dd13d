"""Modules that candidates share, made once."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from torch import nn

Made = TypeVar("Made", bound=nn.Module)


class ModuleCache(Generic[Made]):
    """Remembers modules by key and gives copies; those not asked for longest go first.

    most_bytes: of parameters that are remembered; the latest module always is.
    """

    def __init__(self, most_bytes: int = 256 << 20) -> None:
        self._kept: OrderedDict[Hashable, Made] = OrderedDict()
        self._bytes, self._most = 0, most_bytes

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """A copy of what ``make`` gave for ``key``."""
        if key not in self._kept:
            self._kept[key] = make()
            self._bytes += _size(self._kept[key])
            while self._bytes > self._most and len(self._kept) > 1:
                self._bytes -= _size(self._kept.popitem(last=False)[1])
        self._kept.move_to_end(key)
        return copy.deepcopy(self._kept[key])


def _size(module: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in module.parameters())
