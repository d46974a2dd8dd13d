"""Patches that a layer reads and outputs that it gives, at a few places of every image."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..spaces.trace import is_plain_layer

_CHUNK_BYTES = 64 << 20
_OUTPUT_BYTES = 256 << 20  # of the largest layer output of all images together


def is_sampled(module: nn.Module) -> bool:
    """Whether its outputs are sums over patches that all its weights read."""
    if not is_plain_layer(module):
        return False
    return isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)


WIDEST = 1152
"""Inputs of one output up to which a layer is fitted: the cost grows with their third power."""


def is_fitted(module: nn.Module) -> bool:
    """Whether least squares over its patches is affordable, candidate after candidate."""
    weight = getattr(module, "weight", None)
    return is_sampled(module) and weight is not None and weight[0].numel() <= WIDEST


def affordable(network: nn.Module, example: Tensor, most: int) -> int:
    """How many images may go through ``network`` at once: ``most``, fewer where its layers' outputs
    are large (at least 8). example: (1, ...) float32."""
    largest = 1

    def measure(_: nn.Module, __: tuple[Tensor, ...], out: Tensor) -> None:
        nonlocal largest
        largest = max(largest, out.numel())

    hooks = [m.register_forward_hook(measure) for m in network.modules() if is_sampled(m)]
    with torch.inference_mode():
        network(example)
    for hook in hooks:
        hook.remove()
    return min(most, max(8, _OUTPUT_BYTES // (4 * largest)))


def by_token(module: nn.Module, output: Tensor) -> Tensor:
    """A linear layer's output (n, ..., channels) as (n, tokens, channels), also over an image;
    a convolution's as it is."""
    if not isinstance(module, nn.Linear):
        return output
    return output.reshape(len(output), -1, output.shape[-1])


@dataclass(frozen=True)
class Places:
    """Where a layer is sampled: output rows and columns, each (images, places) int64.

    For a linear layer ``rows`` are tokens and ``columns`` is zero.
    """

    rows: Tensor
    columns: Tensor

    @classmethod
    def draw(cls, output: Tensor, count: int, generator: torch.Generator) -> Places:
        """At most ``count`` places an image of an output (n, c, h, w), or (n, tokens, c): see
        :func:`by_token`; all of them where there are no more."""
        images = output.shape[0]
        high, wide = output.shape[2:] if output.dim() == 4 else (output.shape[1], 1)
        if high * wide <= count:
            chosen = torch.arange(high * wide).expand(images, -1)
        else:
            chosen = torch.rand(images, high * wide, generator=generator).argsort(1)[:, :count]
        return cls(chosen // wide, chosen % wide)

    def outputs(self, output: Tensor) -> Tensor:
        """The outputs there: (images, places, channels)."""
        which = torch.arange(output.shape[0])[:, None]
        if output.dim() == 4:
            return output[which, :, self.rows, self.columns]
        return output[which, self.rows]

    def patches(self, module: nn.Module, given: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """What ``module`` reads for them: (images, (images places, in kh kw)), chunk by chunk."""
        conv = isinstance(module, nn.Conv2d)
        taps = module.kernel_size[0] * module.kernel_size[1] if isinstance(module, nn.Conv2d) else 1
        channels = given.shape[1 if conv else -1]
        each = 4 * self.rows.shape[1] * taps * channels
        step = max(1, _CHUNK_BYTES // each)
        for start in range(0, given.shape[0], step):
            images = slice(start, start + step)
            yield images, self._read(module, given[images], images)

    def _read(self, module: nn.Module, given: Tensor, images: slice) -> Tensor:
        rows, columns = self.rows[images], self.columns[images]
        which = torch.arange(given.shape[0])[:, None]
        if not isinstance(module, nn.Conv2d):
            return given.reshape(len(given), -1, given.shape[-1])[which, rows].flatten(0, 1)
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        padded = functional.pad(given, module._reversed_padding_repeated_twice, mode)
        padded = padded.permute(0, 2, 3, 1).contiguous()  # a place's channels side by side: faster
        rows, columns = rows * module.stride[0], columns * module.stride[1]
        taps = [
            padded[which, rows + i * module.dilation[0], columns + j * module.dilation[1]]
            for i in range(module.kernel_size[0])
            for j in range(module.kernel_size[1])
        ]
        return torch.stack(taps, 3).flatten(0, 1).flatten(1)
