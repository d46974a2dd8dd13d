"""How much the network's answer minds an error in each layer's outputs.

G = E[g g^T] over images and places, with g the gradient of a random combination of the network's
answers with respect to one place of the layer's output: the Gauss-Newton matrix of the squared
change of the answers, as K-FAC factors it (Martens and Grosse, "Optimizing Neural Networks with
Kronecker-factored Approximate Curvature", ICML 2015, section 3). No labels are needed. Errors E of
a kernel then cost tr(G E C E^T), C the second moments of its patches: both sides are weighed, where
Fisher-weighted SVD (Hsu et al., ICLR 2022) weighs one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .sampling import is_sampled

_BATCH = 16


@torch.inference_mode(False)
def output_curvature(network: nn.Module, inputs: Tensor, seed: int = 0) -> dict[str, Tensor]:
    """G (out, out), float32, of every layer that :func:`is_sampled`; inputs (n, ...) float32."""
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, Any] = {}
    made: dict[str, Tensor] = {}
    hooks = []

    def note(_: nn.Module, __: tuple[Tensor, ...], out: Tensor, name: str) -> Tensor:
        if not out.requires_grad:
            out = out.detach().requires_grad_()
        made[name] = out
        return out.clone()  # what an activation may overwrite

    for name, module in network.named_modules():
        if is_sampled(module):
            hooks.append(module.register_forward_hook(lambda m, a, o, n=name: note(m, a, o, n)))
    try:
        for batch in torch.split(inputs, _BATCH):
            made.clear()
            with torch.enable_grad():
                answers = network(batch.clone())
                mixed = (answers * torch.randn(answers.shape, generator=generator)).sum()
            slopes = torch.autograd.grad(mixed, list(made.values()), allow_unused=True)
            for name, slope in zip(made, slopes, strict=True):
                if slope is not None:
                    linear = isinstance(network.get_submodule(name), nn.Linear)
                    flat = slope if linear else slope.movedim(1, -1)
                    flat = flat.reshape(-1, flat.shape[-1])
                    found[name] = found.get(name, 0.0) + flat.T @ flat
    finally:
        for hook in hooks:
            hook.remove()
    return {name: total / len(inputs) for name, total in found.items()}
