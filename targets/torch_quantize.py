"""8-bit layers in an exported torch network, by the PT2E quantisation of torchao."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from ..errors import CandidateError
from .litert_convert import WEIGHTED, chosen_nodes
from .torch_program import exported

INSTALL = 'pip install "paretune[torchao]"'
ATEN = torch.ops.aten
ADDS = (ATEN.add.Tensor, ATEN.add_.Tensor)
BATCH = 32
"""Examples a call of the calibration."""


def quantized(
    network: nn.Module, example: torch.Tensor, layers: list[str], examples: np.ndarray
) -> nn.Module:
    """``network`` with these layers between quantise and dequantise operators, weights stored int8.

    Activations: uint8, a scale and zero point a tensor, from the smallest and largest value that
    the examples (n, ...) give. Weights: symmetric int8, a scale an output channel. A sum behind a
    convolution takes its other term in 8 bits where all layers that it hears of have 8 bits (see
    :func:`.litert_convert.chosen_nodes`), so that a residual block stays in integers.
    example: (1, ...) float32; any batch size runs.

    Raises CandidateError naming a layer that has no 8-bit form.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

        weights = {f"{layer}.weight": layer for layer in layers}
        prepared = prepare_pt2e(exported(network, example).module(), _by_weight(weights))
        with torch.no_grad():
            for start in range(0, len(examples), BATCH):
                prepared(torch.from_numpy(examples[start : start + BATCH]))
        # A norm behind a layer of other bits remains, and convert_pt2e would trace, for seconds,
        # what it looks for in networks trained with quantisers.
        _swap(prepared.graph, ATEN.batch_norm.default, _batch_norm)
        converted: fx.GraphModule = convert_pt2e(prepared)
        _swap(converted.graph, _batch_norm, ATEN.batch_norm.default)
        _drop_zero_points(converted)
    return converted


def _by_weight(weights: dict[str, str]) -> Any:
    """A quantiser for the layers with these weights."""
    from torchao.quantization.pt2e import MinMaxObserver, PerChannelMinMaxObserver
    from torchao.quantization.pt2e.quantizer import (
        QuantizationAnnotation,
        QuantizationSpec,
        Quantizer,
    )

    values = QuantizationSpec(
        dtype=torch.uint8,
        observer_or_fake_quant_ctr=MinMaxObserver,
        quant_min=0,
        quant_max=255,
        qscheme=torch.per_tensor_affine,
    )
    integers = QuantizationSpec(
        dtype=torch.int8,
        observer_or_fake_quant_ctr=PerChannelMinMaxObserver,
        quant_min=-127,
        quant_max=127,
        qscheme=torch.per_channel_symmetric,
        ch_axis=0,
    )

    class ByWeight(Quantizer):  # type: ignore[misc]
        def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
            chosen, found = chosen_nodes(model.graph, weights), set[str]()
            for node in model.graph.nodes:
                given: dict[Any, Any] = {}
                if node not in chosen:
                    continue
                if node.target in WEIGHTED:
                    given = {node.args[0]: values, node.args[1]: integers}
                    found.add(str(node.args[1].target))
                elif (term := _other_term(node, chosen)) is not None:
                    given = {term: values}
                if given:
                    node.meta["quantization_annotation"] = QuantizationAnnotation(
                        input_qspec_map=given, _annotated=True
                    )
            for weight, layer in weights.items():
                if weight not in found:
                    raise CandidateError(f"{layer}: torch has no 8-bit form of it")
            return model

        def validate(self, model: fx.GraphModule) -> None:
            pass

    return ByWeight()


def _other_term(node: fx.Node, chosen: set[fx.Node]) -> fx.Node | None:
    """What a sum adds to a convolution's result that nothing else needs (of two, the second's)."""
    terms = [a for a in node.args if isinstance(a, fx.Node)]
    if node.target not in ADDS or len(set(terms)) != 2 or node.kwargs:
        return None
    if len({str(term.meta["val"].shape) for term in terms}) != 1:  # the batch is a symbol
        return None
    conv = max(terms)  # nodes are ordered as in the graph
    for term in (conv, *(t for t in terms if t is not conv)):
        if term.target == ATEN.conv2d.default and term in chosen and len(term.users) == 1:
            return next(t for t in terms if t is not term)
    return None


def _batch_norm(*args: Any) -> Any:
    return ATEN.batch_norm.default(*args)


def _swap(graph: fx.Graph, old: Any, new: Any) -> None:
    """The same graph with another function in a function's place."""
    for node in graph.nodes:
        if node.target == old:
            node.target = new


def _drop_zero_points(module: fx.GraphModule) -> None:
    """Leave out the zero points of the weights, which are all zero."""
    node: Any
    for node in module.graph.nodes:
        if node.target == torch.ops.quantized_decomposed.dequantize_per_channel.default:
            zeros = node.args[2]
            if not module.get_buffer(zeros.target).any():
                node.update_arg(2, None)
    module.graph.eliminate_dead_code()
    module.recompile()
