"""Two further ways of ONNX Runtime to store layers: dynamic 8 bits, and MatMulNBits."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path

import onnx
from onnx import ModelProto

from ..errors import CandidateError
from .onnx_graph import strip
from .onnx_quantize import place, quiet_logs
from .onnx_session import one_line, require_runtime

BLOCK = 32  # weights that share a scale in MatMulNBits
BLOCK_BITS = (2, 4, 8)


def quantize_dynamically(
    model: ModelProto, layers: Collection[str], reduce_range: bool = False
) -> ModelProto:
    """``model`` with 8-bit ``layers`` whose activation ranges are found at each call.

    ONNX Runtime's ``quantize_dynamic``: no calibration, weights per channel; made for linear
    layers, and slower than static quantisation for convolutions.
    Raises CandidateError naming what it cannot quantise.
    """
    if not layers:
        return model
    names = place(model, layers).layers
    require_runtime()
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as folder, quiet_logs():
        path = Path(folder) / "dynamic.onnx"
        try:
            quantize_dynamic(
                model,
                path,
                per_channel=True,
                reduce_range=reduce_range,
                weight_type=QuantType.QInt8,
                nodes_to_quantize=[*names, *(f"{name}_MatMul" for name in names)],
            )
        except Exception as error:
            raise CandidateError(
                f"dynamic int8: ONNX Runtime cannot quantise it ({one_line(error)})"
            ) from error
        done = onnx.load(path)
    strip(done)
    return done


def quantize_blocks(model: ModelProto, bits: Mapping[str, int]) -> tuple[ModelProto, set[str]]:
    """``model`` with the linear layers of ``bits`` as MatMulNBits, and the names of those.

    ONNX Runtime's block-wise quantiser, symmetric, one scale for each 32 weights of a channel.
    Only layers that are a MatMul in the graph (a transformer's) have this form; others, and widths
    besides 8, 4 and 2, are left alone. Raises CandidateError when the quantiser fails.
    """
    require_runtime()
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    constant = {t.name for t in model.graph.initializer}
    linear = [n for n in model.graph.node if n.op_type == "MatMul" and n.input[1] in constant]
    done: set[str] = set()
    for width in BLOCK_BITS:
        names = {n.name for n in linear if bits.get(n.name.partition("#")[0]) == width}
        if not names:
            continue
        others = [n.name for n in model.graph.node if n.op_type == "MatMul" and n.name not in names]
        with quiet_logs():
            try:
                quantizer = MatMulNBitsQuantizer(
                    model, bits=width, block_size=BLOCK, is_symmetric=True, nodes_to_exclude=others
                )
                quantizer.process()
            except Exception as error:
                raise CandidateError(
                    f"{min(names)}: ONNX Runtime cannot store it in blocks ({one_line(error)})"
                ) from error
        model = quantizer.model.model
        done |= {name.partition("#")[0] for name in names}
    strip(model)
    return model, done
