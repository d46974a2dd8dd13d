"""A torch network as one ONNX file, quickly, with its layers' names in it."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import ModelProto, NodeProto, numpy_helper
from torch import nn

from ..errors import CandidateError
from .onnx_graph import rename, rows, simplify, strip
from .onnx_session import run_once
from .whole_file import write_bytes

OPSET = 17
MOST_BYTES = 2**31 - 2**20  # protobuf's limit of one file, less some room
LAYERS = (nn.Linear, nn.modules.conv._ConvNd)
WEIGHT_OPS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


@dataclass(frozen=True)
class _Call:
    """One call of a layer, in the order of execution; the second call of ``fc`` is ``fc#2``."""

    name: str
    op_types: tuple[str, ...]
    weight: np.ndarray  # (out, ...), or (in, out / groups, ...) of a transposed convolution


def export_model(network: nn.Module, example: torch.Tensor, opset: int = OPSET) -> ModelProto:
    """``network`` as an ONNX model: input "input", output "output", any batch size.

    network: in eval mode, on the CPU; not modified. example: (1, ...) float32; all sizes but the
    first stay fixed. Each Conv, Gemm or MatMul node carries the qualified name of its module (a
    module called twice gives ``name`` and ``name#2``). The same network gives the same bytes.

    torch's fast exporter is used (0.2 s for a ResNet-20), and where it fails the slower
    torch.export one. Raises CandidateError naming the operator or layer that cannot be exported.
    """
    calls = _layer_calls(network, example)
    model = _to_onnx(network, example, opset)
    if len(model.graph.output) != 1 or len(model.graph.input) != 1:
        raise CandidateError(
            f"export: the network has {len(model.graph.input)} inputs and "
            f"{len(model.graph.output)} outputs; one of each is needed"
        )
    simplify(model, example.detach().numpy(), run_once)
    rename(model, _match(model, calls))
    strip(model)
    return model


def write_model(model: ModelProto, path: Path) -> None:
    """Write one file atomically: a crash leaves the old file or the new one, never a part.

    Raises CandidateError for a model of 2 GB or more, EnvironmentFault when the disk refuses.
    """
    if model.ByteSize() > MOST_BYTES:
        raise CandidateError(
            f"export: the file would have {model.ByteSize()} bytes; ONNX ends at 2 GB"
        )
    write_bytes(path, model.SerializeToString(deterministic=True))


def _layer_calls(network: nn.Module, example: torch.Tensor) -> list[_Call]:
    """Run the network once and note each call of a convolution or linear layer."""
    calls: list[_Call] = []
    counts: dict[str, int] = {}
    entered = [""]
    hooks = []

    def watch(name: str, module: nn.Module) -> None:
        def enter(*_: object) -> None:
            entered[0] = name

        def leave(layer: nn.Module, *_: object) -> None:
            counts[name] = counts.get(name, 0) + 1
            called = name if counts[name] == 1 else f"{name}#{counts[name]}"
            weight = layer.weight.detach().numpy()  # type: ignore[operator, union-attr]
            calls.append(_Call(called, _op_types(layer), weight))

        hooks.append(module.register_forward_pre_hook(enter))
        if isinstance(module, LAYERS):
            hooks.append(module.register_forward_hook(leave))

    try:
        for name, module in network.named_modules():
            watch(name, module)
        with torch.no_grad():
            network(example)
    except Exception as error:
        where = entered[0] or "network"
        raise CandidateError(f"{where}: the network cannot run ({_line(error)})") from error
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def _op_types(layer: nn.Module) -> tuple[str, ...]:
    if isinstance(layer, nn.Linear):
        return ("Gemm", "MatMul")
    return ("ConvTranspose",) if layer.transposed else ("Conv",)


def _to_onnx(network: nn.Module, example: torch.Tensor, opset: int) -> ModelProto:
    names = {"input_names": ["input"], "output_names": ["output"]}
    try:
        with _exporting(), torch.no_grad():
            buffer = io.BytesIO()
            torch.onnx.export(
                network,
                (example,),
                buffer,  # type: ignore[arg-type]
                dynamo=False,
                opset_version=opset,
                dynamic_axes={"input": {0: "batch"}, "output": {0: "batch"}},
                **names,  # type: ignore[arg-type]
            )
        return onnx.load_model_from_string(buffer.getvalue())
    except Exception as error:
        first = error
    try:
        with _exporting(), torch.no_grad():
            program = torch.onnx.export(
                network,
                (torch.cat([example, example]),),  # torch.export takes a batch of 1 for a constant
                dynamo=True,
                opset_version=max(opset, 18),
                dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
                verbose=False,
                **names,  # type: ignore[arg-type]
            )
        if program is None:
            raise CandidateError(f"export: {_line(first)}")
        return program.model_proto
    except Exception as error:
        raise CandidateError(f"export: {_line(first)} (torch.export fails too)") from error


@contextlib.contextmanager
def _exporting() -> Iterator[None]:
    """No fused attention, and neither warnings nor prints (of Python or C++) nor log lines:
    what matters is raised."""
    former = logging.root.manager.disable
    fast_attention = torch.backends.mha.get_fastpath_enabled()  # one operator that ONNX has not
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    kept = [os.dup(1), os.dup(2)]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        with warnings.catch_warnings(), _python_streams_away():
            warnings.simplefilter("ignore")
            logging.disable(logging.CRITICAL)
            torch.backends.mha.set_fastpath_enabled(False)
            os.dup2(nowhere, 1)
            os.dup2(nowhere, 2)
            yield
    finally:
        logging.disable(former)
        torch.backends.mha.set_fastpath_enabled(fast_attention)
        for place, stream_copy in zip((1, 2), kept, strict=True):
            os.dup2(stream_copy, place)
            os.close(stream_copy)
        os.close(nowhere)


@contextlib.contextmanager
def _python_streams_away() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def _match(model: ModelProto, calls: list[_Call]) -> dict[int, str]:
    """Index of each weight-bearing node -> the name of the layer call that made it.

    Both are in order of execution. A node that no module made (a functional call) is passed
    over, and a layer whose result nobody uses is not in the graph; anything else is an error.
    """
    weights = {t.name: t for t in model.graph.initializer}
    nodes = [
        (index, node, np.asarray(numpy_helper.to_array(weights[node.input[1]])))
        for index, node in enumerate(model.graph.node)
        if node.op_type in WEIGHT_OPS and node.input[1] in weights
    ]
    found: dict[int, str] = {}
    start = 0
    for call in calls:
        for place in range(start, len(nodes)):
            index, node, weight = nodes[place]
            if _same(node, weight, call):
                found[index] = call.name
                start = place + 1
                break
    named = set(found.values())
    left = [(node, weight) for index, node, weight in nodes if index not in found]
    for call in calls:
        if call.name not in named and any(_fits(node, w, call) for node, w in left):
            raise CandidateError(
                f"{call.name}: its weights are not in the exported graph where they should be"
            )
    return found


def _fits(node: NodeProto, weight: np.ndarray, call: _Call) -> bool:
    return node.op_type in call.op_types and rows(node, weight).shape == call.weight.shape


def _same(node: NodeProto, weight: np.ndarray, call: _Call) -> bool:
    """Same operator, same shape, and each output channel the same up to a factor (a folded
    BatchNorm scales channels)."""
    if not _fits(node, weight, call):
        return False
    if node.op_type == "ConvTranspose":
        return True
    ours = rows(node, weight).reshape(len(call.weight), -1).astype(np.float64)
    theirs = call.weight.reshape(len(call.weight), -1).astype(np.float64)
    across = (ours * theirs).sum(axis=1) ** 2
    along = (ours**2).sum(axis=1) * (theirs**2).sum(axis=1)
    return bool(np.all(across >= 0.998 * along - 1e-30))


def _line(error: BaseException) -> str:
    """The first sentence of an error, without newlines and without paths."""
    text = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    words = [word for word in text.split() if not word.startswith(("/", "File"))]
    return " ".join(words)[:240]
