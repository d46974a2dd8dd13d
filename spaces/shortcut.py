"""Padded ("option A") shortcuts rewritten exactly as convolutions, so that they can be pruned.

The CIFAR ResNets of He et al. (2015, section 4.2, option A) subsample the input and pad channels
with zeros. Dependency graphs cannot follow that padding. A bias-free 1x1 convolution with stride
and an identity block at the pad offset computes the same numbers (maximum difference 0).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

Pair = TypeVar("Pair")


class ShortcutConv(nn.Conv2d):
    """A fixed 1x1 convolution that stands for a padded shortcut: copies channels, adds zeros."""

    def __init__(self, channels: int, outputs: int, offset: int, stride: int) -> None:
        super().__init__(channels, outputs, 1, stride, bias=False)
        with torch.no_grad():
            self.weight.zero_()
            span = torch.arange(channels)
            self.weight[span + offset, span] = 1.0
        self.weight.requires_grad_(False)


def rewrite_shortcuts(network: nn.Module, example: Tensor) -> nn.Module:
    """A copy of ``network`` in which every padded shortcut module is a :class:`ShortcutConv`.

    Modules without parameters or buffers, of a class that torch does not ship, are probed with
    random numbers: if the output is the strided input with zero channels around it, exactly, they
    are replaced. Those that give their input back (drop paths, dropouts of others) need no
    rewriting and stay. The copy's outputs equal the original's. network: eval mode; example:
    (1, ...) float32.
    """
    copied = copy.deepcopy(network).eval()
    candidates = {
        name: module
        for name, module in copied.named_modules()
        if name and _is_custom_function(module)
    }
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    hooks = []
    for name, module in candidates.items():

        def record(_: nn.Module, args: tuple[Tensor, ...], out: Tensor, name: str = name) -> None:
            if len(args) == 1 and isinstance(args[0], Tensor) and isinstance(out, Tensor):
                seen[name] = (args[0].detach(), out.detach())

        hooks.append(module.register_forward_hook(record))
    if not candidates:
        return copied
    try:
        with torch.inference_mode():
            copied(torch.randn_like(example))
    except Exception:  # inputs that are not free numbers, e.g. tokens: no images, no such shortcuts
        seen.clear()
    finally:
        for hook in hooks:
            hook.remove()
    for name, (given, out) in seen.items():
        found = _as_shortcut(given, out)
        if found is not None:
            parent, _, leaf = name.rpartition(".")
            setattr(copied.get_submodule(parent), leaf, found.to(example.device).eval())
    return copied


def _is_custom_function(module: nn.Module) -> bool:
    if type(module).__module__.startswith("torch."):
        return False
    return next(module.parameters(), None) is None and next(module.buffers(), None) is None


def _as_shortcut(given: Tensor, out: Tensor) -> ShortcutConv | None:
    if given.dim() != 4 or out.dim() != 4 or out.shape[1] < given.shape[1]:
        return None
    if out.shape == given.shape:
        return None
    strides = [s for s in (1, 2, 3, 4) if -(-given.shape[2] // s) == out.shape[2]]
    extra = out.shape[1] - given.shape[1]
    for stride in strides:
        strided = given[:, :, ::stride, ::stride]
        if strided.shape[2:] != out.shape[2:]:
            continue
        for offset in sorted(range(extra + 1), key=lambda o: abs(o - extra / 2)):
            padded = torch.zeros_like(out)
            padded[:, offset : offset + given.shape[1]] = strided
            if torch.equal(padded, out):
                return ShortcutConv(given.shape[1], out.shape[1], offset, stride)
    return None


def of_siblings(name: str, chosen: Mapping[str, Pair], otherwise: Pair) -> Pair:
    """Bits of a rewritten shortcut: those of the other layers of its block, if they agree."""
    parent, dot, _ = name.rpartition(".")
    block = {b for n, b in chosen.items() if n.startswith(parent + dot)}
    return block.pop() if len(block) == 1 else otherwise
