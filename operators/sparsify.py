"""Zeros inside a layer: unstructured or 2:4, by magnitude or by weight times gradient.

Zeros make a file smaller once it is packed (see archive.py), never faster on a CPU runtime. They go
to the weights as they are after pruning and factorising; of a factorised layer, to each factor.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..errors import InputError, nearest
from ..spaces.trace import ROOTS


def stay_mask(score: Tensor, sparsity: int, pattern: str = "unstructured") -> Tensor:
    """Which weights stay (True), of the shape of ``score`` (out, in, ...), higher = keep.

    unstructured: the round(sparsity % of all) lowest go, of equal ones the first (Han et al.,
    "Learning both Weights and Connections", NeurIPS 2015, section 3). 2:4: of each four
    neighbouring inputs the two lowest go; inputs left over by fours stay (Mishra et al.,
    "Accelerating Sparse Deep Neural Networks", 2021, section 3).
    """
    stay = torch.ones_like(score, dtype=torch.bool)
    if pattern == "2:4":
        rows = score.flatten(2).transpose(1, 2) if score.dim() > 2 else score.unsqueeze(1)
        fours = rows.shape[-1] // 4
        parts = rows[..., : 4 * fours].reshape(*rows.shape[:-1], fours, 4)
        order = parts.argsort(dim=-1, stable=True)
        kept = torch.ones_like(parts, dtype=torch.bool).scatter(-1, order[..., :2], False)
        flat = torch.ones_like(rows, dtype=torch.bool)
        flat[..., : 4 * fours] = kept.flatten(-2)
        return (flat.transpose(1, 2) if score.dim() > 2 else flat).reshape(score.shape)
    count = round(sparsity * score.numel() / 100)
    stay.view(-1)[score.flatten().argsort(stable=True)[:count]] = False
    return stay


def sparsify(
    module: nn.Module,
    sparsity: int,
    pattern: str = "unstructured",
    scores: Mapping[str, Tensor] | None = None,
) -> None:
    """Set weights of a layer (or of each of its factors) to zero, in place.

    sparsity: per cent. scores: name below ``module`` ("" for itself) -> the size of what a weight
    does; absent = its magnitude.
    """
    for name, layer in module.named_modules():
        if isinstance(layer, ROOTS):
            score = (scores or {}).get(name, layer.weight.detach()).abs()
            with torch.no_grad():
                layer.weight.masked_fill_(~stay_mask(score, sparsity, pattern), 0)


def layer_shares(
    network: nn.Module,
    layers: Sequence[str],
    sparsity: int,
    scores: Mapping[str, Tensor] | None = None,
) -> dict[str, int]:
    """One global share of zeros as per cent of each layer: what a common threshold takes away.

    layers: names in ``network``. sparsity: per cent of all their weights together. scores: as in
    :func:`sparsify`, by name in ``network``. Layers lose 99 % at most.
    Raises InputError naming a layer that does not exist or has no weights.
    """
    if isinstance(sparsity, bool) or not 0 <= sparsity <= 99:
        raise InputError("sparsity", f"{sparsity!r} per cent zeros", "give a number from 0 to 99")
    known = {n: m for n, m in network.named_modules() if isinstance(m, ROOTS)}
    for name in layers:
        if name not in known:
            raise InputError("sparsity", f"no layer named {name!r}", nearest(name, known))
    values = {n: (scores or {}).get(n, known[n].weight.detach()).abs().flatten() for n in layers}
    if not values:
        return {}
    everything = torch.cat(list(values.values()))
    stay = stay_mask(everything, sparsity)
    shares = {}
    for name, part in zip(
        values, torch.split(stay, [len(v) for v in values.values()]), strict=True
    ):
        shares[name] = min(99, round(100 * float((~part).double().mean())))
    return shares


@contextmanager
def zeros_held(network: nn.Module) -> Iterator[None]:
    """Weights of layers that are zero now stay zero while the network is trained inside.

    Their gradients are masked, and whatever an optimiser still moved is set back at the end.
    """
    masks = []
    for module in network.modules():
        if isinstance(module, ROOTS) and bool((module.weight == 0).any()):
            masks.append((module.weight, module.weight == 0))
    hooks = [
        weight.register_hook(lambda slope, gone=gone: slope.masked_fill(gone, 0))  # type: ignore[no-untyped-call]
        for weight, gone in masks
        if weight.requires_grad
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        with torch.no_grad():
            for weight, gone in masks:
                weight.masked_fill_(gone, 0)
