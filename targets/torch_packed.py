"""A lowered torch program, ready to run: weights packed as oneDNN's kernels want them."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

QCONV = torch.ops.onednn.qconv_pointwise.default
QCONV_SUM = torch.ops.onednn.qconv2d_pointwise.binary
QLINEAR = torch.ops.onednn.qlinear_pointwise.default
KERNELS = (QCONV, QCONV_SUM, QLINEAR)
"""Their first arguments: input, its scale and zero point, packed weights, scales, zero points;
then what QCONV_SUM adds to; then the bias and, of a convolution, its geometry."""


class PackedProgram:
    """The program as a function: inputs (n, ...) float32 -> outputs (n, ...).

    The order of the weights that a kernel wants depends on the sizes of its input; another order
    costs up to 100 times a small layer's own time in every call. So they are packed by the first
    inputs, and again when the shape of the inputs changes.
    """

    def __init__(self, program: fx.GraphModule) -> None:
        self.program = program
        self._shape: torch.Size | None = None
        nodes = [node for node in program.graph.nodes if node.target in KERNELS]
        self._weights = {node: getattr(program, str(node.args[3].target)) for node in nodes}

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        if inputs.shape == self._shape:
            return self.program(inputs)  # type: ignore[no-any-return]
        out: torch.Tensor = _Packer(self.program, self._weights).run(inputs)
        self._shape = inputs.shape
        return out


class _Packer(fx.Interpreter):
    """Runs a program node by node and packs each kernel's weights for the input that comes."""

    def __init__(self, program: fx.GraphModule, weights: dict[Any, torch.Tensor]) -> None:
        super().__init__(program)
        self._program, self._weights = program, weights

    def run_node(self, node: Any) -> Any:
        if node in self._weights:
            shape = list(self.env[node.args[0]].shape)
            packed = self._packed(node, self._weights[node], shape)
            setattr(self._program, str(node.args[3].target), packed)
            self.env[node.args[3]] = packed
        return super().run_node(node)

    def _packed(self, node: Any, weight: torch.Tensor, shape: list[int]) -> torch.Tensor:
        if node.target == QLINEAR:
            return torch.ops.onednn.qlinear_prepack(weight, shape)  # type: ignore[no-any-return]
        geometry = node.args[8:12] if node.target == QCONV_SUM else node.args[7:11]
        scales = self.env[node.args[4]]
        return torch.ops.onednn.qconv_prepack(  # type: ignore[no-any-return]
            weight, scales, *node.args[1:3], *geometry, shape
        )
