"""A float32 network that computes like its quantised file: rounded weights and activations.

Simulated quantisation as in Jacob et al., "Quantization and Training of Neural Networks for
Efficient Integer-Arithmetic-Only Inference" (CVPR 2018, section 3), with the very scales of the
exported file: BatchNorm folded into the weights first, weights per output channel and symmetric,
activations unsigned with a zero point. Weights of fewer bits, with a zero point or with a scale a
group are rounded as the file stores them.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.overrides import TorchFunctionMode

from ..spaces.trace import is_plain_layer
from ..targets.onnx_scales import Affine, LayerScales
from ..targets.target import Grid
from ..targets.uniform import to_floats, to_integers
from .sums import is_plain_norm


def round_affine(x: Tensor, affine: Affine) -> Tensor:
    """``x`` rounded to the nearest representable value (half to even), clamped to the range."""
    integers = torch.round(x / affine.scale) + affine.zero_point
    return (integers.clamp(affine.low, affine.high) - affine.zero_point) * affine.scale


def round_weight(weight: Tensor, scale: Tensor, most: int) -> Tensor:
    """Weights as integers from -``most`` to ``most``, one scale per output channel (axis 0)."""
    by_channel = scale.reshape(-1, *[1] * (weight.dim() - 1))
    return torch.round(weight / by_channel).clamp(-most, most)


def batchnorms_behind(network: nn.Module, example: Tensor) -> dict[str, str]:
    """Convolution -> the BatchNorm that alone reads its output, both called once: what can be
    folded.

    network: eval mode; example: (1, ...) float32, run once to see which follows which.
    """
    makers: dict[int, str] = {}
    pairs: dict[str, str] = {}
    calls: Counter[str] = Counter()
    readers = _Readers()

    def made(_: nn.Module, __: tuple[Tensor, ...], out: Tensor, name: str) -> None:
        calls[name] += 1
        makers[id(out)] = name

    def read(_: nn.Module, args: tuple[Tensor, ...], name: str) -> None:
        calls[name] += 1
        if id(args[0]) in makers:
            pairs[makers[id(args[0])]] = name

    with ExitStack() as watching:
        for name, module in network.named_modules():
            if isinstance(module, nn.Conv2d) and is_plain_layer(module):
                hook = module.register_forward_hook(lambda m, a, o, n=name: made(m, a, o, n))
                watching.callback(hook.remove)
            elif isinstance(module, nn.BatchNorm2d) and is_plain_norm(module):
                hook = module.register_forward_pre_hook(lambda m, a, n=name: read(m, a, n))
                watching.callback(hook.remove)
        watching.enter_context(torch.no_grad())
        watching.enter_context(readers)
        network(example)
    alone = {name for key, name in makers.items() if readers.counts[key] == 1}
    return {c: b for c, b in pairs.items() if c in alone and calls[c] == calls[b] == 1}


class _Readers(TorchFunctionMode):
    """Counts, while active, the functions that read each tensor and give one."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[int] = Counter()
        self._kept: list[Tensor] = []  # alive, so that no two share an id

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor):
            every = (*args, *(kwargs or {}).values())
            given = [x for a in every for x in (a if isinstance(a, list | tuple) else (a,))]
            read = {id(x): x for x in given if isinstance(x, Tensor)}
            self.counts.update(read.keys())
            self._kept += [out, *read.values()]
        return out


def fold_batchnorm(network: nn.Module, example: Tensor) -> nn.Module:
    """A copy in which each BatchNorm that reads one convolution's output is folded into it."""
    folded = copy.deepcopy(network).eval()
    for conv_name, bn_name in batchnorms_behind(folded, example).items():
        conv: Any = folded.get_submodule(conv_name)
        bn: Any = folded.get_submodule(bn_name)
        folded.set_submodule(conv_name, fuse_conv_bn_eval(conv, bn))
        folded.set_submodule(bn_name, nn.Identity())
    return folded


def fake_quantise(
    network: nn.Module, example: Tensor, scales: Mapping[str, LayerScales]
) -> nn.Module:
    """A copy of ``network``, for inference, that rounds what the quantised file rounds.

    What a layer reads is rounded for all who read it, as in the file: a shortcut carries rounded
    values too. network: the float32 network that was exported, eval mode. scales: of the exported
    file, by layer (see :func:`paretune.targets.onnx_scales.read_scales`); layers not named stay
    float32.
    """
    made = fold_batchnorm(network, example)
    for name, layer in scales.items():
        module = made.get_submodule(name)
        weight, bias = module.weight, module.bias
        if not isinstance(weight, Tensor):
            raise TypeError(type(module).__name__)
        grid = Grid(layer.weight_scale, zero_point=layer.zero_point)
        most = max(int(abs(layer.weight.astype("int32")).max()), 1)
        least = -most if layer.zero_point is None else 0
        integers = to_integers(weight.detach().numpy(), grid, least, most)
        with torch.no_grad():
            weight.copy_(torch.from_numpy(to_floats(integers, grid)))
            if isinstance(bias, Tensor) and layer.input is not None:
                scale = torch.from_numpy(layer.weight_scale.copy()).to(weight.dtype)
                step = scale * layer.input.scale
                bias.copy_(torch.round(bias / step) * step)
        _round_around(module, layer)
    made.register_forward_pre_hook(lambda _, args: tuple(a.clone() for a in args))
    return made


def _round_around(module: nn.Module, layer: LayerScales) -> None:
    def before(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if layer.input is not None:
            args[0].copy_(round_affine(args[0], layer.input))
        return args

    def after(_: nn.Module, __: tuple[Tensor, ...], out: Tensor) -> Tensor:
        return out if layer.output is None else round_affine(out, layer.output)

    module.register_forward_pre_hook(before)
    module.register_forward_hook(after)
