"""Rounding up or down learned so that a layer's results stay what they were (AdaRound)."""

from __future__ import annotations

import time

import numpy as np
import torch
from torch import Tensor, nn

from ..targets.target import Grid

STRETCH = (-0.1, 1.1)
WEIGHT = 0.01
_BATCH, _WARM = 32, 0.2


def learn_rounding(
    layer: nn.Conv1d | nn.Conv2d | nn.Linear,
    grid: Grid,
    most: int,
    inputs: Tensor,
    expected: Tensor,
    *,
    iterations: int = 600,
    seconds: float = 10.0,
    rate: float = 1e-2,
    seed: int = 0,
) -> np.ndarray:
    """Integers (int32, like the weight) for which the layer's results are nearest to ``expected``.

    Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization" (ICML 2020),
    section 3: the fraction each weight is rounded up by is a rectified sigmoid (equation 23) of a
    free variable, pushed to 0 or 1 by a regulariser whose exponent falls from 20 to 2 (equation
    24), and the squared error of the layer's results is minimised (asymmetric: the inputs come
    from the network quantised so far, the expected results from the float one).

    layer: Conv1d, Conv2d or Linear, not modified. grid: symmetric scales (out,) or (); integers lie
    between -most and most. inputs, expected: (n, ...) of the layer itself. Ends after
    ``iterations`` or ``seconds``; weights not decided by then take the nearer of the two, and the
    result is nearest rounding where that has the smaller error. Zero weights stay zero.
    """
    weight = layer.weight.detach()
    scale = torch.from_numpy(np.array(grid.weight_scale, dtype=np.float32))
    scale = scale.reshape(-1, *[1] * (weight.dim() - 1)) if scale.dim() else scale
    low = torch.floor(weight / scale)
    fraction = (weight / scale - low).clamp(0, 1)
    span = STRETCH[1] - STRETCH[0]
    inside = ((fraction - STRETCH[0]) / span).clamp(1e-4, 1 - 1e-4)
    free = torch.log(inside / (1 - inside)).requires_grad_(True)
    optimiser = torch.optim.Adam([free], lr=rate)
    generator = torch.Generator().manual_seed(seed)
    bias = None if layer.bias is None else layer.bias.detach()

    def result(x: Tensor, integers: Tensor) -> Tensor:
        rounded = integers.clamp(-most, most) * scale
        if isinstance(layer, nn.Linear):
            return nn.functional.linear(x, rounded, bias)
        out: Tensor = layer._conv_forward(x, rounded, bias)
        return out

    end = time.monotonic() + seconds
    power = float(expected.detach().square().mean()) + 1e-12
    with torch.enable_grad():
        for step in range(iterations):
            done = max(step / iterations, 1 - (end - time.monotonic()) / seconds)
            if done >= 1:
                break
            picks = torch.randint(len(inputs), (min(_BATCH, len(inputs)),), generator=generator)
            up = (torch.sigmoid(free) * span + STRETCH[0]).clamp(0, 1)
            error = result(inputs[picks], low + up) - expected[picks]
            loss = error.square().mean() / power
            if done >= _WARM:
                fall = (done - _WARM) / (1 - _WARM)
                beta = 2 + 18 * 0.5 * (1 + float(np.cos(fall * np.pi)))
                loss = loss + WEIGHT * (1 - (2 * up - 1).abs().pow(beta)).mean()
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    with torch.no_grad():
        up = (torch.sigmoid(free) * span + STRETCH[0]).clamp(0, 1)
        learned = (low + (up >= 0.5)).clamp(-most, most) * (weight != 0)
        plain = torch.round(weight / scale).clamp(-most, most)
        errors = [float((result(inputs, q) - expected).square().mean()) for q in (learned, plain)]
    best = learned if errors[0] <= errors[1] else plain
    return np.asarray(best.numpy().astype(np.int32))
