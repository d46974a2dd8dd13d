"""A torch network as one safe file: its ATen operators as JSON, its tensors as safetensors.

Nothing in the file is run as code: operators are looked up in an allow-list, arguments are plain
values. The file needs torch and safetensors only; the network's own class is not needed.
"""

from __future__ import annotations

import importlib
import json
import operator
import re
from collections.abc import Callable
from typing import Any

import torch
from safetensors.torch import load, save
from torch import fx, nn

VERSION = "1"
MOST_NODES = 100_000
# Operators that only compute: what torch.export gives for convolutional networks and transformers.
ATEN = frozenset(
    """conv1d conv2d conv3d conv_transpose2d linear addmm matmul mm bmm batch_norm layer_norm
    group_norm instance_norm relu relu6 gelu silu sigmoid tanh hardtanh hardswish hardsigmoid
    leaky_relu elu softmax log_softmax scaled_dot_product_attention max_pool1d max_pool2d
    avg_pool1d avg_pool2d adaptive_avg_pool1d adaptive_avg_pool2d mean sum add sub mul div pow
    sqrt rsqrt exp neg abs clamp minimum maximum cat stack flatten view reshape permute transpose t
    contiguous clone expand unsqueeze squeeze slice select split split_with_sizes chunk unbind pad
    constant_pad_nd dropout to _to_copy alias detach sym_size embedding upsample_nearest2d
    upsample_bilinear2d arange full zeros ones zeros_like ones_like _unsafe_view unflatten
    rsub index_select gather masked_fill where eq ne lt gt le ge lift_fresh_copy""".split()  # noqa: SIM905
)
# Values to 8-bit integers and back; torch registers them where PT2E's operators are imported.
DECOMPOSED = ("quantize_per_tensor", "dequantize_per_tensor", "dequantize_per_channel")
NUMBERS: dict[str, Callable[..., Any]] = {
    f: getattr(operator, f) for f in ("getitem", "mul", "add", "sub", "floordiv")
}
_TEXT = re.compile(r"[a-z_]{0,24}")
_DTYPES = ("float32", "float16", "bfloat16", "int64", "int32", "int8", "uint8", "bool")


class ProgramError(ValueError):
    """A network that cannot be written, or a file that is no program; the message is one line."""


def write_program(network: nn.Module, example: torch.Tensor) -> bytes:
    """The file's content. network: eval mode; example: (1, ...) float32; any batch size runs.

    Raises ProgramError naming an operator that is not in the allow-list.
    """
    return write_named(network, example)[0]


def write_named(network: nn.Module, example: torch.Tensor) -> tuple[bytes, dict[str, str]]:
    """The same, and which of the file's tensors each parameter became: name -> tensor."""
    program = exported(network, example)
    signature, tensors = program.graph_signature, dict[str, torch.Tensor]()
    held = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    held |= signature.inputs_to_lifted_tensor_constants
    place: dict[fx.Node, int] = {}
    rows: list[Any] = []
    named: dict[str, str] = {}
    for node in program.graph.nodes:
        if node.op == "placeholder":
            if node.name in held and not node.users:
                continue
            if node.name in held:
                key = f"t{len(tensors):05d}"
                tensors[key] = _tensor(program, held[node.name])
                named[held[node.name]] = key
                row: Any = {"tensor": key}
            else:
                row = {"input": 0}
        elif node.op == "call_function":
            name = _name(node.target)
            if "assert" in name:  # a check of shapes, without a result
                continue
            keywords = {k: _coded(v, place) for k, v in node.kwargs.items()}
            row = {"call": name, "args": _coded(list(node.args), place), "kwargs": keywords}
        elif node.op == "output":
            row = {"output": _coded(node.args[0][0], place)}
        else:
            raise ProgramError(f"{node.op} {node.name!r} cannot be written")
        place[node] = len(rows)
        rows.append(row)
    # one entry only: safetensors writes several in an order that changes from call to call
    data: bytes = save(
        tensors, {"program": json.dumps({"version": VERSION, "rows": rows}, separators=(",", ":"))}
    )
    return data, named


def exported(network: nn.Module, example: torch.Tensor) -> torch.export.ExportedProgram:
    """torch.export's graph of ``network`` for any batch size; example: (1, ...) float32."""
    pair = torch.cat([example, example])
    shapes = ({0: torch.export.Dim("batch", min=1, max=65536)},)
    return torch.export.export(network, (pair,), dynamic_shapes=shapes)


def read_program(data: bytes, device: str = "cpu") -> fx.GraphModule:
    """The network again: (n, ...) float32 -> (n, ...). Raises ProgramError."""
    try:
        length = int.from_bytes(data[:8], "little")
        notes = json.loads(data[8 : 8 + length])["__metadata__"]
        tensors, program = load(data), json.loads(notes["program"])
        rows = program["rows"]
        if program["version"] != VERSION or not 0 < len(rows) <= MOST_NODES:
            raise ProgramError("not a torch program of this version")
        return _built(rows, {k: v.to(device) for k, v in tensors.items()}, device)
    except ProgramError:
        raise
    except Exception as error:
        raise ProgramError(f"not a torch program ({type(error).__name__})") from error


def _built(rows: list[Any], tensors: dict[str, torch.Tensor], device: str) -> fx.GraphModule:
    root, graph, nodes = nn.Module(), fx.Graph(), list[fx.Node]()
    for key, tensor in tensors.items():
        if not re.fullmatch(r"t\d{1,9}", key):
            raise ProgramError("not a torch program (a tensor's name)")
        if tensor.is_floating_point():  # PT2E folds a BatchNorm into parameters only
            root.register_parameter(key, nn.Parameter(tensor, requires_grad=False))
        else:
            root.register_buffer(key, tensor)
    for row in rows:
        if "tensor" in row:
            nodes.append(graph.get_attr(row["tensor"]))
        elif "input" in row:
            nodes.append(graph.placeholder("inputs"))
        elif "output" in row:
            nodes.append(graph.output(_plain(row["output"], nodes, device)))
        else:
            args = tuple(_plain(row["args"], nodes, device))
            keywords = {str(k): _plain(v, nodes, device) for k, v in row["kwargs"].items()}
            nodes.append(graph.call_function(_operator(row["call"]), args, keywords))
    return fx.GraphModule(root, graph).eval()


def _name(target: Any) -> str:
    if isinstance(target, torch._ops.OpOverload):
        name = str(target)
    else:
        name = f"operator.{getattr(target, '__name__', target)}"
    if "assert" not in name:
        _operator(name)
    return name


def _operator(name: str) -> Callable[..., Any]:
    parts = str(name).split(".")
    if len(parts) == 2 and parts[0] == "operator" and parts[1] in NUMBERS:
        return NUMBERS[parts[1]]
    if (
        len(parts) == 3
        and parts[0] == "aten"
        and (parts[1] in ATEN or parts[1].rstrip("_") in ATEN)
    ):
        found = getattr(getattr(torch.ops.aten, parts[1]), parts[2], None)
        if isinstance(found, torch._ops.OpOverload):  # a packet has methods besides
            return found
    if len(parts) == 3 and parts[0] == "quantized_decomposed":
        importlib.import_module("torch.ao.quantization.fx._decomposed")  # registers them
        if parts[1] in DECOMPOSED and parts[2] == "default":
            return getattr(torch.ops.quantized_decomposed, parts[1]).default  # type: ignore[no-any-return]
    raise ProgramError(f"operator {str(name)[:60]!r} cannot be kept in a torch program")


def _tensor(program: Any, name: str) -> torch.Tensor:
    for group in (program.state_dict, program.constants):
        if name in group:
            return group[name].detach().contiguous().clone()  # type: ignore[no-any-return]
    raise ProgramError(f"tensor {name!r} is missing")


def _coded(value: Any, place: dict[fx.Node, int]) -> Any:
    """An argument as JSON."""
    if isinstance(value, fx.Node):
        return {"node": place[value]}
    if isinstance(value, list | tuple):
        return [_coded(v, place) for v in value]
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, torch.device):
        return {"device": True}
    if isinstance(value, torch.memory_format | torch.layout):
        return None
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ProgramError(f"an argument of type {type(value).__name__} cannot be written")


def _plain(value: Any, nodes: list[fx.Node], device: str) -> Any:
    """An argument from JSON."""
    if isinstance(value, list):
        return [_plain(v, nodes, device) for v in value]
    if isinstance(value, dict):
        (kind, inner), *more = value.items()
        if kind == "node" and not more:
            return nodes[int(inner)]
        if kind == "dtype" and inner in _DTYPES:
            return getattr(torch, inner)
        if kind == "device":
            return torch.device(device)
        raise ProgramError("not a torch program (an argument)")
    if isinstance(value, str) and not _TEXT.fullmatch(value):
        raise ProgramError("not a torch program (a text argument)")
    return value
