"""A torch program with 8-bit layers, made to run on oneDNN's integer kernels.

A program says what is computed in float32: dequantise, convolve, add, relu, quantise. Here such a
chain becomes one call that reads and writes uint8. What remains computes as the program says.
"""

from __future__ import annotations

import contextlib
import importlib
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from .cpu import has_int8_kernels
from .torch_packed import KERNELS, QCONV, QCONV_SUM, QLINEAR, PackedProgram

Node = Any  # an fx.Node: its arguments are of many types
ATEN = torch.ops.aten
CONVOLUTIONS = (ATEN.conv1d.default, ATEN.conv2d.default)
LINEAR = ATEN.linear.default
ADDS = (ATEN.add.Tensor, ATEN.add_.Tensor)
DROPOUTS = (ATEN.dropout.default, ATEN.dropout_.default)
# What a kernel computes on its result before it is rounded: operator -> oneDNN's name for it.
AFTER = {
    **dict.fromkeys((ATEN.relu.default, ATEN.relu_.default), "relu"),
    **dict.fromkeys((ATEN.hardtanh.default, ATEN.hardtanh_.default), "hardtanh"),
    **dict.fromkeys((ATEN.relu6.default, ATEN.relu6_.default), "hardtanh"),
    **dict.fromkeys((ATEN.hardswish.default, ATEN.hardswish_.default), "hardswish"),
    **dict.fromkeys((ATEN.silu.default, ATEN.silu_.default), "swish"),
    ATEN.gelu.default: "gelu",
}


def lowered(program: fx.GraphModule, integers: bool) -> Callable[[torch.Tensor], torch.Tensor]:
    """The program (changed in place), with its 8-bit layers on integer kernels.

    The same results for any batch, but for values within rounding of the middle between two steps.
    integers: False = the layers compute in float32 with the same weights, which is right wherever
    the kernels are not (see :func:`integer_kernels`), and no faster than float32.
    """
    graph = program.graph
    if integers:
        for node in list(graph.nodes):
            if node.target in DROPOUTS and not node.args[2]:
                node.replace_all_uses_with(node.args[0])
                graph.erase_node(node)
            elif node.target == ATEN.view.default:  # kernels give channels_last
                node.target = ATEN.reshape.default
        for node in list(graph.nodes):
            if node.target in (*CONVOLUTIONS, LINEAR) and _can_be_lowered(program, node):
                _lower(program, node)
        _quantise_natively(graph)
    graph.eliminate_dead_code()
    _compute_weights(program)
    graph.eliminate_dead_code()
    read = {node.target for node in graph.nodes if node.op == "get_attr"}
    for name, _ in [*program.named_parameters(), *program.named_buffers()]:
        if name not in read:
            delattr(program, name)
    program.recompile()
    return PackedProgram(program) if integers else program


def has_8_bits(program: fx.GraphModule) -> bool:
    """Whether some layer of a program has 8-bit weights."""
    importlib.import_module("torch.ao.quantization.fx._decomposed")  # registers the operators
    return any(_is(node, "dequantize_per_channel") for node in program.graph.nodes)


def integer_kernels() -> bool:
    """Whether oneDNN is there and multiplies 8-bit integers without loss on this processor: without
    VNNI its sums of two products can overflow 16 bits."""
    there: Any = torch.backends.mkldnn
    return bool(there.is_available()) and has_int8_kernels()


def _lower(program: fx.GraphModule, layer: Node) -> None:
    """Put one kernel in the place of a layer and of the sum, activation and rounding behind it."""
    graph, chain = program.graph, [layer]
    other = _added(layer)
    if other is not None:
        chain.append(_follower(layer))
    after = _activation(_follower(chain[-1]), layer, other is not None)
    if after[0] != "none":
        chain.append(_follower(chain[-1]))
    pool = _follower(chain[-1])  # a maximum of rounded values is the rounded maximum
    pool = pool if pool is not None and pool.target == ATEN.max_pool2d.default else None
    last = chain[-1]
    rounded = _follower(pool or last)
    if rounded is None or not _is(rounded, "quantize_per_tensor") or not _is_uint8(rounded):
        rounded = None
    with graph.inserting_before(last.next):
        result = (1.0, 0, torch.float32) if rounded is None else (*rounded.args[1:3], torch.uint8)
        before, behind = _operands(program, layer)
        if other is None:
            kind = QLINEAR if layer.target == LINEAR else QCONV
            kernel = graph.call_function(kind, (*before, *behind, *result, *after))
        else:
            held, scale, zero = (other, 1.0, 0) if rounded is None else other.args[:3]
            own = _may_be_overwritten(held, other, layer, last)
            form: dict[str, Any] = {"memory_format": torch.channels_last}
            copy = ATEN.contiguous.default if own else ATEN.clone.default
            held = graph.call_function(copy, (held,), form)
            args = (*before, held, *behind, *result, scale, zero, "sum", 1.0, *after)
            kernel = graph.call_function(QCONV_SUM, args)
    if rounded is not None and pool is not None:
        rounded.replace_all_uses_with(pool)
        graph.erase_node(rounded)
        _pool_integers(pool)
    elif rounded is not None:
        chain.append(rounded)
    chain[-1].replace_all_uses_with(kernel)
    for node in reversed(chain):
        graph.erase_node(node)


def _can_be_lowered(program: fx.GraphModule, layer: Node) -> bool:
    """Whether a layer's input and weights are 8-bit integers, in the form that the kernels take.

    They trust the sizes of what they are given, and a file may say anything.
    """
    inputs, weight = layer.args[:2]
    if not _is(inputs, "dequantize_per_tensor") or not _is_uint8(inputs):
        return False
    if not _is(weight, "dequantize_per_channel") or layer.kwargs:
        return False
    stored, scales, zeros, axis = weight.args[:4]
    bias = layer.args[2] if len(layer.args) > 2 else None
    held = [stored, scales, *([] if bias is None else [bias])]
    if any(not isinstance(n, fx.Node) or n.op != "get_attr" for n in held) or zeros is not None:
        return False
    integers, *floats = (_tensor(program, n) for n in held)
    if {(f.dtype, f.shape) for f in floats} != {(torch.float32, integers.shape[:1])}:
        return False
    if axis != 0 or integers.dtype != torch.int8:
        return False
    if layer.target == LINEAR:
        return integers.ndim == 2
    *geometry, groups = _filled(layer.args[3:], ([1], [0], [1], 1))
    least, dims = (1, 0, 1), 1 if layer.target == ATEN.conv1d.default else 2
    fits = all(len(g) in (1, dims) and min(g) >= m for g, m in zip(geometry, least, strict=True))
    return integers.ndim == dims + 2 and fits and groups >= 1 and len(integers) % groups == 0


def _operands(program: fx.GraphModule, layer: Node) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """A kernel's arguments before and behind the place of what is added (see torch_packed.py)."""
    stored, scales = layer.args[1].args[:2]
    weight = _tensor(program, stored)
    held = _constant(program, weight), scales
    zeros = _constant(program, torch.zeros(len(weight), dtype=torch.int64))
    bias, *geometry = _filled(layer.args[2:], (None, [1], [0], [1], 1))
    if layer.target == LINEAR:
        geometry = []
    else:
        geometry[:3] = (_of(weight.ndim - 2, size) for size in geometry[:3])
    return (*layer.args[0].args[:3], *held, zeros), (bias, *geometry)


def _added(layer: Node) -> Node | None:
    """The dequantised value that a sum adds to a convolution's result, if that is what follows."""
    add = _follower(layer)
    if layer.target != ATEN.conv2d.default or add is None or add.target not in ADDS or add.kwargs:
        return None
    (other,) = [a for a in add.args[:2] if a is not layer] or [None]
    found = _is(other, "dequantize_per_tensor") and _is_uint8(other)
    return other if found else None


def _activation(node: Node, layer: Node, summed: bool) -> tuple[str, list[float], str]:
    """What a kernel computes last, as oneDNN's name, numbers and algorithm."""
    name = AFTER.get(node.target, "none") if node is not None else "none"
    relu_only = summed or layer.target == ATEN.conv1d.default
    if (relu_only and name != "relu") or (name == "gelu" and layer.target != LINEAR):
        name = "none"
    if name == "hardtanh":
        ends = (0.0, 6.0) if "relu6" in str(node.target) else (-1.0, 1.0)
        return name, _filled(node.args[1:], ends), ""
    return name, [], node.kwargs.get("approximate", "none") if name == "gelu" else ""


def _may_be_overwritten(held: Node, other: Node, layer: Node, last: Node) -> bool:
    """Whether a kernel may write its result over what it adds: nothing reads that afterwards."""
    if held is other:  # in float32, of its own
        return len(other.users) == 1
    kernels = {*KERNELS, torch.ops.quantized.max_pool2d.default}
    made = held.target in kernels or _is(held, "quantize_per_tensor")
    if not made or held is layer.args[0].args[0]:
        return False
    for user in held.users:
        if _is(user, "dequantize_per_tensor"):
            if any(not reader < last and reader is not last for reader in user.users):
                return False
        elif user.target not in kernels or last < user:
            return False
    return True


def _pool_integers(pool: Node) -> None:
    """The operator for 8-bit values: its sizes are lists of two, and all are given."""
    kernel = pool.args[1]
    stride, padding, dilation, ceil = _filled(pool.args[2:], ([], [0], [1], False))
    sizes = (kernel, stride or kernel, padding, dilation)
    pool.target = torch.ops.quantized.max_pool2d.default
    pool.args = (pool.args[0], *(_of(2, size) for size in sizes), ceil)


def _filled(given: Any, defaults: tuple[Any, ...]) -> list[Any]:
    """Arguments, with the operator's own for those left out."""
    return [*given, *defaults[len(given) :]]


def _of(dims: int, size: Any) -> list[int]:
    return list(size) * (dims if len(size) == 1 else 1)


def _quantise_natively(graph: fx.Graph) -> None:
    """The remaining conversions in fewer passes over the values than the operators make."""
    quick: dict[str, Any] = {"dequantize_per_tensor": _to_floats}
    with contextlib.suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says once that it may leave, then it is not used
        _to_integers(torch.zeros(1), 1.0, 0)
        quick["quantize_per_tensor"] = _to_integers
    for node in graph.nodes:
        for name, kind in quick.items():
            if _is(node, name) and _is_uint8(node) and not node.kwargs:
                node.target, node.args = kind, node.args[:3]


def _to_integers(values: torch.Tensor, scale: float, zero_point: int) -> torch.Tensor:
    """uint8 by the fastest operator there is, its memory taken as it is."""
    quantised = torch.quantize_per_tensor(values, scale, zero_point, torch.quint8)
    out = torch.empty(0, dtype=torch.uint8)
    return out.set_(quantised.untyped_storage(), 0, quantised.shape, quantised.stride())


def _to_floats(integers: torch.Tensor, scale: float, zero_point: int) -> torch.Tensor:
    return integers.float().sub_(zero_point).mul_(scale)


def _compute_weights(program: fx.GraphModule) -> None:
    """Weights that are still dequantised: once, here."""
    for node in list(program.graph.nodes):
        if _is(node, "dequantize_per_channel"):
            args = [_tensor(program, a) if isinstance(a, fx.Node) else a for a in node.args]
            with program.graph.inserting_before(node), torch.no_grad():
                node.replace_all_uses_with(_constant(program, node.target(*args)))


def _constant(program: fx.GraphModule, tensor: torch.Tensor) -> Node:
    name = f"c{len(dict(program.named_buffers())):05d}"
    program.register_buffer(name, tensor)
    return program.graph.get_attr(name)


def _tensor(program: fx.GraphModule, node: Any) -> torch.Tensor:
    return getattr(program, str(node.target)).detach()  # type: ignore[no-any-return]


def _follower(node: Node | None) -> Node | None:
    """The one node that reads this one's result, if there is one only."""
    users = list(node.users) if node is not None else []
    return users[0] if len(users) == 1 else None


def _is(node: Any, name: str) -> bool:
    decomposed = torch.ops.quantized_decomposed
    return isinstance(node, fx.Node) and node.target == getattr(decomposed, name).default


def _is_uint8(node: Any) -> bool:
    return tuple(node.args[3:6]) == (0, 255, torch.uint8)
