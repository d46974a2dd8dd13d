"""How much each error in a kernel costs: the second moments of the patches that it reads.

A kernel W (out, d) that reads patches x (d,) errs by E ||(W - W') x||^2 = tr (W - W') C (W - W')^T,
C = E[x x^T]. With C = I this is the Frobenius norm of the weights.
"""

from __future__ import annotations

import torch
from torch import Tensor

_FLOOR = 1e-6  # of the mean second moment: directions that the data never takes cost a little


def root(second: Tensor, floor: float = _FLOOR) -> Tensor:
    """Lower triangular L (d, d) with L L^T = ``second`` plus a small multiple of the identity.

    second: (d, d) symmetric, positive semi-definite, float64.
    """
    size = second.shape[0]
    lift = floor * second.diagonal().mean().clamp_min(1e-30)
    for _ in range(6):
        lower: Tensor
        lower, failed = torch.linalg.cholesky_ex(second + lift * torch.eye(size).to(second))
        if not int(failed):
            return lower
        lift = 100 * lift
    return torch.eye(size).to(second)


def solve_right(left: Tensor, second: Tensor, floor: float = _FLOOR) -> Tensor:
    """``left @ inverse(second)``: (m, d), (d, d) -> (m, d)."""
    return torch.cholesky_solve(left.T, root(second, floor)).T


def last_factor(kernel: Tensor, features: Tensor, second: Tensor | None) -> Tensor:
    """The best (out, q) matrix A with A F x = W x on the data: least squares.

    kernel: W (out, d); features: F (q, d), what the factors before compute from a patch; second:
    C (d, d), or None for the identity.
    """
    weighted = features if second is None else features @ second
    return solve_right(kernel @ weighted.T, weighted @ features.T)


def balanced(first: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
    """The same product, rows of ``first`` (r, ...) as long as columns of ``last`` (o, r, ...)."""
    rows = first.flatten(1).norm(dim=1).clamp_min(1e-30)
    columns = last.transpose(0, 1).flatten(1).norm(dim=1)
    share = (columns / rows).sqrt()
    share = torch.where(share > 0, share, torch.ones_like(share))
    by_row = share.reshape(-1, *[1] * (first.dim() - 1))
    return first * by_row, last / share.reshape(1, -1, *[1] * (last.dim() - 2))
