"""CP: a k x k kernel as 1x1, depthwise k x k and 1x1, a sum of rank-one tensors."""

from __future__ import annotations

import warnings

import tensorly
import torch
from tensorly.decomposition import parafac
from torch import Tensor

from .metric import last_factor

_WORK = 4e9  # multiply-accumulates that the sweeps of one kernel may take together
_SWEEPS = (8, 60)  # fewest, most
_RIDGE = 1e-3  # keeps terms from growing against each other (CP degeneracy)


def cp(kernel: Tensor, rank: int, second: Tensor | None = None) -> list[Tensor]:
    """Kernels (r, in, 1, 1), (r, 1, kh, kw) and (out, r, 1, 1) of a kernel (out, in, kh, kw).

    Lebedev et al., "Speeding-up Convolutional Neural Networks Using Fine-tuned CP-Decomposition"
    (ICLR 2015, section 3), with the two spatial modes of the small kernel kept together: fewer
    layers and a better fit at the same rank. Tensorly's alternating least squares, started from
    singular vectors; the number of sweeps follows from the kernel's size, so that the time is
    bounded and the result repeats. A small ridge keeps the terms from cancelling each other
    (Phan et al., "Stable Low-rank Tensor Decomposition", ECCV 2020). The output factor is fitted
    last by least squares, to the data where ``second`` (in kh kw, in kh kw) is given.
    """
    out, into, high, wide = kernel.shape
    tensor = kernel.reshape(out, into, high * wide)
    if not bool(tensor.any()):
        shapes = ((rank, into, 1, 1), (rank, 1, high, wide), (out, rank, 1, 1))
        return [kernel.new_zeros(shape) for shape in shapes]
    sweep = 3 * tensor.numel() * rank
    sweeps = int(min(max(_WORK / sweep, _SWEEPS[0]), _SWEEPS[1]))
    scale = tensor.square().mean().sqrt().clamp_min(1e-30)
    with (
        tensorly.backend_context("pytorch", local_threadsafe=True),
        torch.random.fork_rng(),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        _, (_, reads, taps) = parafac(
            tensor / scale,
            rank,
            n_iter_max=sweeps,
            init="svd",
            normalize_factors=True,
            tol=1e-6,
            random_state=0,
            l2_reg=_RIDGE,
        )
    features = torch.einsum("cr,tr->rct", reads, taps).reshape(rank, -1)
    last = last_factor(kernel.flatten(1), features, second)
    share = last.norm(dim=0).clamp_min(1e-30) ** (1 / 3)
    first, middle = reads.T * share[:, None], taps.T * share[:, None]
    last = last / share.square()
    return [
        first[:, :, None, None],
        middle.reshape(rank, 1, high, wide),
        last[:, :, None, None],
    ]
