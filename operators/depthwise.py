"""A k x k kernel as r depthwise kernels a channel and a pointwise (1x1) convolution."""

from __future__ import annotations

import torch
from torch import Tensor

from .metric import last_factor, root


def depthwise(kernel: Tensor, rank: int, second: Tensor | None = None) -> list[Tensor]:
    """Kernels (in r, 1, kh, kw) and (out, in r, 1, 1) of a kernel (out, in, kh, kw).

    For each input channel the best rank-r approximation of its (out, kh kw) slice, which together
    are the best in the Frobenius norm (Guo et al., "Network Decoupling: From Regular to Depthwise
    Separable Convolutions", BMVC 2018, section 3.2). second: (in kh kw, in kh kw) of the patches:
    the slices are then weighted by their own taps' moments and the pointwise part is fitted to the
    data exactly.
    """
    out, into, high, wide = kernel.shape
    slices = kernel.permute(1, 0, 2, 3).reshape(into, out, high * wide)
    if second is None:
        u, s, v = torch.linalg.svd(slices, full_matrices=False)
        scale = s[:, :rank].sqrt()
        taps = scale[:, :, None] * v[:, :rank]
        mixed = (u[:, :, :rank] * scale[:, None, :]).permute(1, 0, 2).reshape(out, into * rank)
    else:
        parts = second.reshape(into, high * wide, into, high * wide)
        lower = torch.stack([root(parts[c, :, c]) for c in range(into)])
        _, _, v = torch.linalg.svd(slices @ lower, full_matrices=False)
        taps = torch.linalg.solve_triangular(lower, v[:, :rank], upper=False, left=False)
        taps = taps / taps.norm(dim=2, keepdim=True).clamp_min(1e-30)
        places = torch.eye(into).to(kernel)
        reads = torch.einsum("crt,cd->crdt", taps, places).reshape(into * rank, -1)
        mixed = last_factor(kernel.flatten(1), reads, second)
    return [taps.reshape(into * rank, 1, high, wide), mixed[:, :, None, None]]
