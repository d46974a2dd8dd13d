"""Ranges of the activations of an ONNX model, from examples: ONNX Runtime's ways and one more."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, helper

from ..errors import CandidateError, InputError, nearest
from .clipping import RANGES
from .onnx_session import one_line, open_session, require_runtime

CHUNK = 16  # examples per calibration run: their activations stay in the cache
BOUNDED_OPS = frozenset({"Relu", "Clip"})  # vanish into the operator before them
PERCENTILE = 99.999  # of an activation's values, half of the rest cut off at each end
LEAST_EXAMPLES = 16  # that a histogram is made of
LEVELS = 255
_BINS = 2048
_SHARES = np.linspace(1.0, 0.3, 71)


def calibrate(
    model: ModelProto,
    nodes: Collection[str],
    calibration: Iterable[np.ndarray],
    examples: int = 256,
    threads: int = 1,
    ranges: str = "minmax",
) -> dict[str, tuple[float, float]]:
    """The range of every float32 tensor that ``nodes`` read or write.

    model: with inferred shapes. ranges: ``"minmax"``, the smallest and largest value;
    ``"percentile"`` (99.999 %) and ``"entropy"``, found by ONNX Runtime's own collectors;
    ``"mse"``, the part of the min-max range whose 8-bit values are nearest in the mean square.
    The input of a Relu or Clip among ``nodes`` takes the range of its output, into which it
    vanishes.

    Raises CandidateError without examples (histograms need at least 16), or when an activation
    is not finite; InputError on an unknown name.
    """
    if ranges not in RANGES:
        raise InputError("activation_ranges", f"unknown {ranges!r}", nearest(ranges, RANGES))
    tensors = _tensors_of(model, set(nodes))
    input_name = model.graph.input[0].name
    inner = [name for name in tensors if name != input_name]
    if ranges == "minmax":
        found = _extremes(model, inner, _chunks(calibration, examples), threads)
    else:
        found = _histograms(model, inner, _chunks(calibration, examples), threads, ranges)
    for name, (low, high) in found.items():
        if not (np.isfinite(low) and np.isfinite(high)):
            raise CandidateError(f"calibration: {name} is not finite ({low} to {high})")
    for node in model.graph.node:
        if node.op_type in BOUNDED_OPS and node.name in nodes:
            found[node.input[0]] = found[node.output[0]]
    return found


def _extremes(
    model: ModelProto, inner: list[str], chunks: Iterable[np.ndarray], threads: int
) -> dict[str, tuple[float, float]]:
    """Smallest and largest value, computed inside the runtime."""
    probe = ModelProto()
    probe.CopyFrom(model)
    del probe.graph.output[:]
    for index, name in enumerate(inner):
        for op in ("ReduceMin", "ReduceMax"):
            out = f"{op}/{index}"
            probe.graph.node.append(helper.make_node(op, [name], [out], keepdims=0))
            probe.graph.output.append(helper.make_tensor_value_info(out, TensorProto.FLOAT, []))
    lows, highs = [], []
    for batch, outputs in _runs(probe, chunks, threads):
        values = np.array(outputs, dtype=np.float64)
        lows.append([batch.min(), *values[0::2]])
        highs.append([batch.max(), *values[1::2]])
    low, high = np.min(lows, axis=0), np.max(highs, axis=0)
    names = [model.graph.input[0].name, *inner]
    return {n: (float(a), float(b)) for n, a, b in zip(names, low, high, strict=True)}


def _histograms(
    model: ModelProto, inner: list[str], chunks: Iterable[np.ndarray], threads: int, ranges: str
) -> dict[str, tuple[float, float]]:
    require_runtime()
    from onnxruntime.quantization.calibrate import HistogramCollector

    probe = ModelProto()
    probe.CopyFrom(model)
    del probe.graph.output[:]
    probe.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in inner
    )
    method = "entropy" if ranges == "entropy" else "percentile"
    collector = HistogramCollector(method, False, _BINS, 128, PERCENTILE, None)
    count = 0
    for batch, outputs in _runs(probe, chunks, threads):
        values = dict(zip(inner, outputs, strict=True)) | {model.graph.input[0].name: batch}
        for name, value in values.items():
            if not np.isfinite(value).all():
                raise CandidateError(f"calibration: {name} is not finite (NaN or infinite)")
        collector.collect(values)
        count += len(batch)
    if count < LEAST_EXAMPLES:
        raise CandidateError(
            f"calibration: {count} examples are too few for {ranges!r} ranges; "
            f"give at least {LEAST_EXAMPLES}, or take 'minmax'"
        )
    if ranges == "mse":
        return _least_squares(collector.get_histogram_dict())
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        found = collector.compute_collection_result()
    return {name: (float(value[0]), float(value[1])) for name, value in found.items()}


def _least_squares(histograms: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """The share of each min-max range whose rounded values are nearest in the mean square."""
    found = {}
    for name, (counts, edges, low, high, *_) in histograms.items():
        low, high = min(float(low), 0.0), max(float(high), 0.0)
        middle = (np.asarray(edges[1:], dtype=np.float64) + edges[:-1]) / 2
        best = (np.inf, low, high)
        for share in _SHARES:
            a, b = low * share, high * share
            step = max((b - a) / LEVELS, float(np.finfo(np.float32).tiny))
            beyond = np.maximum(np.maximum(middle - b, a - middle), 0)
            error = float(np.sum(counts * np.where(beyond > 0, beyond**2, step**2 / 12)))
            best = min(best, (error, a, b))
        found[name] = best[1:]
    return found


def _runs(
    probe: ModelProto, chunks: Iterable[np.ndarray], threads: int
) -> Iterable[tuple[np.ndarray, list[np.ndarray]]]:
    """Each batch with the outputs of ``probe`` for it."""
    session = open_session(probe.SerializeToString(), threads, where="calibration")
    input_name = probe.graph.input[0].name
    count = 0
    for batch in chunks:
        try:
            outputs = session.run(None, {input_name: batch}) if probe.graph.output else []
        except Exception as error:
            raise CandidateError(
                f"calibration: the network does not run ({one_line(error)})"
            ) from error
        count += len(batch)
        yield batch, outputs
    if not count:
        raise CandidateError("calibration: no example given; 8-bit activations need some")


def _tensors_of(model: ModelProto, nodes: set[str]) -> list[str]:
    graph = model.graph
    infos = (*graph.input, *graph.output, *graph.value_info)
    floats = {v.name for v in infos if v.type.tensor_type.elem_type == TensorProto.FLOAT}
    constant = {t.name for t in graph.initializer}
    found: dict[str, None] = {}
    for node in graph.node:
        if node.name in nodes:
            found |= dict.fromkeys((*node.input, *node.output))
    vanishing = {
        node.input[0] for node in graph.node if node.op_type in BOUNDED_OPS and node.name in nodes
    }
    return [n for n in found if n in floats and n not in constant and n not in vanishing]


def _chunks(calibration: Iterable[np.ndarray], examples: int) -> Iterable[np.ndarray]:
    left = examples
    for batch in calibration:
        for start in range(0, len(batch), CHUNK):
            if left <= 0:
                return
            chunk = np.ascontiguousarray(batch[start : start + min(CHUNK, left)], dtype=np.float32)
            left -= len(chunk)
            yield chunk
