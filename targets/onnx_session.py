"""ONNX Runtime sessions: quiet, of a given number of threads, on one provider, from bytes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import CandidateError, InputError

if TYPE_CHECKING:  # sessions need no onnx, and a small board has none
    from onnx import GraphProto, ModelProto, TensorProto

OPTIMISED, PLAIN = "ORT_ENABLE_ALL", "ORT_DISABLE_ALL"
CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


def require_runtime(target: str = "onnxruntime-cpu") -> Any:
    """The onnxruntime module, its telemetry off (from 1.31 on it writes files and sends events).

    Raises InputError saying how to install it. ``ORT_DISABLE_TELEMETRY=0`` in the environment is
    left as it is.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime
    except ImportError as error:
        raise InputError(
            f"target {target!r}",
            f"onnxruntime is missing ({error})",
            'pip install "onnxruntime"',
        ) from error
    return onnxruntime


def open_session(
    data: bytes,
    threads: int = 1,
    level: str = OPTIMISED,
    where: str = "model",
    provider: str = CPU,
) -> Any:
    """An ``onnxruntime.InferenceSession`` of a serialised model.

    threads: of one operator (operators run one after another). level: of graph optimisation.
    provider: where it runs; operators that another one than the CPU has not are left to the CPU.
    Raises CandidateError in one line, beginning with ``where``, when the runtime refuses it, or
    leaves the provider out (as it does, silently, where a library or a device is missing).
    """
    runtime = require_runtime()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = runtime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = getattr(runtime.GraphOptimizationLevel, level)
    options.log_severity_level = 4
    try:
        session = runtime.InferenceSession(
            data, options, providers=list(dict.fromkeys((provider, CPU))), enable_fallback=0
        )
    except Exception as error:
        raise CandidateError(f"{where}: ONNX Runtime refuses it ({one_line(error)})") from error
    if session.get_providers()[0] != provider:
        raise CandidateError(f"{where}: ONNX Runtime cannot use {provider} here")
    return session


def run_once(
    model: ModelProto, inputs: dict[str, np.ndarray], outputs: list[str]
) -> list[np.ndarray]:
    """Outputs of a model as it stands, without optimisation."""
    session = open_session(model.SerializeToString(), level=PLAIN)
    try:
        return [np.asarray(value) for value in session.run(outputs, inputs)]
    except Exception as error:
        raise CandidateError(
            f"export: the exported graph does not run ({one_line(error)})"
        ) from error


def parse_model(data: bytes, where: str) -> ModelProto:
    """A serialised model; refused are other files and models whose weights lie in other files.

    Raises CandidateError in one line, beginning with ``where``.
    """
    import onnx

    try:
        model = onnx.load_model_from_string(data)
    except Exception as error:
        raise CandidateError(f"{where}: not an ONNX file ({type(error).__name__})") from error
    if not model.graph.node or not model.graph.output:
        raise CandidateError(f"{where}: not an ONNX file (no graph in it)")
    for tensor in _tensors(model.graph):
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            raise CandidateError(
                f"{where}: tensor {tensor.name!r} lies in another file; "
                "write one file without external data"
            )
    return model


def _tensors(graph: GraphProto) -> list[TensorProto]:
    found = [*graph.initializer]
    for sparse in graph.sparse_initializer:
        found += [sparse.values, sparse.indices]
    for node in graph.node:
        for attribute in node.attribute:
            found += [attribute.t, *attribute.tensors]
            for inner in (attribute.g, *attribute.graphs):
                if inner.node or inner.initializer:
                    found += _tensors(inner)
    return found


def one_line(error: BaseException) -> str:
    """An error of the runtime in one line without its error-code prefix."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text.rpartition("[ONNXRuntimeError] : ")[2][:240]
