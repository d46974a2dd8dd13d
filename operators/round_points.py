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
from ..targets.onnx_quantize import Scales, place

CHUNK = 64


@dataclass
class RoundPoint:
    """One activation that the file stores in 8 bits.

    readers: 8-bit layers whose input it is. layer: the 8-bit layer whose result it is. behind: the
    module whose output is rounded: of a layer the BatchNorm that is folded into it, or itself
    (None: the readers round their input, or ``layer`` its products). bias: whether the file holds
    the bias of ``layer`` as integers; else a bias is added to its rounded products. range: its
    smallest and largest value over the calibration inputs.
    """

    readers: list[str] = field(default_factory=list)
    layer: str | None = None
    behind: str | None = None
    bias: bool = False
    range: tuple[float, float] = (0.0, 0.0)


def round_points(
    network: nn.Module, layers: Collection[str], calibration: Tensor
) -> list[RoundPoint]:
    """The activations to round when ``layers`` run on 8 bits, each once.

    The result of a layer is rounded behind its BatchNorm, before the Relu that vanishes into it and
    whatever moves it on to the layers that read it: all its readers get the rounded values, as in
    the file. So do those of what another 8-bit operator gives (a residual sum, a pooling), rounded
    behind the module that makes it. A float32 activation is rounded by the layers that read it,
    each for itself, while others get it as it is. network: left as it is; calibration: (n, ...)
    float32.
    """
    if not layers:
        return []
    graph = _Graph(export_model(network, calibration[:1]), layers)
    traced = _Trace(network, set(layers), {n for n in layers if graph.adds_later(n)})
    with torch.no_grad():
        for part in torch.split(calibration, CHUNK):
            traced.run(part)
    points: dict[object, RoundPoint] = {}
    for name in layers:
        source, made = graph.source(name), traced.makers.get(name)
        if source is not None:
            made = graph.end(source, traced)
        elif not graph.is_rounded_for_all(name):
            made = None
        key: object = ("behind", made) if made else ("input", traced.given[name])
        point = points.setdefault(key, RoundPoint(behind=made, range=traced.inputs[name]))
        low, high = traced.inputs[name]
        point.range = (min(low, point.range[0]), max(high, point.range[1]))
        point.readers.append(name)
    for name in layers:
        behind = graph.end(name, traced)
        low, high = traced.outputs[behind]
        low = max(low, 0.0) if graph.is_bounded(name) else low
        if name in traced.apart:
            points["products", name] = RoundPoint(layer=name, range=(low, high))
            continue
        point = points.setdefault(("behind", behind), RoundPoint(behind=behind, range=(low, high)))
        point.layer, point.bias = name, graph.has_bias(name)
    return list(points.values())


class _Graph:
    """The exported graph of a network in which ``layers`` run on 8 bits."""

    def __init__(self, model: ModelProto, layers: Collection[str]) -> None:
        self._placed = set(place(model, layers, trained=True).nodes)
        self._layers = set(layers)
        self._scales = Scales(model)
        self._nodes = {node.name: node for node in model.graph.node}
        self._readers: dict[str, list[NodeProto]] = {}
        for node in model.graph.node:
            for name in node.input:
                self._readers.setdefault(name, []).append(node)

    def source(self, name: str) -> str | None:
        """The layer whose result, with its scale, the layer ``name`` reads."""
        origin = self._origin(name)
        name = "" if origin is None else origin.name.partition("#")[0]
        return name if name in self._layers else None

    def is_rounded_for_all(self, name: str) -> bool:
        """Whether every reader of what ``name`` reads gets it rounded."""
        origin = self._origin(name)
        readers = self._readers[self._nodes[name].input[0]]
        placed = origin is not None and origin.name in self._placed
        return placed or all(node.name in self._placed for node in readers)

    def end(self, name: str, traced: _Trace) -> str:
        """The module that gives the result of the layer ``name``: itself, or its BatchNorm."""
        kept = any(node.op_type == "BatchNormalization" for node in self._after(name))
        return name if kept else traced.batchnorms.get(name, name)

    def is_bounded(self, name: str) -> bool:
        """Whether a Relu or Clip vanishes into the layer ``name``."""
        after = self._after(name)
        return len(after) == 1 and after[0].op_type in BOUNDED_OPS

    def has_bias(self, name: str) -> bool:
        return len(self._nodes[name].input) > 2

    def adds_later(self, name: str) -> bool:
        """Whether the layer ``name`` is a MatMul, perhaps with a bias that an Add brings."""
        return bool(self._nodes[name].op_type == "MatMul")

    def _origin(self, name: str) -> NodeProto | None:
        *_, tensor = self._scales.back(self._nodes[name].input[0])
        return self._scales.makers.get(tensor)

    def _after(self, name: str) -> list[NodeProto]:
        return self._readers.get(self._nodes[name].output[0], [])


class _Trace:
    """Runs a network and notes who makes what each layer reads, and how large it gets.

    makers: layer -> the outermost module, called once, that gives its input. given: layer -> a
    number that layers with the same input share. batchnorms: layer -> the BatchNorm reading it.
    apart: of ``matmuls`` the layers that have a bias; their outputs are looked at without it.
    """

    def __init__(self, network: nn.Module, layers: set[str], matmuls: set[str]) -> None:
        self.network, self.layers = network, layers
        modules: dict[str, Any] = dict(network.named_modules())
        self.apart = {
            name: modules[name].bias for name in matmuls if modules[name].bias is not None
        }
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
                    own = out - self.apart[name] if name in self.apart else out
                    self.outputs[name] = _wider(self.outputs.get(name), own)

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
