"""How far outputs are from the original network's, without labels."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def divergence(original: Tensor, candidate: Tensor) -> float:
    """Mean KL(original || candidate) of the softmax outputs, nats, for outputs (n, 2 or more);
    mean squared error for others."""
    if original.ndim == 2 and original.shape[1] > 1:
        want, got = (t.double().log_softmax(1) for t in (original, candidate))
        return float(F.kl_div(got, want, reduction="batchmean", log_target=True))
    return float(F.mse_loss(candidate.double(), original.double()))
