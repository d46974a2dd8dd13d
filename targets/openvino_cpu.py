"""The target ``openvino-cpu``: OpenVINO on the CPU, float32, bfloat16 and int8 by NNCF."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..errors import CandidateError, InputError, nearest
from ..spaces.choices import Choices
from .clocked import ClockedTarget, Run, brief, check_bits, first_examples, require
from .cpu import saturates_int8
from .onnx_export import export_model
from .onnx_quantize import place
from .signal_stack import kept_signal_stack
from .target import Bits, Grid
from .whole_file import write_bytes

INSTALL = 'pip install "paretune[openvino]"'
PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}
MODEL, WEIGHTS = "model.xml", "model.bin"
# Operators that NNCF quantises by itself; those that the plan does not put on 8 bits are excluded.
QUANTIZABLE = frozenset(
    {"Convolution", "GroupConvolution", "MatMul", "Add", "Multiply", "Concat", "AvgPool"}
    | {"ReduceMean", "Sigmoid", "MaxPool", "Subtract", "MVN", "Interpolate"}
)
_NOTES = re.compile(rb"\s*<rt_info>.*?</rt_info>(?=\s*</net>)", re.DOTALL)  # how it was made
_BIASLESS = "/WithoutBiases"  # how OpenVINO names a layer whose bias became an Add of its own


class OpenVinoCpu(ClockedTarget):
    """Export to OpenVINO's own format by way of ONNX, quantise with NNCF, run and time on the CPU.

    OpenVINO keeps a model in two files; the artifact is an uncompressed ZIP of the two, which
    any script reads back: ``core.read_model(z.read("model.xml"), z.read("model.bin"))``.
    precision: "float32", or "bfloat16" where the processor computes in it (the file is the same).
    The other options are those of :class:`.clocked.ClockedTarget`.
    """

    name = "openvino-cpu"
    format = "zip"
    choices = Choices()

    def __init__(self, *, precision: str = "float32", **options: Any) -> None:
        super().__init__(**options)
        if precision not in PRECISIONS:
            raise InputError(
                "precision", f"unknown precision {precision!r}", nearest(str(precision), PRECISIONS)
            )
        openvino = require("openvino", self.name, INSTALL)
        with kept_signal_stack():
            self._core = openvino.Core()
            able = self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if precision == "bfloat16" and "BF16" not in able:
            raise InputError(
                "precision", "this processor does not compute in bfloat16", "use 'float32'"
            )
        self.precision = precision

    def _versions(self) -> dict[str, Any]:
        return {
            "openvino": require("openvino", self.name, INSTALL).__version__.partition("-")[0],
            "precision": self.precision,
            "reduce_range": saturates_int8(),
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
        """Write ``network`` as a ZIP of model.xml and model.bin; see Target.export.

        Raises CandidateError naming the layer or the operator that OpenVINO does not have.
        """
        names = dict(network.named_modules())
        layers = check_bits(bits, self.choices.bits, names, self.name, grids).get((8, 8), [])
        onnx_model = export_model(network, example)
        kept = {node.name for node in onnx_model.graph.node}
        try:
            model = self._core.read_model(onnx_model.SerializeToString())
        except Exception as error:
            raise CandidateError(f"export: {_refusal(error)}") from error
        _fold(model)
        _rename(model, kept)
        if layers:
            on_8_bits = set(place(onnx_model, layers).nodes)
            examples = first_examples(calibration, self.calibration_examples)
            model = self._quantize(model, on_8_bits, examples)
        _rename(model, kept)
        write_bytes(Path(path), self._packed(model))

    def _quantize(self, model: Any, on_8_bits: set[str], examples: np.ndarray) -> Any:
        """The model with 8-bit weights and activations at those nodes, by NNCF's calibration."""
        nncf = require("nncf", self.name, INSTALL)
        others = []
        for operation in model.get_ordered_ops():
            name = operation.get_friendly_name()
            if operation.get_type_name() in QUANTIZABLE:
                others += [] if name.removesuffix(_BIASLESS) in on_8_bits else [name]
        fix = nncf.quantization.advanced_parameters.OverflowFix
        advanced = nncf.AdvancedQuantizationParameters(
            overflow_fix=fix.ENABLE if saturates_int8() else fix.DISABLE
        )
        with _quiet(nncf), kept_signal_stack():
            try:
                return nncf.quantize(
                    model,
                    nncf.Dataset([row[None] for row in examples]),
                    subset_size=len(examples),
                    ignored_scope=nncf.IgnoredScope(names=others, validate=False),
                    advanced_parameters=advanced,
                )
            except Exception as error:
                raise CandidateError(f"export: NNCF cannot quantise it ({brief(error)})") from error

    def _packed(self, model: Any) -> bytes:
        openvino = require("openvino", self.name, INSTALL)
        with tempfile.TemporaryDirectory(prefix="paretune-openvino-") as folder:
            xml = Path(folder) / MODEL
            openvino.save_model(model, xml, compress_to_fp16=False)
            parts = {
                MODEL: _NOTES.sub(b"", xml.read_bytes()),
                WEIGHTS: xml.with_suffix(".bin").read_bytes(),
            }
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as packed:
            for name, data in parts.items():
                packed.writestr(zipfile.ZipInfo(name), data)  # dated 1980: the same bytes again
        return out.getvalue()

    def _open(self, data: bytes, threads: int, batch: int | None, where: str) -> Run:
        settings = {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "INFERENCE_PRECISION_HINT": PRECISIONS[self.precision],
        }
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as packed:
                model = self._core.read_model(packed.read(MODEL), packed.read(WEIGHTS))
            if batch is not None:
                model.reshape([batch, *list(model.input(0).partial_shape)[1:]])
            request = self._core.compile_model(model, "CPU", settings).create_infer_request()
        except Exception as error:
            raise CandidateError(f"{where}: OpenVINO refuses it ({brief(error)})") from error

        def run(inputs: np.ndarray) -> np.ndarray:
            request.infer([inputs], share_inputs=True)
            return np.array(request.get_output_tensor(0).data)

        return run


def _fold(model: Any) -> None:
    """Compute what is constant: weights that the reader left to be reshaped (those of grouped
    convolutions) would count as activations for NNCF, and be stored as float32."""
    from openvino.passes import ConstantFolding, Manager

    passes = Manager()
    passes.register_pass(ConstantFolding())
    passes.run_passes(model)


def _refusal(error: Exception) -> str:
    """Why OpenVINO does not read a model: the operators that it lacks, else its last words."""
    summary = str(error).rpartition("Summary:")[2]
    lacking = re.search(r"No conversion rule found for operations: *(.+)", summary)
    if lacking:
        names = re.sub(r"-\d+\b", "", lacking[1]).strip()  # without the operator set
        return f"OpenVINO has no operator {names[:200]}"
    return f"OpenVINO refuses it ({brief(Exception(summary))})"


def _rename(model: Any, kept: set[str]) -> None:
    """Give what OpenVINO and NNCF numbered by a counter of the process a name of its own."""
    for index, operation in enumerate(model.get_ordered_ops()):
        name = operation.get_friendly_name()
        if name.removesuffix(_BIASLESS) not in kept and name not in ("input", "output"):
            operation.set_friendly_name(f"{operation.get_type_name()}_{index}")


@contextlib.contextmanager
def _quiet(nncf: Any) -> Iterator[None]:
    """Without NNCF's messages and progress bars."""
    logger = logging.getLogger("nncf")
    former = logger.level
    logger.setLevel(logging.ERROR)  # not nncf.set_log_level: that is for others' handlers too
    silence = io.StringIO()
    try:
        with contextlib.redirect_stdout(silence), contextlib.redirect_stderr(silence):
            yield
    finally:
        logger.setLevel(former)
