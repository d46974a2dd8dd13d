"""The target ``onnxruntime-cpu``: ONNX files in float32 and int8 on the CPU."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..errors import CandidateError, InputError, nearest
from ..spaces.choices import Choices
from .clipping import RANGES
from .cpu import cpu_features, saturates_int8
from .onnx_export import OPSET, export_model, write_model
from .onnx_pack import BASE_OPSET, check_weights, hold, pack
from .onnx_quantize import FORMATS, quantize_model
from .onnx_runtime_formats import quantize_blocks, quantize_dynamically
from .onnx_session import one_line, open_session, parse_model, require_runtime
from .speed_states import SpeedStates
from .target import Bits, Grid, Runtime, Timing
from .timing import Effort, compare, learn_states

PREDICT_BATCH = 100
AS_EVER = ((32, 32), (8, 8))
MORE_BITS = tuple((w, a) for w in (8, 6, 4, 3, 2) for a in (8, 32) if (w, a) != (8, 8))


class OnnxRuntimeCpu:
    """Export to ONNX, quantise with ONNX Runtime's static quantiser, run and time on the CPU.

    format: how int8 layers are written: "qoperator" or "qdq" (see onnx_quantize.py), or "dynamic".
    linears: "packed", or "blocks" to store linear layers of low bits as MatMulNBits, rounded by
        ONNX Runtime (see onnx_runtime_formats.py).
    threads: of the sessions that are timed. batch: examples a timed call computes.
    calibration_examples: how many of the given examples set the activation ranges.
    ranges: how activation ranges are found: minmax, percentile, mse or entropy.
    reduce_range: 7-bit weights; None = where this processor's int8 sums saturate.
    seconds: timing of one candidate ends after this, or earlier when the error is small.
    states: speed states learned before (JSON), so that workers compare within the same ones.

    Raises InputError on an option that cannot be.
    """

    name = "onnxruntime-cpu"
    format = "onnx"
    choices = Choices(wide_step=8, wide_from=32, more_bits=MORE_BITS)

    def __init__(
        self,
        *,
        format: str = "qoperator",
        threads: int = 1,
        batch: int = 1,
        calibration_examples: int = 256,
        reduce_range: bool | None = None,
        ranges: str = "minmax",
        linears: str = "packed",
        seconds: float = 3.0,
        states: Mapping[str, Any] | None = None,
    ) -> None:
        require_runtime()
        known = {"format": (*FORMATS, "dynamic"), "linears": ("packed", "blocks"), "ranges": RANGES}
        given = {"format": format, "linears": linears, "ranges": ranges}
        for option, text in given.items():
            if text not in known[option]:
                raise InputError(option, f"unknown {text!r}", nearest(str(text), known[option]))
        counts = {"threads": threads, "batch": batch, "calibration_examples": calibration_examples}
        for option, value in counts.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(option, f"expected a positive integer, got {value!r}", "")
        if reduce_range is not None and not isinstance(reduce_range, bool):
            raise InputError(
                "reduce_range", f"expected true, false or nothing, got {reduce_range!r}", ""
            )
        if (
            isinstance(seconds, bool)
            or not isinstance(seconds, int | float)
            or not 0 < seconds <= 600
        ):
            raise InputError(
                "seconds", f"expected a number of seconds up to 600, got {seconds!r}", ""
            )
        self.quantized_format = format
        self.threads = threads
        self.batch = batch
        self.calibration_examples = calibration_examples
        self.reduce_range = saturates_int8() if reduce_range is None else reduce_range
        self.ranges = ranges
        self.linears = linears
        self.seconds = float(seconds)
        self.states = None if states is None else SpeedStates.from_json(states, "states")
        self._baseline: tuple[tuple[Any, ...], Any, str] | None = None

    @property
    def description(self) -> dict[str, Any]:
        """Versions, options and processor, as plain JSON for manifests."""
        return {
            "target": self.name,
            "onnxruntime": require_runtime().__version__,
            "quantized_format": self.quantized_format,
            "reduce_range": self.reduce_range,
            "activation_ranges": self.ranges,
            "linears": self.linears,
            "threads": self.threads,
            "batch": self.batch,
            "calibration_examples": self.calibration_examples,
            "cpu": cpu_features(),
        }

    def export(
        self,
        network: nn.Module,
        example: torch.Tensor,
        bits: Mapping[str, Bits],
        calibration: Iterable[np.ndarray],
        path: Path,
        grids: Mapping[str, Grid] | None = None,
    ) -> None:
        """Write ``network`` as one ONNX file, its layers at the given bits; see Target.export.

        Weights of 2 to 8 bits, activations of 8 or 32. Weights of fewer than 8 bits are packed
        and unpacked when the file is opened (see onnx_pack), so they are as fast as 8 bits or,
        with float activations, as float32.

        Raises CandidateError naming the layer for other bits.
        """
        for layer, wanted in bits.items():
            pair = (wanted.weight, wanted.activation)
            if pair not in (*AS_EVER, *MORE_BITS):
                raise CandidateError(
                    f"{layer}: {self.name} runs weights of 32, 8, 6, 4, 3 or 2 bits and "
                    f"activations of 32 or 8, not {pair[0]} and {pair[1]}"
                )
        check_weights(network, bits)
        layers = [layer for layer, wanted in bits.items() if wanted.activation == 8]
        low = bool(grids) or any((b.weight, b.activation) not in AS_EVER for b in bits.values())
        model = export_model(network, example, BASE_OPSET if low else OPSET)
        stored: set[str] = set()
        if self.linears == "blocks":
            low_only = {n: b.weight for n, b in bits.items() if b.activation == 32}
            model, stored = quantize_blocks(model, low_only)
        rest = {name: wanted for name, wanted in bits.items() if name not in stored}
        held = hold(model, network, rest, grids, self.reduce_range)
        if self.quantized_format == "dynamic":
            if any(name in held for name in layers):
                raise CandidateError(f"{min(layers)}: dynamic quantisation has 8-bit weights only")
            model = quantize_dynamically(model, layers, self.reduce_range)
        else:
            model = quantize_model(
                model,
                layers,
                calibration,
                format=self.quantized_format,
                reduce_range=self.reduce_range,
                examples=self.calibration_examples,
                ranges=self.ranges,
                held=held,
            )
        pack(model, held)
        write_model(model, Path(path))

    def load(self, path: Path, threads: int = 1) -> Runtime:
        """The file in an optimised session. Raises CandidateError when it cannot be run."""
        data = _read(Path(path))
        parse_model(data, Path(path).name)
        return _Session(open_session(data, threads, where=Path(path).name), Path(path).name)

    def time(self, path: Path, baseline: Path, inputs: np.ndarray) -> Timing:
        """Latency of ``path`` beside ``baseline`` for ``self.batch`` of the ``inputs``.

        Fewer inputs than that are repeated. The speed states of the machine are learned from the
        baseline on the first call (2 s) and kept in ``self.states``; the state that comparisons
        are made in changes when the machine has mostly gone over to another one, and all are
        learned again when it has drifted so far that no round fits them. Only ratios of one
        ``Timing.state`` (and one set of levels, in the notes) are strictly comparable.
        """
        if len(inputs) == 0:
            raise InputError("inputs", "no example to time with", "give at least one")
        places = np.arange(self.batch) % len(inputs)
        batch = np.ascontiguousarray(inputs[places], dtype=np.float32)
        base_call, of = self._baseline_call(Path(baseline), batch)
        name = Path(path).name
        call = _call(open_session(_read(Path(path)), self.threads, where=name), batch, name)
        clock = time.thread_time_ns if self.threads == 1 else time.perf_counter_ns
        effort = Effort(seconds=self.seconds, most_seconds=2 * self.seconds)
        if self.states is None or self.states.of != of:
            self.states = learn_states(base_call, of=of, seconds=self.seconds, clock=clock)
        timing = compare(call, base_call, states=self.states, effort=effort, clock=clock)
        if timing.unstable:
            self.states = learn_states(base_call, of=of, seconds=self.seconds, clock=clock)
            timing = compare(call, base_call, states=self.states, effort=effort, clock=clock)
        if timing.share > 0.5 and 0 <= timing.state != self.states.reference:
            self.states = replace(self.states, reference=timing.state)
        notes = {**timing.notes, "threads": self.threads, "batch": self.batch}
        return Timing(**{**vars(timing), "notes": notes})

    def _baseline_call(self, path: Path, batch: np.ndarray) -> tuple[Callable[[], object], str]:
        """A call of the baseline (its session is kept for the next candidate), and what it is."""
        state = path.stat() if path.exists() else None
        key = (str(path.resolve()), state and (state.st_size, state.st_mtime_ns), batch.shape)
        if self._baseline is None or self._baseline[0] != key:
            data = _read(path)
            digest = hashlib.sha256(data).hexdigest()[:16]
            of = f"{digest} {'x'.join(map(str, batch.shape))} threads={self.threads}"
            self._baseline = (key, open_session(data, self.threads, where=path.name), of)
        return _call(self._baseline[1], batch, path.name), self._baseline[2]


class _Session:
    """A loaded file; ``predict`` takes any number of examples."""

    def __init__(self, session: Any, where: str) -> None:
        self._session = session
        self._where = where
        self._input = session.get_inputs()[0].name
        self._output = session.get_outputs()[0].name

    def predict(self, inputs: np.ndarray) -> np.ndarray:
        """Outputs (n, ...) for float32 inputs (n, ...), computed 100 at a time."""
        if len(inputs) == 0:
            raise InputError("inputs", "no example to predict", "give at least one")
        data = np.asarray(inputs, dtype=np.float32)
        try:
            parts = [
                self._session.run([self._output], {self._input: data[i : i + PREDICT_BATCH]})[0]
                for i in range(0, len(data), PREDICT_BATCH)
            ]
        except Exception as error:
            raise CandidateError(f"{self._where}: it does not run ({one_line(error)})") from error
        return np.concatenate(parts)


def _call(session: Any, batch: np.ndarray, where: str) -> Callable[[], object]:
    """A call of a session without arguments, tried once."""
    outputs, feed = [session.get_outputs()[0].name], {session.get_inputs()[0].name: batch}
    run = session.run
    try:
        run(outputs, feed)
    except Exception as error:
        raise CandidateError(f"{where}: it does not run ({one_line(error)})") from error
    return lambda: run(outputs, feed)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CandidateError(f"{path.name}: cannot be read ({error.strerror})") from error
