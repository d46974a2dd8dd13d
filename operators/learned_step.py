"""Quantisation-aware training with learned step sizes, and the file's grids that come of it.

Esser et al., "Learned Step Size Quantization" (ICLR 2020), section 2: a value is rounded to
``s * round(clamp(x / s, low, high))`` in the forward pass; backwards, rounding passes the gradient
straight through (Bengio et al. 2013), so that with the rounding error ``c = round(v) - v`` held
fixed the gradients are those of the surrogate ``s * (clamp(x / s, low, high) + c)``. The gradient
of a step is scaled by ``1 / sqrt(n * high)``, n being the number of values that share it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import CandidateError
from ..targets.cpu import saturates_int8
from ..targets.onnx_pack import check_weights
from ..targets.target import Bits, Grid
from ..targets.uniform import limits, weight_grid
from .round_points import round_points

_LEVELS = 255  # of an 8-bit activation
_LEAST_STEP = 1e-12


def learned_round(x: Tensor, step: Tensor, low: int, high: int) -> Tensor:
    """``x`` rounded to multiples of ``step``; gradients as the module's text says.

    x: (out, ...) or any shape; step: () or (out,), then one a row of ``x``. Integers lie between
    ``low`` and ``high``. Computed in float32 whatever the type of ``x``, which the result has.
    """
    rows = x.float().reshape(*step.shape, -1) if step.dim() else x.float()
    shared = x.numel() // step.numel() if step.dim() else x[0].numel() if x.dim() else 1
    share: float = (max(shared, 1) * max(high, 1)) ** -0.5
    size = step.abs().clamp_min(_LEAST_STEP)
    size = (size * share) + (size - size * share).detach()  # the value of size, share of its slope
    size = size.unsqueeze(-1) if step.dim() else size
    inside = (rows / size).clamp(low, high)
    rounded = inside + (inside.round() - inside).detach()
    return (rounded * size).reshape(x.shape).to(x.dtype)


class Rounding(nn.Module):
    """8-bit rounding of an activation with a learned step and a fixed zero point."""

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        low, high = min(low, 0.0), max(high, 0.0)
        step = (high - low) / _LEVELS or 1.0
        self.step = nn.Parameter(torch.tensor(step))
        self.zero_point = round(-low / step)

    def forward(self, x: Tensor) -> Tensor:
        return learned_round(x, self.step, -self.zero_point, _LEVELS - self.zero_point)

    @property
    def size(self) -> Tensor:
        """The step, above zero: ()."""
        return self.step.detach().abs().clamp_min(_LEAST_STEP)

    @property
    def range(self) -> tuple[float, float]:
        """The smallest and largest value it gives."""
        step = float(self.size)
        return (-self.zero_point * step, (_LEVELS - self.zero_point) * step)


class _Rounded(nn.Module):
    """What a convolution or linear layer needs to round its weights (and its input) first.

    weight_step: (out,), or None for float weights. rounds_input: False where ``input_rounding``
    acts already on the module that makes the input. rounds_products: whether ``output_rounding``
    acts before the bias is added. plain: the class it had before.
    """

    weight: Tensor
    weight_step: nn.Parameter | None
    input_rounding: Rounding | None
    output_rounding: Rounding | None
    rounds_input: bool
    rounds_products: bool
    weight_limits: tuple[int, int]
    plain: type[nn.Module]

    def _given(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.rounds_input and self.input_rounding is not None:
            x = self.input_rounding(x)
        if self.weight_step is None:
            return x, self.weight
        return x, learned_round(self.weight, self.weight_step, *self.weight_limits)


class RoundedConv2d(_Rounded, nn.Conv2d):
    """A 2-D convolution with rounded weights."""

    def forward(self, x: Tensor) -> Tensor:
        x, weight = self._given(x)
        out: Tensor = self._conv_forward(x, weight, self.bias)
        return out


class RoundedConv1d(_Rounded, nn.Conv1d):
    """A 1-D convolution with rounded weights."""

    def forward(self, x: Tensor) -> Tensor:
        x, weight = self._given(x)
        out: Tensor = self._conv_forward(x, weight, self.bias)
        return out


class RoundedLinear(_Rounded, nn.Linear):
    """A linear layer with rounded weights."""

    def forward(self, x: Tensor) -> Tensor:
        x, weight = self._given(x)
        if self.rounds_products and self.output_rounding is not None:
            products: Tensor = self.output_rounding(nn.functional.linear(x, weight))
            return products + self.bias
        return nn.functional.linear(x, weight, self.bias)


_CLASSES = ((nn.Conv2d, RoundedConv2d), (nn.Conv1d, RoundedConv1d), (nn.Linear, RoundedLinear))


def prepare(
    network: nn.Module,
    bits: Mapping[str, Bits],
    calibration: Tensor,
    *,
    reduce_range: bool | None = None,
) -> nn.Module:
    """A copy of ``network`` to train: it rounds what its exported file will round.

    network: CPU, BatchNorm not folded; not modified. bits: by module name, for convolutions and
    linear layers; others stay float32. calibration: (n, ...) float32 inputs that the first steps
    come from: the least squares scale for weights (instead of the paper's 2 mean|w| / sqrt(high)),
    the range for activations. reduce_range: 8-bit weights from -64 to 64; None = as this
    processor's exported files have it. The steps are parameters like the weights; train() and
    eval() both round. Module names and the keys of weights stay.

    Raises CandidateError naming a layer that cannot be rounded.
    """
    check_weights(network, bits)
    reduced = saturates_int8() if reduce_range is None else reduce_range
    made = copy.deepcopy(network)
    wanted = {name: b for name, b in bits.items() if b != Bits()}
    if not wanted:
        return made
    eight = [name for name, b in wanted.items() if b.activation < 32]
    points = round_points(made.eval(), eight, calibration)
    made_by = [Rounding(*point.range) for point in points]
    for name, b in wanted.items():
        module = made.get_submodule(name)
        kind = next((r for k, r in _CLASSES if isinstance(module, k)), None)
        if kind is None:
            raise CandidateError(f"{name}: {type(module).__name__} cannot be trained rounded")
        _round(module, kind, name, b, reduced)
    for point, rounding in zip(points, made_by, strict=True):
        for name in point.readers:
            layer: Any = made.get_submodule(name)
            layer.input_rounding = rounding
            layer.rounds_input = point.behind is None
        if point.behind is not None:
            producer = made.get_submodule(point.behind)
            producer.rounding_behind = rounding
            producer.register_forward_hook(round_behind)
        if point.layer is not None:
            layer = made.get_submodule(point.layer)
            layer.output_rounding = rounding
            layer.rounds_products = point.behind is None
            if point.bias and layer.weight_step is not None:
                producer.__dict__["ended_layer"] = layer  # not a submodule of its BatchNorm
    return made.train(network.training)


def settle(network: nn.Module) -> tuple[nn.Module, dict[str, Grid]]:
    """The trained network as plain modules, its weights exactly on their grids, and the grids.

    network: from :func:`prepare`, on any device; not modified. The result is on the CPU in eval
    mode; hand it to ``Target.export`` with the same bits and the grids, by module name.
    """
    made = copy.deepcopy(network).cpu().eval()
    grids: dict[str, Grid] = {}
    for name, module in list(made.named_modules()):
        if isinstance(module, _Rounded):
            grids[name] = _settled(module)
    for module in made.modules():
        for key, hook in list(module._forward_hooks.items()):
            if hook is round_behind:
                del module._forward_hooks[key]
        for unused in ("rounding_behind", "input_rounding", "output_rounding", "ended_layer"):
            module._modules.pop(unused, None)
            module.__dict__.pop(unused, None)
    return made, grids


def round_behind(module: Any, _: object, out: Tensor) -> Tensor:
    """A forward hook that rounds what ``module`` gives, in eval mode with the file's bias."""
    layer = module.__dict__.get("ended_layer")
    if layer is not None and not module.training:
        out = out + _bias_error(layer, module).to(out)
    return module.rounding_behind(out)  # type: ignore[no-any-return]


@torch.no_grad()
def _bias_error(layer: Any, end: Any) -> Tensor:
    """What rounding its bias adds to the result of ``layer``: (out,) and its places.

    The file holds the bias, with the BatchNorm ``end`` folded in, as integers whose step is that of
    the layer's products: that of its input times that of its weights.
    """
    step = layer.input_rounding.size * layer.weight_step.abs().clamp_min(_LEAST_STEP)
    bias = torch.zeros_like(step) if layer.bias is None else layer.bias
    if end is not layer:
        gain = (end.running_var + end.eps).rsqrt()
        gain = gain if end.weight is None else gain * end.weight
        bias = (bias - end.running_mean) * gain + (0 if end.bias is None else end.bias)
        step = torch.where(gain == 0, step, step * gain.abs())
    error: Tensor = (bias / step).round() * step - bias
    return error.reshape(-1, *[1] * (layer.weight.dim() - 2))


def _round(module: Any, kind: type, name: str, bits: Bits, reduced: bool) -> None:
    """Turn ``module`` into its rounding kind, in place: names and parameters stay."""
    plain, step = type(module), None
    module.weight_limits = limits(bits.weight, True, reduced and bits.activation == 8)
    if bits.weight < 32:
        grid = weight_grid(
            module.weight.detach().numpy(),
            bits.weight,
            ranges="mse",
            reduce_range=reduced and bits.activation == 8,
            name=name,
        )
        scale = torch.from_numpy(np.array(grid.weight_scale))
        step = nn.Parameter(scale, requires_grad=module.weight.requires_grad)
    module.__class__ = kind
    module.plain, module.rounds_input, module.rounds_products = plain, False, False
    module.register_parameter("weight_step", step)
    module.input_rounding = module.output_rounding = None


def _settled(module: Any) -> Grid:
    """Put the weights on their grid and make the module plain again, in place."""
    scale = np.ones(len(module.weight), dtype=np.float32)
    if module.weight_step is not None:
        with torch.no_grad():
            weight = learned_round(module.weight, module.weight_step, *module.weight_limits)
            module.weight.copy_(weight)
        scale = module.weight_step.detach().abs().clamp_min(_LEAST_STEP).numpy().copy()
    given, result = module.input_rounding, module.output_rounding
    grid = Grid(
        scale,
        None if given is None else given.range,
        None if result is None else result.range,
    )
    module.__class__ = module.plain
    for unused in ("plain", "rounds_input", "rounds_products", "weight_limits"):
        delattr(module, unused)
    module._parameters.pop("weight_step")
    return grid
