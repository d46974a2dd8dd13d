"""The target ``onnxruntime-cpu``: ONNX files in float32 and int8 on the CPU."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..errors import CandidateError, InputError, nearest
from ..spaces.choices import Choices
from .clipping import RANGES
from .clocked import ClockedTarget, Run
from .cpu import saturates_int8
from .onnx_export import OPSET, export_model, write_model
from .onnx_pack import BASE_OPSET, check_weights, hold, pack
from .onnx_quantize import FORMATS, quantize_model
from .onnx_runtime_formats import quantize_blocks, quantize_dynamically
from .onnx_session import CPU, one_line, open_session, parse_model, require_runtime
from .target import Bits, Grid

AS_EVER = ((32, 32), (8, 8))
MORE_BITS = tuple((w, a) for w in (8, 6, 4, 3, 2) for a in (8, 32) if (w, a) != (8, 8))


class OnnxRuntimeCpu(ClockedTarget):
    """Export to ONNX, quantise with ONNX Runtime's static quantiser, run and time on the CPU.

    format: how int8 layers are written: "qoperator" or "qdq" (see onnx_quantize.py), or "dynamic".
    linears: "packed", or "blocks" to store linear layers of low bits as MatMulNBits, rounded by
        ONNX Runtime (see onnx_runtime_formats.py).
    ranges: how activation ranges are found: minmax, percentile, mse or entropy.
    reduce_range: 7-bit weights; None = where this processor's int8 sums saturate.
    The other options are those of :class:`.clocked.ClockedTarget`.
    """

    name = "onnxruntime-cpu"
    format = "onnx"
    choices = Choices(wide_step=8, wide_from=32, more_bits=MORE_BITS)
    provider = CPU

    def __init__(
        self,
        *,
        format: str = "qoperator",
        reduce_range: bool | None = None,
        ranges: str = "minmax",
        linears: str = "packed",
        seconds: float = 3.0,
        **options: Any,
    ) -> None:
        require_runtime(self.name)
        super().__init__(seconds=seconds, **options)
        known = {"format": (*FORMATS, "dynamic"), "linears": ("packed", "blocks"), "ranges": RANGES}
        given = {"format": format, "linears": linears, "ranges": ranges}
        for option, text in given.items():
            if text not in known[option]:
                raise InputError(option, f"unknown {text!r}", nearest(str(text), known[option]))
        if reduce_range is not None and not isinstance(reduce_range, bool):
            raise InputError(
                "reduce_range", f"expected true, false or nothing, got {reduce_range!r}", ""
            )
        self.quantized_format = format
        self.reduce_range = saturates_int8() if reduce_range is None else reduce_range
        self.ranges = ranges
        self.linears = linears

    def _versions(self) -> dict[str, Any]:
        return {
            "onnxruntime": require_runtime(self.name).__version__,
            "quantized_format": self.quantized_format,
            "reduce_range": self.reduce_range,
            "activation_ranges": self.ranges,
            "linears": self.linears,
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
        offered = {*self.choices.bits, *self.choices.more_bits}
        for layer, wanted in bits.items():
            pair = (wanted.weight, wanted.activation)
            if pair not in offered:
                weights, activations = (
                    ", ".join(map(str, sorted(set(widths), reverse=True)))
                    for widths in zip(*offered, strict=True)
                )
                raise CandidateError(
                    f"{layer}: {self.name} runs weights of {weights} bits and activations of "
                    f"{activations}, not {pair[0]} and {pair[1]}"
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

    def _open(self, data: bytes, threads: int, batch: int | None, where: str) -> Run:
        parse_model(data, where)
        session = open_session(data, threads, where=where, provider=self.provider)
        given, outputs = session.get_inputs()[0].name, [session.get_outputs()[0].name]

        def run(inputs: np.ndarray) -> np.ndarray:
            try:
                return session.run(outputs, {given: inputs})[0]  # type: ignore[no-any-return]
            except Exception as error:
                raise CandidateError(f"{where}: it does not run ({one_line(error)})") from error

        return run
