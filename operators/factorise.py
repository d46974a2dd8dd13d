"""Low-rank factors in place of a layer: two or three smaller layers that compute much the same."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CandidateError
from ..spaces.factors import Shape, full_ranks, methods_for
from .cp import cp
from .depthwise import depthwise
from .module_cache import ModuleCache
from .svd import spatial_svd, svd
from .tucker import tucker2

DECOMPOSE = {
    "svd": svd,
    "spatial_svd": spatial_svd,
    "tucker2": tucker2,
    "cp": cp,
    "depthwise": depthwise,
}
"""Each takes a float64 kernel (out, in, kh, kw), its ranks and perhaps the second moments of the
patches, and gives the kernels of the layers that replace it, in order."""


def factorise(
    module: nn.Module,
    method: str,
    ranks: tuple[int, ...],
    name: str,
    second: Tensor | None = None,
) -> nn.Sequential:
    """Two or three smaller layers that stand for ``module``, in a Sequential.

    method: one of :data:`DECOMPOSE`: ``"svd"`` for a linear layer or a 1x1 convolution, the others
    for k x k convolutions. Stride, padding and dilation stay with the spatial taps, the bias with
    the last layer. second: (d, d) second moments of the patches (in, kh, kw) that the layer reads;
    then the outputs change least, else the weights do.
    Raises CandidateError, naming the layer, when the method or the ranks do not fit it.
    """
    if not isinstance(module, nn.Linear | nn.Conv2d):
        raise CandidateError(f"{name}: {type(module).__name__} cannot be factorised by {method!r}")
    groups = getattr(module, "groups", 1)
    if groups != 1:
        raise CandidateError(
            f"{name}: a grouped convolution ({groups} groups) cannot be factorised"
        )
    weight = module.weight.detach()
    kernel = (weight[:, :, None, None] if weight.dim() == 2 else weight).double()
    out, into, high, wide = kernel.shape
    kind = "linear" if isinstance(module, nn.Linear) else "conv"
    if method not in methods_for(kind, (high, wide), groups):
        what = "linear layer" if kind == "linear" else f"{high}x{wide} convolution"
        raise CandidateError(f"{name}: a {what} cannot be factorised by {method!r}")
    most = full_ranks(method, Shape(out, into, (high, wide)))
    if len(ranks) != len(most) or any(not 1 <= r <= m for r, m in zip(ranks, most, strict=True)):
        raise CandidateError(
            f"{name}: {method} rank {_said(ranks)} exceeds the layer's {_said(most)}"
        )
    if not bool(torch.isfinite(kernel).all()):
        raise CandidateError(f"{name}: its weights are not finite")
    try:
        kernels = DECOMPOSE[method](kernel, *ranks, second)  # type: ignore[operator]
    except RuntimeError as error:
        raise CandidateError(f"{name}: {method} at rank {_said(ranks)}: {error}") from error
    if not all(bool(torch.isfinite(k).all()) for k in kernels):
        raise CandidateError(f"{name}: {method} at rank {_said(ranks)} found no finite factors")
    return _chained(module, kernels)


def _said(ranks: tuple[int, ...]) -> str:
    return "x".join(str(r) for r in ranks)


def _chained(module: nn.Linear | nn.Conv2d, kernels: list[Tensor]) -> nn.Sequential:
    """Layers with these kernels; each spatial tap takes the stride, padding and dilation of its
    direction, the last layer the bias."""
    layers: list[nn.Module] = []
    spatial = [k for k in kernels if k.shape[2] * k.shape[3] > 1]
    for index, kernel in enumerate(kernels):
        bias = module.bias if index == len(kernels) - 1 else None
        if isinstance(module, nn.Linear):
            layer: Any = nn.Linear(kernel.shape[1], kernel.shape[0], bias=bias is not None)
            kernel = kernel[:, :, 0, 0]
        else:
            sides = _directions(kernel, spatial, first=index == 0)
            layer = _conv(module, kernel, sides, layers, bias is not None)
        with torch.no_grad():
            layer.weight.copy_(kernel)
            if bias is not None:
                layer.bias.copy_(bias)
        layers.append(layer)
    return nn.Sequential(*layers).eval()


def _directions(kernel: Tensor, spatial: list[Tensor], first: bool) -> tuple[bool, bool]:
    """Which directions (vertical, horizontal) a factor moves in."""
    if not spatial:
        return first, first  # a 1x1 kernel: its first factor
    if len(spatial) == 1:
        alone = kernel is spatial[0]
        return alone, alone
    return kernel is spatial[0], kernel is spatial[1]


def _conv(
    module: nn.Conv2d, kernel: Tensor, moves: tuple[bool, bool], before: list[nn.Module], bias: bool
) -> nn.Conv2d:
    """A convolution of this kernel that strides, pads and dilates only where it ``moves``."""
    reads: Any = before[-1].out_channels if before else module.in_channels

    def along(values: Any, still: int) -> tuple[int, int]:
        high, wide = (v if m else still for v, m in zip(values, moves, strict=True))
        return high, wide

    padding: Any = module.padding
    if not isinstance(padding, str):
        padding = along(padding, 0)
    elif not any(moves):
        padding = 0
    return nn.Conv2d(
        reads,
        kernel.shape[0],
        (kernel.shape[2], kernel.shape[3]),
        along(module.stride, 1),
        padding,
        along(module.dilation, 1),
        groups=reads // kernel.shape[1],
        bias=bias,
        padding_mode=module.padding_mode,
    )


class FactorCache:
    """Remembers factors by the content they were made from: candidates share most layers."""

    def __init__(self) -> None:
        self._kept: ModuleCache[nn.Sequential] = ModuleCache()

    def factorise(
        self, module: nn.Module, method: str, ranks: tuple[int, ...], name: str
    ) -> nn.Sequential:
        """The same as :func:`factorise`; a copy of the remembered factors where there are any."""
        digest = hashlib.sha256(repr(module).encode())
        for tensor in module.state_dict().values():
            digest.update(tensor.numpy().tobytes())
        key = (method, ranks, digest.digest())
        return self._kept.get(key, lambda: factorise(module, method, ranks, name))
