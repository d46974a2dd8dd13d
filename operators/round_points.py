"""Where in a torch network activations are rounded, so that it computes like its 8-bit file."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import torch
from onnx import ModelProto, NodeProto
from torch import Tensor, nn

from ..targets.onnx_calibrate import BOUNDED_OPS
from ..targets.onnx_export import export_model
from ..targets.onnx_quantize import MOVING_OPS, PASSING_OPS, place

CHUNK = 64


@dataclass
class RoundPoint:
    """One activation that the file stores in 8 bits.

    readers: 8-bit layers whose input it is. layer: the layer whose result it is, where something
    else than a layer reads it. behind: the module whose output is rounded (None: the readers round
    their input). range: its smallest and largest value over the calibration inputs.
    """

    readers: list[str] = field(default_factory=list)
    layer: str | None = None
    behind: str | None = None
    range: tuple[float, float] = (0.0, 0.0)


def round_points(
    network: nn.Module, layers: Collection[str], calibration: Tensor
) -> list[RoundPoint]:
    """The activations to round when ``layers`` run on 8 bits, each once.

    An input that a module gives (a residual block, a pooling) is rounded there, so that all its
    readers get the rounded values, as in the file. The result of a layer is rounded behind its
    BatchNorm where an addition, a pooling or nothing reads it; elsewhere the next layer's input
    says how. network: left as it is; calibration: (n, ...) float32.
    """
    if not layers:
        return []
    model = export_model(network, calibration[:1])
    place(model, layers)  # names a layer that is not there
    results = _results(model, set(layers))
    traced = _Trace(network, set(layers))
    with torch.no_grad():
        for part in torch.split(calibration, CHUNK):
            traced.run(part)
    points: dict[object, RoundPoint] = {}
    for name in layers:
        low, high = traced.inputs[name]
        made = traced.makers.get(name)
        key: object = ("behind", made) if made else ("input", traced.given[name])
        point = points.setdefault(key, RoundPoint(behind=made, range=(low, high)))
        point.readers.append(name)
    for name in layers:
        if name not in results:
            continue
        behind = traced.batchnorms.get(name, name)
        low, high = traced.outputs[behind]
        point = points.setdefault(
            ("behind", behind), RoundPoint(behind=behind, range=(_floor(low, results[name]), high))
        )
        point.layer = name
    return list(points.values())


def _floor(low: float, bounded: bool) -> float:
    return max(low, 0.0) if bounded else low


def _results(model: ModelProto, layers: set[str]) -> dict[str, bool]:
    """Layers whose result no 8-bit layer reads -> whether a Relu or Clip follows at once."""
    readers: dict[str, list[NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)

    def reaches(tensor: str) -> bool:
        for node in readers.get(tensor, []):
            if node.name.partition("#")[0] in layers:
                return True
            if node.op_type in PASSING_OPS | MOVING_OPS and reaches(node.output[0]):
                return True
        return False

    found = {}
    for node in model.graph.node:
        if node.name not in layers:
            continue
        tensor = node.output[0]
        behind = readers.get(tensor, [])
        bounded = len(behind) == 1 and behind[0].op_type in BOUNDED_OPS
        if bounded:
            tensor = behind[0].output[0]
        if not reaches(tensor):
            found[node.name] = bounded
    return found


class _Trace:
    """Runs a network and notes who makes what each layer reads, and how large it gets.

    makers: layer -> the outermost module, called once, that gives its input. given: layer -> a
    number that layers with the same input share. batchnorms: layer -> the BatchNorm reading it.
    """

    def __init__(self, network: nn.Module, layers: set[str]) -> None:
        self.network, self.layers = network, layers
        self.makers: dict[str, str] = {}
        self.given: dict[str, int] = {}
        self.batchnorms: dict[str, str] = {}
        self.inputs: dict[str, tuple[float, float]] = {}
        self.outputs: dict[str, tuple[float, float]] = {}

    def run(self, inputs: Tensor) -> None:
        made: dict[int, str] = {}
        calls: dict[str, int] = {}
        kept: list[Tensor] = []  # alive, so that no two share an id
        training = self.network.training
        hooks = []

        def before(module: nn.Module, args: tuple[Any, ...], name: str) -> None:
            if not args or not isinstance(args[0], Tensor):
                return
            x = args[0]
            maker = made.get(id(x))
            if name in self.layers:
                self.inputs[name] = _wider(self.inputs.get(name), x)
                self.given[name] = next((i for i, k in enumerate(kept) if k is x), len(kept))
                if maker and calls[maker] == 1:
                    self.makers[name] = maker
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and maker in self.layers:
                self.batchnorms[str(maker)] = name
            kept.append(x)

        def after(module: nn.Module, _: object, out: object, name: str) -> None:
            calls[name] = calls.get(name, 0) + 1
            if isinstance(out, Tensor) and name:
                made[id(out)] = name
                kept.append(out)
                if name in self.layers or isinstance(module, nn.modules.batchnorm._BatchNorm):
                    self.outputs[name] = _wider(self.outputs.get(name), out)

        for name, module in self.network.named_modules():
            hooks += [
                module.register_forward_pre_hook(lambda m, a, n=name: before(m, a, n)),
                module.register_forward_hook(lambda m, a, o, n=name: after(m, a, o, n)),
            ]
        try:
            self.network.eval()(inputs)
        finally:
            self.network.train(training)
            for hook in hooks:
                hook.remove()
        for name, maker in list(self.makers.items()):
            if calls[maker] != 1:
                del self.makers[name]


def _wider(known: tuple[float, float] | None, x: Tensor) -> tuple[float, float]:
    low, high = (float(v) for v in torch.aminmax(x))
    return (low, high) if known is None else (min(known[0], low), max(known[1], high))
