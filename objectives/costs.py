"""What a plan costs, without touching a network: bytes, parameters, multiply-accumulates, latency.

Less than a millisecond a plan, so that a search can price every plan that it thinks of.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Protocol

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from ..spaces.attention import rewrite
from ..spaces.plan import CompressionPlan
from ..spaces.space import SearchSpace
from ..targets.onnx_size import FileSize
from ..targets.onnx_skeleton import Part, Stored
from ..targets.target import Target
from .layer_shapes import LayerShapes, ShapeTable


class PlanLatency(Protocol):
    """Predicted latency of a plan, e.g. the calibrated table of blocks."""

    def latency_ms(self, plan: CompressionPlan, shapes: LayerShapes) -> float: ...


class CostModel:
    """Costs of any plan of one space on one target.

    space: from :func:`discover` on ``network``; example: one input (1, ...) float32. target: whose
    files are meant; the uncompressed network is exported to it once. latency: predicts
    milliseconds, or None.

    Parameters and MACs are exact. Bytes of ONNX files in float32, QOperator and QDQ follow the
    writer's rules (within a few bytes: a zero point takes one or two); of other files they are the
    baseline's, with its weights replaced by the plan's.

    >>> model = CostModel(space, network, example, target)
    >>> model.costs(space.plan({"bits:conv1": 1}))["size_bytes"]
    """

    def __init__(
        self,
        space: SearchSpace,
        network: nn.Module,
        example: Tensor,
        target: Target,
        latency: PlanLatency | None = None,
    ) -> None:
        self.space, self.latency = space, latency
        original = rewrite(network, example)
        self.table = ShapeTable(space, original, example)
        self._bytes: FileSize | None = None
        self._stored: dict[tuple[int, tuple[int, int]], Stored] = {}
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"baseline.{target.format}"
            target.export(original, example, {}, [], path)
            self._baseline_bytes = path.stat().st_size
            written = getattr(target, "quantized_format", "qdq")
            if target.format == "onnx" and written is not None:
                model = onnx.load(str(path))
                owners = _owners(model, original)
                self._bytes = FileSize(model, written, owners)
        base = self.table.shapes(space.identity)
        self._baseline_weights = _weight_bytes(base)
        self._base = self._costs(space.identity)

    def predict_latency(self, latency: PlanLatency | None) -> None:
        """From now on by this model."""
        self.latency = latency
        self._base = self._costs(self.space.identity)

    def costs(self, plan: CompressionPlan) -> dict[str, float]:
        """size_bytes, size_ratio, compression_ratio, params, macs (one example) and, if timed,
        latency_ms and latency_ratio of a canonical plan (as ``SearchSpace.plan`` makes them)."""
        values = self._costs(plan)
        values["size_ratio"] = values["size_bytes"] / self._base["size_bytes"]
        values["compression_ratio"] = 1 / values["size_ratio"]
        if "latency_ms" in values:
            values["latency_ratio"] = values["latency_ms"] / self._base["latency_ms"]
        return values

    def _costs(self, plan: CompressionPlan) -> dict[str, float]:
        shapes = self.table.shapes(plan)
        values = {
            "size_bytes": float(self._size(shapes)),
            "params": float(shapes.params),
            "macs": float(shapes.macs),
        }
        if self.latency is not None:
            values["latency_ms"] = self.latency.latency_ms(plan, shapes)
        return values

    def _size(self, shapes: LayerShapes) -> int:
        if self._bytes is None:
            return self._baseline_bytes - self._baseline_weights + _weight_bytes(shapes)
        layers = {}
        for name, factors in shapes.layers.items():
            key = (id(factors), shapes.bits[name])  # the table keeps its factors alive
            if key not in self._stored:
                parts = tuple(Part(f.suffix, f.shape, f.groups) for f in factors)
                self._stored[key] = Stored(parts, shapes.bits[name])
            layers[name] = self._stored[key]
        return self._bytes.bytes(layers, shapes.kept)


def _weight_bytes(shapes: LayerShapes) -> int:
    """Bytes of all parameters, weights at their bits with one scale a channel below 16 bits."""
    total = 4 * shapes.other_params
    for name, factors in shapes.layers.items():
        bits, _ = shapes.bits[name]
        for factor in factors:
            weights = factor.params - (factor.shape[0] if factor.bias else 0)
            total += -(-weights * bits // 8) + 4 * (factor.params - weights)
            total += 4 * factor.shape[0] if bits < 16 else 0
    return total


def _owners(model: onnx.ModelProto, network: nn.Module) -> dict[str, str]:
    """Constants of the file that hold a module's own parameters or buffers -> the module.

    They are found by content (a normalisation's scale, the bias of a linear layer that is added by
    a node of its own).
    """
    held: dict[bytes, str] = {}
    with torch.no_grad():
        for name, module in network.named_modules():
            for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                if tensor.dim() and tensor.dtype == torch.float32:
                    held.setdefault(tensor.numpy().tobytes(), name)
    found = {}
    for constant in model.graph.initializer:
        owner = held.get(numpy_helper.to_array(constant).tobytes())
        if owner is not None:
            found[constant.name] = owner
    return found
