"""Low-rank factors in place of a layer: SVD for linear and 1x1, Tucker-2 for k x k convolutions."""

from __future__ import annotations

import copy
import hashlib
from collections import OrderedDict
from typing import Any

import tensorly
import torch
from tensorly.base import unfold
from tensorly.tenalg import mode_dot
from torch import Tensor, nn

from ..errors import CandidateError

_SWEEPS, _GAIN = 30, 1e-5  # at most; stop when the core's norm grows by less than this share


def factorise(module: nn.Module, method: str, ranks: tuple[int, ...], name: str) -> nn.Sequential:
    """Two or three smaller layers that stand for ``module``, in a Sequential.

    method ``"svd"``: rank-r truncated singular value decomposition, the optimal rank-r factors
    (Eckart & Young, 1936), for a linear layer or a 1x1 convolution. ``"tucker2"``: 1x1, k x k core
    and 1x1 (Kim et al., "Compression of Deep CNNs for Fast and Low Power Mobile Applications",
    ICLR 2016, section 3.1), by higher-order orthogonal iteration.
    Raises CandidateError, naming the layer, when the method or the ranks do not fit it.
    """
    if method == "svd" and isinstance(module, nn.Linear):
        return _svd_linear(
            module, *_fitting(ranks, (module.out_features, module.in_features), name)
        )
    if isinstance(module, nn.Conv2d) and module.groups == 1:
        if method == "svd" and module.kernel_size == (1, 1):
            return _svd_conv(
                module, *_fitting(ranks, (module.out_channels, module.in_channels), name)
            )
        if method == "tucker2":
            r_out, r_in = ranks
            if r_out > module.out_channels or r_in > module.in_channels:
                raise CandidateError(
                    f"{name}: Tucker ranks {ranks} exceed its "
                    f"{module.out_channels}x{module.in_channels} channels"
                )
            return _tucker2(module, r_out, r_in)
    raise CandidateError(f"{name}: {type(module).__name__} cannot be factorised by {method!r}")


class FactorCache:
    """Remembers factors by the content they were made from: candidates share most layers."""

    def __init__(self, most_bytes: int = 256 << 20) -> None:
        self._kept: OrderedDict[tuple[object, ...], nn.Sequential] = OrderedDict()
        self._bytes, self._most = 0, most_bytes

    def factorise(
        self, module: nn.Module, method: str, ranks: tuple[int, ...], name: str
    ) -> nn.Sequential:
        """The same as :func:`factorise`; a copy of the remembered factors where there are any."""
        digest = hashlib.sha256(repr(module).encode())
        for tensor in module.state_dict().values():
            digest.update(tensor.numpy().tobytes())
        key = (method, ranks, digest.digest())
        if key in self._kept:
            self._kept.move_to_end(key)
            return copy.deepcopy(self._kept[key])
        made = factorise(module, method, ranks, name)
        self._kept[key] = copy.deepcopy(made)
        self._bytes += _size(made)
        while self._bytes > self._most and len(self._kept) > 1:
            self._bytes -= _size(self._kept.popitem(last=False)[1])
        return made


def _size(module: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in module.parameters())


def _fitting(ranks: tuple[int, ...], shape: tuple[int, int], name: str) -> tuple[int]:
    (rank,) = ranks
    if rank > min(shape):
        raise CandidateError(f"{name}: rank {rank} exceeds the layer's {min(shape)}")
    return (rank,)


def _svd_factors(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    u, s, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    root = s[:rank].sqrt()
    return (u[:, :rank] * root).to(matrix.dtype), (root[:, None] * v[:rank]).to(matrix.dtype)


def _svd_linear(module: nn.Linear, rank: int) -> nn.Sequential:
    left, right = _svd_factors(module.weight.detach(), rank)
    first = nn.Linear(module.in_features, rank, bias=False)
    second = nn.Linear(rank, module.out_features, bias=module.bias is not None)
    return _filled([first, second], [right, left], module.bias)


def _svd_conv(module: nn.Conv2d, rank: int) -> nn.Sequential:
    left, right = _svd_factors(module.weight.detach().flatten(1), rank)
    stride: Any = module.stride
    padding: Any = module.padding
    first = nn.Conv2d(module.in_channels, rank, 1, stride, padding, bias=False)
    second = nn.Conv2d(rank, module.out_channels, 1, bias=module.bias is not None)
    return _filled([first, second], [right[:, :, None, None], left[:, :, None, None]], module.bias)


def _tucker2(module: nn.Conv2d, r_out: int, r_in: int) -> nn.Sequential:
    core, out, into = tucker2(module.weight.detach(), r_out, r_in)
    first = nn.Conv2d(module.in_channels, r_in, 1, bias=False)
    shape: dict[str, Any] = {
        name: getattr(module, name) for name in ("kernel_size", "stride", "padding", "dilation")
    }
    middle = nn.Conv2d(r_in, r_out, bias=False, **shape)
    last = nn.Conv2d(r_out, module.out_channels, 1, bias=module.bias is not None)
    return _filled(
        [first, middle, last], [into.T[:, :, None, None], core, out[:, :, None, None]], module.bias
    )


def tucker2(weight: Tensor, r_out: int, r_in: int) -> tuple[Tensor, Tensor, Tensor]:
    """Core (r_out, r_in, k, k) and factors (out, r_out), (in, r_in) of a kernel (out, in, k, k).

    Higher-order orthogonal iteration over the two channel modes (De Lathauwer et al., "On the Best
    Rank-1 and Rank-(R1,...,RN) Approximation", 2000, section 4). The leading singular vectors of an
    unfolding come from its small Gram matrix instead of a decomposition of the whole unfolding.
    """
    with tensorly.backend_context("pytorch", local_threadsafe=True):
        kernel = weight.double()
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
    return core.to(weight.dtype), out.to(weight.dtype), into.to(weight.dtype)


def _leading(unfolded: Tensor, rank: int) -> Tensor:
    """The ``rank`` leading left singular vectors, as columns."""
    _, vectors = torch.linalg.eigh(unfolded @ unfolded.T)  # ascending eigenvalues
    leading: Tensor = vectors[:, -rank:].flip(1)
    return leading


def _filled(
    layers: list[nn.Linear | nn.Conv2d], weights: list[Tensor], bias: Tensor | None
) -> nn.Sequential:
    with torch.no_grad():
        for layer, weight in zip(layers, weights, strict=True):
            layer.weight.copy_(weight)
        if bias is not None and layers[-1].bias is not None:
            layers[-1].bias.copy_(bias)
    return nn.Sequential(*layers).eval()
