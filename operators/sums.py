"""Residual sums as a network runs: which layer's output is added to what."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_ADDS = frozenset({"add", "add_", "__add__", "__radd__", "__iadd__"})
BatchNorm = nn.modules.batchnorm._BatchNorm


def is_plain_norm(module: nn.Module) -> bool:
    """Whether it is a BatchNorm and nothing else: some libraries' ones hold an activation too."""
    return isinstance(module, BatchNorm) and type(module).forward is BatchNorm.forward


_RECENT = 3
"""So many latest outputs are kept: a branch and a projected shortcut are made one after another."""

OnSum = Callable[[str, str | None, Tensor, Tensor], Tensor]
"""(layer, its BatchNorm or None, what its branch is added to, the sum) -> the sum to go on with."""


class WatchedSums(TorchFunctionMode):
    """While active, calls ``on_sum`` where a layer's output, perhaps behind a BatchNorm, is added
    to a tensor of the same shape. Of two layers' outputs the later one counts; one that an
    activation has overwritten is none any more."""

    def __init__(self, network: nn.Module, is_layer: Callable[[nn.Module], bool], on_sum: OnSum):
        super().__init__()
        self._on_sum = on_sum
        self._made: dict[int, _Branch] = {}
        self._count = 0
        self._network, self._is_layer = network, is_layer
        self._hooks = ExitStack()

    def __enter__(self) -> WatchedSums:
        for name, module in self._network.named_modules():
            if self._is_layer(module) or is_plain_norm(module):
                hook = module.register_forward_hook(
                    lambda m, a, out, name=name: self._note(m, a[0], out, name)
                )
                self._hooks.callback(hook.remove)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._hooks.close()
        self._made.clear()

    def _note(self, module: nn.Module, given: Tensor, out: Tensor, name: str) -> None:
        if isinstance(module, BatchNorm):
            branch = self._made.pop(id(given), None)
            if branch is not None and branch.version == _version(given):
                self._made[id(out)] = _Branch(branch.order, branch.layer, name, out, _version(out))
            return
        self._count += 1
        self._made[id(out)] = _Branch(self._count, name, None, out, _version(out))
        while len(self._made) > _RECENT:
            del self._made[next(iter(self._made))]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") not in _ADDS or len(args) != 2 or kwargs:
            return func(*args, **(kwargs or {}))
        versions = [_version(a) if isinstance(a, Tensor) else None for a in args]
        made = func(*args)
        if not all(isinstance(a, Tensor) and a.shape == made.shape for a in args):
            return made
        known = [(self._made.pop(id(a)), i) for i, a in enumerate(args) if id(a) in self._made]
        known = [(branch, i) for branch, i in known if branch.version == versions[i]]
        if known:
            branch, place = max(known, key=lambda item: item[0].order)
            rest = args[1 - place]
            with torch._C.DisableTorchFunction():
                rest = made - branch.out if rest is made else rest
                found = self._on_sum(branch.layer, branch.norm, rest, made)
                if found is not made:
                    made.copy_(found)
        return made


@dataclass(frozen=True)
class _Branch:
    """What a layer made, perhaps behind its BatchNorm. order: counts layers; version: of ``out``,
    which is another once something was written into it."""

    order: int
    layer: str
    norm: str | None
    out: Tensor
    version: int | None


def _version(tensor: Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version
