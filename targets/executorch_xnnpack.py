"""The target ``executorch-xnnpack``: ``.pte`` programs for phones and boards, run from Python."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..errors import CandidateError
from ..spaces.choices import Choices
from .clocked import (
    ClockedTarget,
    Run,
    brief,
    check_bits,
    first_examples,
    in_batches_of,
    require,
)
from .litert_convert import WEIGHTED, chosen_nodes
from .target import Bits, Grid
from .whole_file import write_bytes

INSTALL = 'pip install "paretune[executorch]"'


class ExecuTorchXnnpack(ClockedTarget):
    """Lower to ExecuTorch's XNNPACK backend: float32, and int8 by PT2E quantisation.

    A program computes batches of one size, ``batch``; other numbers are run in parts. Weights are
    8 bits per channel, activations 8 bits (min-max ranges) in the layers that the plan names.
    A conversion takes 10 to 100 seconds: best for the finalists of a search on a faster target.
    The options are those of :class:`.clocked.ClockedTarget`.
    """

    name = "executorch-xnnpack"
    format = "pte"
    choices = Choices()

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        require("executorch.exir", self.name, INSTALL)
        self._runtime = require("executorch.runtime", self.name, INSTALL).Runtime.get()

    def _versions(self) -> dict[str, Any]:
        from importlib.metadata import version

        return {"executorch": version("executorch"), "torch": torch.__version__}

    def export(
        self,
        network: nn.Module,
        example: torch.Tensor,
        bits: Mapping[str, Bits],
        calibration: Iterable[np.ndarray],
        path: Path,
        grids: Mapping[str, Grid] | None = None,
    ) -> None:
        """Write ``network`` as one ``.pte`` file; see Target.export.

        Raises CandidateError naming the layer, or the operator that cannot be lowered.
        """
        names = dict(network.named_modules())
        layers = check_bits(bits, self.choices.bits, names, self.name, grids).get((8, 8), [])
        inputs = example.detach().expand(self.batch, *example.shape[1:]).contiguous()
        with _quiet():
            try:
                program = torch.export.export(copy.deepcopy(network).eval(), (inputs,))
                if layers:
                    examples = first_examples(calibration, self.calibration_examples)
                    module = self._quantized(program.module(), layers, examples)
                    program = torch.export.export(module, (inputs,))
                data = _lowered(program)
            except CandidateError:
                raise
            except Exception as error:
                raise CandidateError(
                    f"export: ExecuTorch cannot lower it ({type(error).__name__}: {brief(error)})"
                ) from error
        write_bytes(Path(path), data)

    def _quantized(self, module: Any, layers: list[str], examples: np.ndarray) -> nn.Module:
        """The exported program with 8-bit layers, and what lies between them alone (see
        :func:`.litert_convert.chosen_nodes`). Raises CandidateError naming a layer without."""
        from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
            XNNPACKQuantizer,
            get_symmetric_quantization_config,
        )
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

        weights = {f"{layer}.weight": layer for layer in layers}

        class ByWeight(XNNPACKQuantizer):  # type: ignore[misc]
            """By modules' names it would leave out every layer: weights belong to no module."""

            def annotate(self, model: torch.fx.GraphModule) -> torch.fx.GraphModule:
                chosen = chosen_nodes(model.graph, weights)
                self.set_filter_function(lambda node: node in chosen)
                return super().annotate(model)  # type: ignore[no-any-return]

        settings = get_symmetric_quantization_config(is_per_channel=True)
        prepared = prepare_pt2e(module, ByWeight().set_global(settings))
        observed = {
            str(node.args[1].args[0].target)
            for node in prepared.graph.nodes
            if node.target in WEIGHTED and node.args[1].op == "call_module"
        }
        for weight, layer in weights.items():
            if weight not in observed:
                raise CandidateError(f"{layer}: ExecuTorch has no 8-bit form of it")
        size = self.batch
        with torch.no_grad():
            for start in range(0, len(examples), size):
                places = np.arange(start, start + size) % len(examples)  # the last: from the first
                prepared(torch.from_numpy(examples[places]))
        return convert_pt2e(prepared)  # type: ignore[no-any-return]

    def _open(self, data: bytes, threads: int, batch: int | None, where: str) -> Run:
        _set_threads(threads)
        if len(data) < 16 or data[4:6] != b"ET":  # the identifier of ExecuTorch's flatbuffers
            raise CandidateError(f"{where}: not an ExecuTorch program")
        try:
            program = self._runtime.load_program(data)
            method = program.load_method("forward")
            size = int(method.metadata.input_tensor_meta(0).sizes()[0])
        except Exception as error:
            raise CandidateError(f"{where}: ExecuTorch refuses it ({brief(error)})") from error

        def run(inputs: np.ndarray) -> np.ndarray:
            (output,) = method.execute([torch.from_numpy(inputs)])
            return np.asarray(output.numpy()).copy() if batch is None else output

        run.program = program  # type: ignore[attr-defined]  # lives as long as its method
        return in_batches_of(size, run) if batch is None else run


def _lowered(program: Any) -> bytes:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
    return bytes(lowered.to_executorch().buffer)


def _set_threads(threads: int) -> None:
    """The pool of threads is one for the process."""
    with contextlib.suppress(ImportError, AttributeError):
        from executorch.extension.pybindings import portable_lib

        if portable_lib._threadpool_get_thread_count() != threads:
            portable_lib._unsafe_reset_threadpool(threads)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the messages of the exporter."""
    former = logging.root.manager.disable
    logging.disable(logging.WARNING)
    silence = io.StringIO()
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(silence),
            contextlib.redirect_stderr(silence),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(former)
