"""The target ``tensorrt``: engines of NVIDIA's TensorRT, in float32, float16 and int8."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..errors import CandidateError, InputError
from ..spaces.choices import Choices
from .clocked import PREDICT_BATCH, ClockedTarget, Run, brief, check_bits, require
from .onnx_export import export_model, write_model
from .onnx_session import parse_model
from .onnx_typed import write_types
from .target import Bits, Grid
from .timing import Clock
from .torch_eager import CudaClock

INSTALL = 'pip install "paretune[tensorrt]"'
OLDEST = 11  # the first TensorRT that takes a network's types from the file, and only from there
OPSET = 20  # Q/DQ pairs with float16 scales need 19


class TensorRt(ClockedTarget):
    """Export to ONNX with explicit types, build an engine of it here, run and time it on the GPU.

    The artifact is the ONNX file: an engine fits one kind of GPU and one version of TensorRT, so
    it is built anew (seconds to minutes) whenever a file is opened, here and where the file goes
    (``trtexec --onnx=model.onnx --saveEngine=model.plan``). Layers are float32 (in TF32 on GPUs
    that have it), float16, or int8 with float16 around them (see onnx_typed.py); the largest
    activations of the calibration examples set the scales.

    A timed call brings the batch to the GPU, runs the engine and brings the outputs back, between
    two CUDA events, as for ``torch-cuda``.
    builder_level: of optimisation, 0 to 5 (TensorRT's default is 3); higher builds longer.
    The other options are those of :class:`.clocked.ClockedTarget`.

    Raises InputError without a CUDA device, or without TensorRT 11 or newer.
    """

    name = "tensorrt"
    format = "onnx"
    device = "cuda"
    quantized_format = None  # of ONNX Runtime's quantiser, whose files' sizes can be predicted
    # kept channels in eights: what tensor cores take without padding (float16)
    choices = Choices(channel_step=8, bits=((32, 32), (16, 16), (8, 8)))

    def __init__(self, *, builder_level: int = 3, **options: Any) -> None:
        super().__init__(**options)
        whole = isinstance(builder_level, int) and not isinstance(builder_level, bool)
        if not whole or not 0 <= builder_level <= 5:
            raise InputError("builder_level", f"expected 0 to 5, got {builder_level!r}", "")
        self.builder_level = builder_level
        where = f"target {self.name!r}"
        if not torch.cuda.is_available():
            raise InputError(where, "there is no CUDA device here", "use 'onnxruntime-cpu'")
        self._trt = require("tensorrt", self.name, INSTALL)
        version = str(self._trt.__version__)
        if int(version.partition(".")[0]) < OLDEST:
            raise InputError(where, f"TensorRT {version} is older than {OLDEST}", INSTALL)
        self._log = _log(self._trt)
        self._tactics = b""  # what building engines has found out about kernels so far

    def _versions(self) -> dict[str, Any]:
        return {
            "tensorrt": self._trt.__version__,
            "builder_level": self.builder_level,
            "gpu": torch.cuda.get_device_name(),
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
        """Write ``network`` as one ONNX file with explicit types; see Target.export.

        Raises CandidateError naming the layer or operator that cannot be exported.
        """
        names = dict(network.named_modules())
        layers = check_bits(bits, self.choices.bits, names, self.name, grids)
        model = export_model(network, example, OPSET)
        short, eight = layers.get((16, 16), []), layers.get((8, 8), [])
        typed = write_types(model, short, eight, calibration, self.calibration_examples)
        write_model(typed, Path(path))

    def _built(self, data: bytes, batch: int | None, where: str) -> bytes:
        """An engine. batch: of every call; None: of 1 to as many as are predicted at once."""
        trt = self._trt
        parse_model(data, where)
        self._log.said = ""
        try:
            builder = trt.Builder(self._log)
            network = builder.create_network()
            parser = trt.OnnxParser(network, self._log)
            if not parser.parse(data):
                raise CandidateError(f"{where}: {_refusal(parser)}")
            config = builder.create_builder_config()
            config.builder_optimization_level = self.builder_level
            tactics = config.create_timing_cache(self._tactics)
            config.set_timing_cache(tactics, False)
            given = network.get_input(0)
            shape = tuple(given.shape)[1:]
            most = batch or max(PREDICT_BATCH, self.batch)
            profile = builder.create_optimization_profile()
            profile.set_shape(given.name, (batch or 1, *shape), (most, *shape), (most, *shape))
            config.add_optimization_profile(profile)
            engine = builder.build_serialized_network(network, config)
            if engine is None:
                raise CandidateError(f"{where}: TensorRT builds no engine ({self._log.said})")
            self._tactics = bytes(tactics.serialize())
            return bytes(engine)
        except (RuntimeError, TypeError, ValueError) as error:  # what the bindings raise
            cause = self._log.said or brief(error)
            raise CandidateError(f"{where}: TensorRT refuses it ({cause})") from error

    def _open(self, data: bytes, threads: int, batch: int | None, where: str) -> Run:
        trt = self._trt
        runtime = trt.Runtime(self._log)
        engine = runtime.deserialize_cuda_engine(self._built(data, batch, where))
        context = engine and engine.create_execution_context()
        if context is None:
            raise CandidateError(f"{where}: TensorRT cannot run its engine ({self._log.said})")
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        given, output = sorted(
            names, key=lambda name: engine.get_tensor_mode(name) != trt.TensorIOMode.INPUT
        )
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]

        def run(inputs: np.ndarray) -> np.ndarray:
            with torch.cuda.stream(stream):
                there = torch.from_numpy(inputs).to(self.device)
                context.set_input_shape(given, tuple(there.shape))
                found = torch.empty(tuple(context.get_tensor_shape(output)), device=self.device)
                context.set_tensor_address(given, there.data_ptr())
                context.set_tensor_address(output, found.data_ptr())
                if not context.execute_async_v3(stream.cuda_stream):
                    raise CandidateError(f"{where}: it does not run ({self._log.said})")
                return found.cpu().numpy()  # type: ignore[no-any-return]

        run.engine = runtime, engine  # type: ignore[attr-defined]  # live as long as the context
        return run

    @property
    def _clock(self) -> Clock:
        return CudaClock()


def _log(trt: Any) -> Any:
    """A logger that prints nothing and keeps the first error in ``said``, as one line."""

    class Log(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.said = ""

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.said = self.said or " ".join(msg.split())[:240]

    return Log()


def _refusal(parser: Any) -> str:
    """Why a file cannot be read: the operator that is lacking, or what is wrong with it."""
    if not parser.num_errors:
        return "TensorRT cannot read it"
    error = parser.get_error(0)
    at = f"{error.node_operator()} {error.node_name()!r}" if error.node_operator() else "it"
    return f"TensorRT cannot read {at} ({' '.join(error.desc().split())[:200]})"
