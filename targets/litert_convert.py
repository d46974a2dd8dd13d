"""A torch program as a ``.tflite`` file: run by the Python of LiteRT's environment, never by ours.

    python -I litert_convert.py FOLDER

FOLDER holds order.json ``{"shape": [batch, ...], "weights": {tensor: layer}}``,
program.safetensors (see torch_program.py beside this file) and, where layers are to have 8 bits,
calibration.npy ``(n, ...)``; model.tflite is written to it. weights: the program's tensors whose
layers compute in 8 bits. What fails is one line on stderr, with exit code 1.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Container
from pathlib import Path
from typing import Any

import numpy as np
import torch

ATEN = torch.ops.aten
WEIGHTED = (ATEN.conv1d.default, ATEN.conv2d.default, ATEN.linear.default)


def main(folder: Path) -> None:
    """Convert what the folder orders."""
    import litert_torch
    from litert_torch.quantize.quant_config import QuantConfig

    order = json.loads((folder / "order.json").read_text(encoding="utf-8"))
    network = _program_file().read_program((folder / "program.safetensors").read_bytes())
    example = torch.zeros(order["shape"])
    settings = None
    if order["weights"]:
        quantizer = by_weight(order["weights"])
        examples = np.load(folder / "calibration.npy", allow_pickle=False)
        network = quantized(network, example, quantizer, examples)
        settings = QuantConfig(pt2e_quantizer=quantizer)
    model = litert_torch.convert(network, (example,), quant_config=settings)
    model.export(str(folder / "model.tflite"))


def quantized(network: Any, example: torch.Tensor, quantizer: Any, examples: np.ndarray) -> Any:
    """The network with quantisers at its 8-bit layers, ranges from the examples (n, ...)."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    prepared = prepare_pt2e(torch.export.export(network, (example,)).module(), quantizer)
    size = len(example)
    with torch.no_grad():
        for start in range(0, len(examples), size):
            places = np.arange(start, start + size) % len(examples)  # the last: from the first
            prepared(torch.from_numpy(examples[places]))
    return convert_pt2e(prepared, fold_quantize=False)


def by_weight(weights: dict[str, str]) -> Any:
    """LiteRT's quantiser for the layers with these weights, and for what lies between them alone:
    a sum or a pooling has 8 bits where all layers that it hears of have. A layer that it does not
    quantise is a ValueError with its name."""
    from litert_torch.quantize import pt2e_quantizer as pt2e
    from torchao.quantization.pt2e.quantizer import QuantizationAnnotation

    config = pt2e.get_symmetric_quantization_config(is_per_channel=True)

    class ByWeight(pt2e.PT2EQuantizer):  # type: ignore[misc,name-defined]
        def annotate(self, model: torch.fx.GraphModule) -> torch.fx.GraphModule:
            chosen: set[Any] = chosen_nodes(model.graph, weights)
            layers = {str(n.args[1].target) for n in chosen if n.target in WEIGHTED}
            for tensor, layer in weights.items():
                if tensor not in layers:
                    raise ValueError(f"{layer}: it has no 8-bit form there")
            self._annotate_all_static_patterns(model, config, lambda node: node in chosen)
            for node in model.graph.nodes:
                if node.target in (ATEN.add.Tensor, ATEN.add_.Tensor) and node in chosen:
                    self._annotate_sum(node)
            pt2e.propagate_annotation(model)
            return model

        def _annotate_sum(self, node: torch.fx.Node) -> None:
            terms = [a for a in node.args if isinstance(a, torch.fx.Node)]
            if "quantization_annotation" in node.meta or len(terms) < 2:
                return
            last = node
            if len(node.users) == 1:
                (user,) = node.users
                if user.target in (ATEN.relu.default, ATEN.relu_.default):
                    last = user
            given = {term: config.input_activation for term in terms}
            node.meta["quantization_annotation"] = QuantizationAnnotation(
                input_qspec_map=given, _annotated=True
            )
            if last is not node:
                last.meta["quantization_annotation"] = QuantizationAnnotation(_annotated=True)
            last.meta["quantization_annotation"].output_qspec = config.output_activation

    return ByWeight().set_global(config)


def chosen_nodes(graph: torch.fx.Graph, weights: Container[str]) -> set[torch.fx.Node]:
    """The layers with these weights, their tensors, and what only hears of such layers: not what
    hears of the input or of a constant besides, such as a transformer's class token, which is small
    beside the others and would be lost in 8 bits."""
    heard: dict[torch.fx.Node, set[bool]] = {}
    for node in graph.nodes:
        if node.target in WEIGHTED:
            heard[node] = {str(node.args[1].target) in weights}
        elif node.op == "get_attr":
            heard[node] = {True}
        else:
            told = [heard[n] for n in node.all_input_nodes if n.op != "get_attr"]
            heard[node] = set().union(*told) if told else {False}
    return {node for node, found in heard.items() if found == {True}}


def _program_file() -> Any:
    """torch_program.py beside this file, without the package around it."""
    path = Path(__file__).with_name("torch_program.py")
    spec = importlib.util.spec_from_file_location("torch_program", path)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(path.name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except Exception as error:
        lines = " ".join(str(error).split())[:400]
        sys.exit(f"{type(error).__name__}: {lines}")
