"""Weights of few bits in an ONNX file: packed integers that the runtime unpacks when it loads.

The file holds INT4 or INT2 (two or four weights a byte) and the few constant operators that turn
them into what the layer reads: ``Cast -> Mul`` with the scales for float32, ``Cast`` to INT8 for
an integer kernel. It is the arithmetic of DequantizeLinear, bit for bit; but ONNX Runtime folds
constant Cast and Mul when it opens the file and keeps DequantizeLinear for every call, which
makes the same layer 1.5 to 2.7 times slower.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx
import torch
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from torch import nn

from ..errors import CandidateError, nearest
from .onnx_graph import rows
from .target import Bits, Grid
from .uniform import limits, to_floats, to_integers, weight_grid

_SIGNED = ((ml_dtypes.int2, -2, 1), (ml_dtypes.int4, -8, 7), (np.int8, -128, 127))
_UNSIGNED = ((ml_dtypes.uint2, 0, 3), (ml_dtypes.uint4, 0, 15), (np.uint8, 0, 255))
_OPSET = {ml_dtypes.int2: (25, 13), ml_dtypes.uint2: (25, 13)}  # of the operators, of the file
_OPSET |= {ml_dtypes.int4: (21, 10), ml_dtypes.uint4: (21, 10)}
LAYER_OPS = ("Conv", "Gemm", "MatMul")
BASE_OPSET = 20
"""Export with this one what :func:`pack` is to pack: later ones only add types to its operators."""


@dataclass(frozen=True, eq=False)
class Held:
    """The integers that one layer's weights stand for, output channels first.

    tensor: name of its float32 initialiser. integers: int32, as the rows of torch's weight.
    grid: their scales, of the weights as they are in the file. turned: the file stores them
    transposed (in, out).
    """

    tensor: str
    integers: np.ndarray
    grid: Grid
    turned: bool

    @property
    def input_range(self) -> tuple[float, float] | None:
        return self.grid.input_range

    @property
    def output_range(self) -> tuple[float, float] | None:
        return self.grid.output_range

    @property
    def plain(self) -> bool:
        """Symmetric, with one scale a channel or in all: what integer kernels take."""
        return self.grid.zero_point is None and self.grid.weight_scale.ndim <= 1

    def overrides(self) -> list[dict[str, object]]:
        """The scales as ONNX Runtime's quantiser takes them, one an output channel."""
        scale = np.broadcast_to(self.grid.weight_scale, self.integers.shape[:1])
        axis = 1 if self.turned else 0
        zero = np.int8(0)
        return [{"axis": axis, "scale": np.float32(s), "zero_point": zero} for s in scale]


def check_weights(network: nn.Module, bits: Mapping[str, Bits]) -> None:
    """Raise CandidateError naming a layer of ``bits`` that is not there or whose weights are NaN
    or infinite."""
    modules = dict(network.named_modules())
    for name, wanted in bits.items():
        weight = getattr(modules.get(name), "weight", None)
        if wanted != Bits() and not isinstance(weight, torch.Tensor):
            raise CandidateError(f"{name}: no such layer; {nearest(name, modules)}")
        if isinstance(weight, torch.Tensor) and not torch.isfinite(weight).all():
            raise CandidateError(f"{name}: its weights are not finite (NaN or infinite)")


def hold(
    model: ModelProto,
    network: nn.Module,
    bits: Mapping[str, Bits],
    grids: Mapping[str, Grid] | None = None,
    reduce_range: bool = False,
) -> dict[str, Held]:
    """Put the weights of every layer that needs it on its grid, and give the integers.

    model: float32, with nodes named after the layers of ``network``; its weights are changed in
    place. Layers with a grid keep it, others of fewer than 8 weight bits (or of 8 with float
    activations) get one by :func:`paretune.targets.uniform.weight_grid`.

    Raises CandidateError naming the layer whose weights cannot be packed or are not there.
    """
    held: dict[str, Held] = {}
    shared: dict[str, Held] = {}
    known = {t.name: t for t in model.graph.initializer}
    for node in model.graph.node:
        name = node.name.partition("#")[0]
        wanted = bits.get(name, Bits())
        grid = (grids or {}).get(name)
        eight = (wanted.weight, wanted.activation) == (8, 8)
        if len(node.input) < 2 or node.input[1] not in known or wanted.weight == 32:
            continue
        if grid is None and eight:
            continue
        if node.op_type not in LAYER_OPS:
            raise CandidateError(f"{name}: the weights of {node.op_type} cannot be packed")
        tensor = known[node.input[1]]
        if tensor.name in shared:  # the second call of a layer
            held[node.name] = shared[tensor.name]
            continue
        weight = np.asarray(numpy_helper.to_array(tensor), dtype=np.float32)
        turned = rows(node, weight) is not weight
        weight = np.ascontiguousarray(rows(node, weight))
        if grid is None:
            reduced = reduce_range and wanted.activation == 8
            grid = weight_grid(weight, wanted.weight, reduce_range=reduced, name=name)
            low, high = limits(wanted.weight, True, reduced)
            integers = to_integers(weight, grid, low, high)
        else:
            own = network.get_submodule(name).weight.detach().numpy()  # type: ignore[operator,union-attr]
            integers, grid = _folded(own, weight, grid)
        held[node.name] = shared[tensor.name] = Held(tensor.name, integers, grid, turned)
        real = to_floats(integers, grid)
        tensor.CopyFrom(numpy_helper.from_array(real.T if turned else real, tensor.name))
    done = {name.partition("#")[0] for name in held}
    for name, wanted in bits.items():
        if wanted.weight < 32 and wanted.activation == 32 and name not in done:
            raise CandidateError(f"{name}: no such layer in the exported graph; is it used?")
    return held


def _folded(own: np.ndarray, weight: np.ndarray, grid: Grid) -> tuple[np.ndarray, Grid]:
    """The module's integers, and the grid once a BatchNorm has scaled the output channels."""
    top = 127 if grid.zero_point is None else 255
    low = -top if grid.zero_point is None else 0
    integers = to_integers(own, grid, low, top)
    if np.array_equal(own, weight):
        return integers, grid
    before = own.reshape(len(own), -1).astype(np.float64)
    after = weight.reshape(len(weight), -1).astype(np.float64)
    size = (before**2).sum(axis=1)
    factor = np.where(size > 0, (before * after).sum(axis=1) / np.where(size > 0, size, 1), 1.0)
    scale = np.asarray(grid.weight_scale, dtype=np.float64)
    scale = np.broadcast_to(scale, (len(own), *scale.shape[1:]))
    by_channel = (slice(None), *[None] * (scale.ndim - 1))
    turned = np.flatnonzero(factor < 0)  # a negative factor: the opposite integers
    zero = grid.zero_point
    if zero is None:
        integers[turned] = -integers[turned]
    else:
        zero = np.broadcast_to(zero, scale.shape).copy()
        most = _most(integers)
        zero[turned], integers[turned] = most - zero[turned], most - integers[turned]
    folded = (scale * np.abs(factor)[by_channel]).astype(np.float32)
    gone = folded == 0  # a factor of zero: zeros on the module's own grid
    runs = integers.reshape(*scale.shape, -1)
    runs[gone] = 0 if zero is None else zero[gone][:, None]
    scale = np.where(gone, scale, folded).astype(np.float32)
    return integers, Grid(scale, grid.input_range, grid.output_range, zero)


def _most(integers: np.ndarray) -> int:
    return next(top for _, _, top in _UNSIGNED if integers.max(initial=0) <= top)


def pack(model: ModelProto, held: Mapping[str, Held]) -> None:
    """Store the integers of ``held`` in as few bits as hold them, in place.

    A float32 weight becomes packed integers, unpacked by constant operators; an INT8 one (of a
    layer that the quantiser made integer) becomes INT4 or INT2 and a Cast. Each is read back by
    :func:`paretune.targets.onnx_unpack.unpack` exactly. The operator set is raised to the first
    that knows the type.
    """
    known = {t.name: t for t in model.graph.initializer}
    nodes: list[NodeProto] = []
    opset = version = 0
    done: set[str] = set()
    for item in held.values():
        if item.tensor in done:
            continue
        done.add(item.tensor)
        kind = _kind(item)
        eight = known.get(f"{item.tensor}_quantized")
        if eight is not None:
            if kind is np.int8:
                continue
            stored = item.integers.T if item.turned else item.integers
            nodes.append(_cast(f"{eight.name}_packed", eight.name, TensorProto.INT8))
            _replace(eight, stored.astype(kind), f"{eight.name}_packed")
        else:
            nodes += _unpacking(model, known[item.tensor], item, kind)
        least = _OPSET.get(kind, (0, 0))
        opset, version = max(opset, least[0]), max(version, least[1])
    kept = [*nodes, *(_copy(node) for node in model.graph.node)]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = max(entry.version, opset)
    model.ir_version = max(model.ir_version, version)


def _unpacking(model: ModelProto, tensor: TensorProto, item: Held, kind: type) -> list[NodeProto]:
    """Replace a float32 initialiser by integers, and give the operators that restore it."""
    name, scale = tensor.name, item.grid.weight_scale.astype(np.float32)
    zero, shape = item.grid.zero_point, item.integers.shape
    grouped = scale.ndim == 2
    integers, restored = item.integers, name
    nodes: list[NodeProto] = []
    constants = model.graph.initializer

    def step(op: str, given: str, other: np.ndarray, suffix: str, out: str) -> str:
        constants.append(numpy_helper.from_array(other, f"{name}_{suffix}"))
        nodes.append(helper.make_node(op, [given, f"{name}_{suffix}"], [out], f"{out}_{op}"))
        return out

    if grouped:
        integers = integers.reshape(*scale.shape, -1)
    elif item.turned:
        integers = integers.T
    spread = [1] * integers.ndim
    if grouped:
        spread[:2] = scale.shape
    elif scale.ndim == 1:
        spread[integers.ndim - 1 if item.turned else 0] = len(scale)
    nodes.append(_cast(f"{name}_packed", f"{name}_cast", TensorProto.FLOAT))
    last = f"{name}_cast"
    if zero is not None:
        shift = np.broadcast_to(zero, scale.shape).reshape(spread).astype(np.float32)
        last = step("Sub", last, shift, "zero_point", f"{name}_shifted")
    last = step("Mul", last, scale.reshape(spread), "scale", f"{name}_rows" if grouped else name)
    if grouped:
        full = np.asarray(shape, dtype=np.int64)
        last = step("Reshape", last, full, "shape", f"{name}_full" if item.turned else name)
        if item.turned:
            nodes.append(helper.make_node("Transpose", [last], [restored], f"{name}_turn"))
    _replace(tensor, integers.astype(kind), f"{name}_packed")
    return nodes


def _kind(item: Held) -> type:
    kinds = _SIGNED if item.grid.zero_point is None else _UNSIGNED
    low, high = int(item.integers.min(initial=0)), int(item.integers.max(initial=0))
    return next(kind for kind, least, most in kinds if least <= low and high <= most)


def _cast(given: str, out: str, kind: int) -> NodeProto:
    return helper.make_node("Cast", [given], [out], f"{out}_Cast", to=kind)


def _replace(tensor: TensorProto, value: np.ndarray, name: str) -> None:
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(value), name))


def _copy(node: NodeProto) -> NodeProto:
    copied = onnx.NodeProto()
    copied.CopyFrom(node)
    return copied
