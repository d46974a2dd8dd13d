"""Tucker-2: a k x k kernel as 1x1, a smaller k x k core, and 1x1, plain or weighted by the data."""

from __future__ import annotations

import tensorly
import torch
from tensorly.base import unfold
from tensorly.tenalg import mode_dot
from torch import Tensor

from .metric import last_factor, root

_SWEEPS, _GAIN = 30, 1e-5  # at most; stop when the core's norm grows by less than this share


def tucker2(kernel: Tensor, r_out: int, r_in: int, second: Tensor | None = None) -> list[Tensor]:
    """Kernels (r_in, in, 1, 1), (r_out, r_in, kh, kw) and (out, r_out, 1, 1) of (out, in, kh, kw).

    Kim et al., "Compression of Deep CNNs for Fast and Low Power Mobile Applications" (ICLR 2016,
    section 3.1), by higher-order orthogonal iteration. second: (in kh kw, in kh kw) of the
    patches: the input factor is then found with the input channels weighted by their own moments,
    and core and output factor are the best ones behind it: reduced-rank regression (Izenman, 1975;
    used for convolutions by Zhang et al., TPAMI 2016, section 3.1).
    """
    if second is None:
        core, out, into = iterate(kernel, r_out, r_in)
        return [into.T[:, :, None, None], core, out[:, :, None, None]]
    channels, high, wide = kernel.shape[1:]
    parts = second.reshape(channels, high * wide, channels, high * wide)
    lower = root(torch.einsum("atbt->ab", parts))
    _, _, into = iterate(torch.einsum("ochw,cd->odhw", kernel, lower), r_out, r_in)
    first = torch.linalg.solve_triangular(lower, into.T, upper=False, left=False)
    first = first / first.norm(dim=1, keepdim=True).clamp_min(1e-30)
    core, out = _behind(kernel, first, r_out, second)
    return [first[:, :, None, None], core, out[:, :, None, None]]


def _behind(kernel: Tensor, first: Tensor, r_out: int, second: Tensor) -> tuple[Tensor, Tensor]:
    """The best core (r_out, r_in, kh, kw) and output factor (out, r_out) behind ``first``."""
    r_in, (high, wide) = len(first), kernel.shape[2:]
    taps = torch.eye(high * wide).to(kernel)
    reads = torch.einsum("rc,tu->rtcu", first, taps).reshape(r_in * high * wide, -1)
    behind = last_factor(kernel.flatten(1), reads, second)
    moments = root(reads @ second @ reads.T)
    u, _, _ = torch.linalg.svd(behind @ moments, full_matrices=False)
    out = u[:, :r_out]
    return (out.T @ behind).reshape(r_out, r_in, high, wide), out


def iterate(kernel: Tensor, r_out: int, r_in: int) -> tuple[Tensor, Tensor, Tensor]:
    """Core (r_out, r_in, kh, kw) and orthonormal factors (out, r_out), (in, r_in) of a kernel.

    Higher-order orthogonal iteration over the two channel modes (De Lathauwer et al., "On the Best
    Rank-1 and Rank-(R1,...,RN) Approximation", 2000, section 4). The leading singular vectors of an
    unfolding come from its small Gram matrix instead of a decomposition of the whole unfolding.
    """
    with tensorly.backend_context("pytorch", local_threadsafe=True):
        into = _leading(unfold(kernel, 1), r_in)
        out = _leading(unfold(kernel, 0), r_out)
        core, before = mode_dot(mode_dot(kernel, out.T, 0), into.T, 1), 0.0
        for _ in range(_SWEEPS):
            norm = float(core.norm())
            if norm <= before * (1 + _GAIN):
                break
            before = norm
            out = _leading(unfold(mode_dot(kernel, into.T, 1), 0), r_out)
            into = _leading(unfold(mode_dot(kernel, out.T, 0), 1), r_in)
            core = mode_dot(mode_dot(kernel, out.T, 0), into.T, 1)
    return core, out, into


def _leading(unfolded: Tensor, rank: int) -> Tensor:
    """The ``rank`` leading left singular vectors, as columns."""
    _, vectors = torch.linalg.eigh(unfolded @ unfolded.T)  # ascending eigenvalues
    leading: Tensor = vectors[:, -rank:].flip(1)
    return leading
