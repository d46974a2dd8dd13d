"""Kernels split in two by a truncated singular value decomposition, plain or weighted by the data.

Weighted by the data (``second``), the rank-r product is the one that changes the layer's outputs
least, not its weights: the decomposition of W L, C = L L^T, and then the factor L^-1 (Zhang et al.,
"Accelerating Very Deep Convolutional Networks for Classification and Detection", TPAMI 2016,
section 3.1; Wang et al., "SVD-LLM", ICLR 2025, section 3.1).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .metric import balanced, last_factor, root


def svd(kernel: Tensor, rank: int, second: Tensor | None = None) -> list[Tensor]:
    """Kernels (r, in, 1, 1) and (out, r, 1, 1) of a 1x1 kernel (out, in, 1, 1).

    The optimal factors of rank r (Eckart and Young, 1936). second: (in, in) of the inputs, or None.
    """
    first, last = _product(kernel.flatten(1), rank, second)
    return [first[:, :, None, None], last[:, :, None, None]]


def spatial_svd(kernel: Tensor, rank: int, second: Tensor | None = None) -> list[Tensor]:
    """Kernels (r, in, kh, 1) and (out, r, 1, kw) of a kernel (out, in, kh, kw).

    A column of kh taps, then a row of kw taps (Jaderberg et al., "Speeding up Convolutional Neural
    Networks with Low Rank Expansions", BMVC 2014, scheme 2), by the closed form of Tai et al.
    ("Convolutional Neural Networks with Low-rank Regularization", ICLR 2016, theorem 1).
    second: (in kh kw, in kh kw) of the patches: the columns are then weighted by the moments of
    their own taps, and the rows are fitted to the data exactly.
    """
    out, into, high, wide = kernel.shape
    matrix = kernel.permute(0, 3, 1, 2).reshape(out * wide, into * high)
    columns = None
    if second is not None:
        parts = second.reshape(into, high, wide, into, high, wide)
        columns = torch.einsum("ahwbgw->ahbg", parts).reshape(into * high, into * high)
    first, last = _product(matrix, rank, columns)
    upright = first.reshape(rank, into, high)
    flat = last.reshape(out, wide, rank).transpose(1, 2)
    if second is not None:
        reads = torch.einsum("rch,wv->rwchv", upright, torch.eye(wide).to(kernel))
        fitted = last_factor(kernel.flatten(1), reads.reshape(rank * wide, -1), second)
        upright, flat = balanced(upright, fitted.reshape(out, rank, wide))
    return [upright[:, :, :, None], flat[:, :, None, :]]


def _product(matrix: Tensor, rank: int, second: Tensor | None) -> tuple[Tensor, Tensor]:
    """(r, n) and (m, r) whose product is nearest to ``matrix`` (m, n)."""
    if second is None:
        u, s, v = torch.linalg.svd(matrix, full_matrices=False)
        scale = s[:rank].sqrt()
        return scale[:, None] * v[:rank], u[:, :rank] * scale
    lower = root(second)
    u, s, v = torch.linalg.svd(matrix @ lower, full_matrices=False)
    first = torch.linalg.solve_triangular(lower, v[:rank], upper=False, left=False)
    return balanced(first, u[:, :rank] * s[:rank])
