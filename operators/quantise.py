"""Weights put on the grid that their file stores: ranges, rounding, biases corrected."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..targets.cpu import saturates_int8
from ..targets.onnx_pack import check_weights
from ..targets.target import Bits, Grid
from ..targets.uniform import limits, to_floats, to_integers, weight_grid
from ..tasks.compress_section import CompressSection
from .bias_correction import correct_biases, output_means
from .codebook import to_apot, to_codebook
from .fake_quantise import batchnorms_behind
from .learned_rounding import learn_rounding


def quantise(
    network: nn.Module,
    bits: dict[str, Bits],
    quantizers: Mapping[str, str],
    options: CompressSection,
    inputs: Tensor | None,
    reduce_range: bool | None = None,
) -> dict[str, Grid]:
    """Put the weights of low bits on their grids, in place, and give the grids by layer.

    network: eval mode, CPU. bits: of every layer; changed for those whose values no packed format
    holds (a codebook): their weights are then float32 to the exporter. quantizers: layer ->
    ``"uniform"``, ``"codebook"`` or ``"apot"``. options: the job's ``compress`` section. inputs:
    (n, ...) float32 for learned rounding and bias correction; without any, neither is done.
    Plain 8-bit layers are left to the exporter unless ``options`` say how to round them, and
    linear layers that are to be stored in blocks always.

    Raises CandidateError naming a layer with NaN weights.
    """
    check_weights(network, bits)
    reduced = saturates_int8() if reduce_range is None else reduce_range
    chosen = {n: b for n, b in bits.items() if _is_ours(network.get_submodule(n), b, options)}
    if not chosen:
        return {}
    original = copy.deepcopy(network)
    learned = options.rounding == "learned" and inputs is not None
    grids: dict[str, Grid] = {}
    for name in _in_order(network, chosen, inputs):
        wanted, kind = chosen[name], quantizers.get(name, "uniform")
        layer: Any = network.get_submodule(name)
        weight = layer.weight.detach().numpy()
        eight = wanted.activation == 8
        if kind == "uniform":
            grid = weight_grid(
                weight,
                wanted.weight,
                ranges=options.ranges,
                symmetric=eight or options.symmetric,
                per="channel" if eight and options.scales != "tensor" else options.scales,
                reduce_range=reduced and eight,
                name=name,
            )
            symmetric = grid.zero_point is None
            low, high = limits(wanted.weight, symmetric, reduced and eight)
            integers = to_integers(weight, grid, low, high)
            if learned and inputs is not None and symmetric and grid.weight_scale.ndim < 2:
                given, _ = _around(network, name, inputs)
                _, expected = _around(original, name, inputs)
                integers = learn_rounding(layer, grid, high, given, expected)
            real, grids[name] = to_floats(integers, grid), grid
        else:
            real, found = (
                (to_codebook(weight, wanted.weight), None)
                if kind == "codebook"
                else to_apot(weight, wanted.weight)
            )
            if found is None and eight:  # integer kernels take the nearest of 8 bits
                found = weight_grid(real, 8, ranges="minmax", reduce_range=reduced, per="tensor")
                low, high = limits(8, True, reduced)
                real = to_floats(to_integers(real, found, low, high), found)
                bits[name] = replace(wanted, weight=8)
            if found is None:
                bits[name] = replace(wanted, weight=32)
            else:
                grids[name] = found
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(np.ascontiguousarray(real)))
    if options.bias_correction and inputs is not None:
        means = output_means(original, list(chosen), inputs)
        correct_biases(network, means, inputs, batchnorms_behind(network, inputs[:1]))
    return grids


def _is_ours(layer: nn.Module, bits: Bits, options: CompressSection) -> bool:
    """Whether the weights are rounded here, not by the exporter."""
    if options.linears == "blocks" and isinstance(layer, nn.Linear) and bits.activation == 32:
        return False
    own = options.ranges is not None or options.rounding == "learned"
    return bits.weight < 8 or (bits.weight == 8 and own)


def _in_order(network: nn.Module, layers: Mapping[str, Bits], inputs: Tensor | None) -> list[str]:
    """The layers in the order of their first call; those not called come last."""
    if inputs is None:
        return list(layers)
    called: list[str] = []
    hooks = [
        network.get_submodule(n).register_forward_hook(lambda *_, n=n: called.append(n))
        for n in layers
    ]
    with torch.no_grad():
        network(inputs[:1])
    for hook in hooks:
        hook.remove()
    return list(dict.fromkeys([*called, *layers]))


def _around(network: nn.Module, name: str, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """What the layer reads and gives, over ``inputs`` (its first call)."""
    seen: list[tuple[Tensor, Tensor]] = []

    def record(_: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        seen.append((args[0], out))

    hook = network.get_submodule(name).register_forward_hook(record)
    try:
        with torch.no_grad():
            network(inputs)
    finally:
        hook.remove()
    return seen[0]
