"""Where the time of an exported ONNX file goes, layer by layer, as ONNX Runtime's profiler sees it.

Medians over many runs of each kernel's own time. The profiler itself costs some microseconds a
kernel, which would make small kernels look dear: runs without it alternate with runs under it, and
what the kernels add up to beyond the former is taken off, the same for each kernel and at most what
the smallest one took. The results compare layers; they are no latency.
"""

from __future__ import annotations

import json
import re
import statistics
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import CandidateError
from .onnx_layers import is_weight, owners_of
from .onnx_session import one_line, open_session, parse_model, require_runtime

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

LEAST_RUNS, MOST_RUNS = 5, 200
_WARM = 3
_SUFFIX = re.compile(r"(_token_\d+|_nchwc|_quant|_kernel_time)$")
_COMPUTING = ("Conv", "Gemm", "MatMul")
_UNPACKING = ("DequantizeLinear", "Cast", "Sub", "Mul", "Reshape", "Transpose")  # of weights


def layer_times(
    path: Path, names: Iterable[str] = (), threads: int = 1, batch: int = 1, seconds: float = 0.25
) -> tuple[dict[str, float], float]:
    """(layer -> ms of its kernels for one batch, ms of all other kernels).

    names: the original network's layers. Runs for about ``seconds``. Raises CandidateError where
    the runtime refuses the file or its inputs have more than the first dimension open.
    """
    data = path.read_bytes()
    model = parse_model(data, path.name)
    layers = _layer_of_nodes(model, owners_of(model, list(names)))
    kernels = _profile(data, path.name, threads, batch, seconds)
    found: dict[str, float] = {}
    rest = 0.0
    for kernel, (operator, ms) in kernels.items():
        computing = any(word in operator for word in _COMPUTING)
        layer = layers.get(_stem(kernel)) if computing else None
        if layer is None:
            rest += ms
        else:
            found[layer] = found.get(layer, 0.0) + ms
    return found, rest


def _profile(
    data: bytes, where: str, threads: int, batch: int, seconds: float
) -> dict[str, tuple[str, float]]:
    """Kernel -> (operator, median milliseconds)."""
    runtime = require_runtime()
    plain = open_session(data, threads, where=where)
    with tempfile.TemporaryDirectory() as folder:
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        try:
            session = runtime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
            inputs = {i.name: _example(i, batch, where) for i in session.get_inputs()}
            whole: list[float] = []
            end = time.perf_counter() + seconds
            while len(whole) < LEAST_RUNS + _WARM or (
                len(whole) < MOST_RUNS and time.perf_counter() < end
            ):
                session.run(None, inputs)
                begin = time.perf_counter()
                plain.run(None, inputs)
                whole.append(1000 * (time.perf_counter() - begin))
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        except CandidateError:
            raise
        except Exception as error:
            raise CandidateError(f"{where}: cannot be profiled ({one_line(error)})") from error
    durations: dict[str, list[float]] = {}
    operators: dict[str, str] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            durations.setdefault(event["name"], []).append(event["dur"] / 1000)
            operators[event["name"]] = event["args"]["op_name"]
    medians = {name: statistics.median(ms[_WARM:] or ms) for name, ms in durations.items()}
    beyond = sum(medians.values()) - statistics.median(whole[_WARM:])
    cost = min(max(beyond, 0.0) / max(len(medians), 1), min(medians.values(), default=0.0))
    return {name: (operators[name], ms - cost) for name, ms in medians.items()}


def _example(given: object, batch: int, where: str) -> np.ndarray:
    shape = [*getattr(given, "shape", ())]
    if any(not isinstance(size, int) for size in shape[1:]):
        raise CandidateError(f"{where}: cannot be profiled (its input's shape is {shape})")
    whole = [shape[0] if shape and isinstance(shape[0], int) else batch, *shape[1:]]
    kinds = {"tensor(int64)": np.int64, "tensor(int32)": np.int32}
    kind = kinds.get(str(getattr(given, "type", "")))
    if kind is not None:
        return np.ones(whole, dtype=kind)
    return np.random.default_rng(0).random(whole, dtype=np.float32)


def _layer_of_nodes(model: ModelProto, owners: dict[str, str]) -> dict[str, str]:
    """Node -> layer, for nodes that compute one and those that the runtime fuses with it (a fused
    kernel has the name of its last node)."""
    made = {name: node for node in model.graph.node for name in node.output}
    found: dict[str, str] = {}
    for node in model.graph.node:
        layer = _own(node, owners, made)
        before = node
        for _ in range(4):
            if layer is not None or not before.input or before.input[0] not in made:
                break
            before = made[before.input[0]]
            layer = _own(before, owners, made)
        if layer is not None:  # fused kernels are called by the last node's name, or its output's
            found |= dict.fromkeys(map(_stem, (node.name, *node.output)), layer)
    return found


def _stem(name: str) -> str:
    while _SUFFIX.search(name):
        name = _SUFFIX.sub("", name)
    return name


def _own(node: NodeProto, owners: dict[str, str], made: dict[str, NodeProto]) -> str | None:
    """The layer whose weight a node reads, directly or through what unpacks it (see onnx_pack)."""
    if not any(word in node.op_type for word in _COMPUTING):
        return None
    for name in node.input:
        while name in made and made[name].op_type in _UNPACKING:
            name = made[name].input[0]
        if name in owners and is_weight(name):
            return owners[name]
    return None
