"""The target ``litert``: ``.tflite`` files for phones and boards, run by the LiteRT interpreter."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..errors import CandidateError
from ..spaces.choices import Choices
from . import litert_convert
from .clocked import (
    ClockedTarget,
    Run,
    brief,
    check_bits,
    first_examples,
    in_batches_of,
    require,
)
from .litert_environment import PACKAGES, converter_python
from .target import Bits, Grid
from .torch_program import write_named
from .whole_file import write_bytes

INSTALL = 'pip install "paretune[litert]"'
LONGEST_S = 900.0  # of a conversion


class LiteRt(ClockedTarget):
    """Convert to LiteRT's format in an environment of its own, run and time with its interpreter.

    The converter pins another torch than ours: ``paretune setup litert`` installs it once (see
    litert_environment.py), and each conversion is a child process there, half a minute long: best
    for the finalists of a search on a faster target. A file computes batches of one size,
    ``batch``; other numbers are run in parts. Weights are 8 bits per channel, activations 8 bits in
    the layers that the plan names; then the file's own input or output may be int8, with its scale
    in the file. The options are those of :class:`.clocked.ClockedTarget`.
    """

    name = "litert"
    format = "tflite"
    choices = Choices()

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._interpreter = require("ai_edge_litert.interpreter", self.name, INSTALL).Interpreter
        self._python = converter_python()

    def _versions(self) -> dict[str, Any]:
        from importlib.metadata import version

        converter = PACKAGES[0].rpartition("==")[2]
        return {"litert": version("ai-edge-litert"), "litert_torch": converter}

    def export(
        self,
        network: nn.Module,
        example: torch.Tensor,
        bits: Mapping[str, Bits],
        calibration: Iterable[np.ndarray],
        path: Path,
        grids: Mapping[str, Grid] | None = None,
    ) -> None:
        """Write ``network`` as one ``.tflite`` file; see Target.export.

        Raises CandidateError naming the layer, or what the converter refuses.
        """
        names = dict(network.named_modules())
        layers = check_bits(bits, self.choices.bits, names, self.name, grids).get((8, 8), [])
        try:
            program, tensors = write_named(network, example)
        except Exception as error:
            raise CandidateError(f"export: torch.export refuses it ({brief(error)})") from error
        for layer in layers:
            if f"{layer}.weight" not in tensors:
                raise CandidateError(f"{layer}: its weights are not in the exported program")
        with tempfile.TemporaryDirectory(prefix="paretune-litert-") as text:
            folder = Path(text)
            order = {
                "shape": [self.batch, *example.shape[1:]],
                "weights": {tensors[f"{layer}.weight"]: layer for layer in layers},
            }
            (folder / "order.json").write_text(json.dumps(order), encoding="utf-8")
            (folder / "program.safetensors").write_bytes(program)
            if layers:
                examples = first_examples(calibration, self.calibration_examples)
                np.save(folder / "calibration.npy", examples)
            write_bytes(Path(path), self._converted(folder))

    def _converted(self, folder: Path) -> bytes:
        command = [str(self._python), "-I", litert_convert.__file__, str(folder)]
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                errors="replace",
                stdin=subprocess.DEVNULL,
                cwd=folder,
                timeout=LONGEST_S,
            )
        except subprocess.TimeoutExpired as error:
            raise CandidateError(f"export: LiteRT's converter took over {LONGEST_S:g} s") from error
        if done.returncode:
            said = done.stderr.strip().splitlines() or [f"exit {done.returncode}"]
            raise CandidateError(f"export: LiteRT cannot convert it ({said[-1][:240]})")
        return (folder / "model.tflite").read_bytes()

    def _open(self, data: bytes, threads: int, batch: int | None, where: str) -> Run:
        if data[4:8] != b"TFL3":  # the identifier of its flatbuffers
            raise CandidateError(f"{where}: not a LiteRT model")
        try:
            interpreter = self._interpreter(model_content=data, num_threads=threads)
            interpreter.allocate_tensors()
            (given,), (gives,) = interpreter.get_input_details(), interpreter.get_output_details()
        except Exception as error:
            raise CandidateError(f"{where}: LiteRT refuses it ({brief(error)})") from error

        def run(inputs: np.ndarray) -> np.ndarray:
            interpreter.set_tensor(given["index"], _stored(inputs, given))
            interpreter.invoke()
            return _real(interpreter.get_tensor(gives["index"]), gives)

        return in_batches_of(int(given["shape"][0]), run) if batch is None else run


def _stored(values: np.ndarray, tensor: Mapping[str, Any]) -> np.ndarray:
    """Float values as the file's tensor holds them."""
    if tensor["dtype"] is np.float32:
        return values
    scale, zero = tensor["quantization"]
    limits = np.iinfo(tensor["dtype"])
    integers = np.clip(np.rint(values / np.float32(scale)) + zero, limits.min, limits.max)
    return integers.astype(tensor["dtype"])  # type: ignore[no-any-return]


def _real(values: np.ndarray, tensor: Mapping[str, Any]) -> np.ndarray:
    """The file's tensor as float values."""
    if tensor["dtype"] is np.float32:
        return values
    scale, zero = tensor["quantization"]
    return (values.astype(np.float32) - np.float32(zero)) * np.float32(scale)  # type: ignore[no-any-return]
