"""Output means of quantised layers brought back to those of the float network."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .hooked import run_hooked

_CHUNK = 64


def output_means(network: nn.Module, layers: Collection[str], inputs: Tensor) -> dict[str, Tensor]:
    """The mean of each layer's result, per output channel, over ``inputs`` (n, ...); of a layer
    that is called twice, of its first results."""
    sums: dict[str, Tensor] = {}
    seen: set[str] = set()
    hooks = []
    for name in layers:

        def record(module: nn.Module, _: object, out: Tensor, name: str = name) -> None:
            if name not in seen:
                seen.add(name)
                sums[name] = sums.get(name, 0) + _mean(module, out) * len(out)

        hooks.append(network.get_submodule(name).register_forward_hook(record))
    try:
        with torch.no_grad():
            for part in torch.split(inputs, _CHUNK):
                seen.clear()
                network(part)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: total / len(inputs) for name, total in sums.items()}


def correct_biases(
    network: nn.Module,
    means: Mapping[str, Tensor],
    inputs: Tensor,
    batchnorms: Mapping[str, str],
) -> None:
    """Shift every layer in ``means`` so that its results have those means again, in place.

    Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (ICCV
    2019), section 4.2, in its empirical form (appendix D): layer by layer, each seeing the
    corrected ones before it, in one pass. network: quantised; means: of the float network, from
    :func:`output_means` on the same ``inputs``. The shift goes into the layer's bias or into the
    running mean of the BatchNorm behind it (``batchnorms``: layer -> name), which is the same; a
    layer with neither is left as it is.
    """
    hooks, seen = [], set()
    for name, mean in means.items():
        layer: Any = network.get_submodule(name)
        norm: Any = network.get_submodule(batchnorms[name]) if name in batchnorms else None
        if layer.bias is None and (norm is None or norm.running_mean is None):
            continue

        def shift(
            module: Any,
            _: object,
            out: Tensor,
            name: str = name,
            mean: Tensor = mean,
            norm: Any = norm,
        ) -> Tensor | None:
            if name in seen:  # a layer called twice is corrected by its first call
                return None
            seen.add(name)
            change = _mean(module, out) - mean
            if module.bias is None:
                norm.running_mean.add_(change)
                return None
            module.bias.sub_(change)
            return out - change.reshape(_along(module, out))

        hooks.append(layer.register_forward_hook(shift))
    run_hooked(network, inputs, hooks)


def _mean(module: nn.Module, out: Tensor) -> Tensor:
    axis = out.dim() - 1 if isinstance(module, nn.Linear) else 1
    return out.mean([d for d in range(out.dim()) if d != axis])


def _along(module: nn.Module, out: Tensor) -> list[int]:
    axis = out.dim() - 1 if isinstance(module, nn.Linear) else 1
    return [-1 if d == axis else 1 for d in range(out.dim())]
