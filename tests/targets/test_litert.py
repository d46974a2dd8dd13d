"""LiteRT: the conformance suite (slow: every conversion is a process of half a minute), and what
is said where its environment is missing."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from paretune.errors import InputError
from paretune.targets import litert_convert
from paretune.targets.catalogue import make_target
from paretune.targets.litert_environment import PACKAGES, STAMP, converter_python, set_up
from paretune.targets.target import Bits, Target
from paretune.targets.torch_program import read_program, write_named

_path = Path(__file__).parents[1] / "conformance" / "target_conformance.py"
_spec = importlib.util.spec_from_file_location("target_conformance", _path)
assert _spec and _spec.loader
_suite = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_suite)


def missing() -> str:
    """Why the target cannot be tried here, or nothing."""
    try:
        make_target("litert")
    except InputError as error:
        return f"{error.problem}; {error.remedy}"
    return ""


@pytest.mark.slow
class TestLiteRt(_suite.TargetConformance):
    def make_target(self) -> Target:
        if reason := missing():
            pytest.skip(reason)
        return make_target("litert", {"seconds": 0.5})

    def test_only_the_layers_of_the_plan_are_8_bits_wide(
        self, target: Target, tmp_path: Path, inputs: np.ndarray
    ) -> None:
        from ai_edge_litert.interpreter import Interpreter

        path = self.exported(target, tmp_path / "a.tflite", {"3": Bits(8, 8)}, inputs)
        interpreter = Interpreter(model_path=str(path))
        interpreter.allocate_tensors()
        # LiteRT keeps a depthwise weight as (1, height, width, channels)
        shapes = {
            tuple(t["shape"])
            for t in interpreter.get_tensor_details()
            if t["dtype"] is np.int8 and len(t["quantization_parameters"]["scales"]) > 1
        }
        assert shapes == {(1, 3, 3, 8)}
        assert interpreter.get_input_details()[0]["dtype"] is np.float32


def test_a_missing_environment_is_one_line_with_the_command(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"environment is missing \(.*\); paretune setup litert"):
        converter_python(tmp_path)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").touch()
    (tmp_path / STAMP).write_text(json.dumps(["litert-torch==0.1.0"]))
    with pytest.raises(InputError, match="holds .*0.1.0.*; paretune setup litert"):
        converter_python(tmp_path)
    (tmp_path / STAMP).write_text(json.dumps([*PACKAGES]))
    assert converter_python(tmp_path) == tmp_path / "bin" / "python"
    said: list[str] = []
    assert set_up(tmp_path, said.append) == tmp_path and "up to date" in said[0]


def test_a_folder_with_other_things_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(InputError, match="holds other files"):
        set_up(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "precious"


class Branches(nn.Module):
    """A sum of two branches behind a stem."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.left = nn.Conv2d(4, 4, 3, padding=1)
        self.right = nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(self.left(x) + self.right(x))
        found: torch.Tensor = self.head(x.mean((2, 3)))
        return found


@pytest.mark.parametrize(
    ("layers", "sums"), [(("left", "right"), True), (("left",), False), ((), False)]
)
def test_what_lies_between_8_bit_layers_alone_has_8_bits(
    layers: tuple[str, ...], sums: bool
) -> None:
    network = Branches().eval()
    data, tensors = write_named(network, torch.randn(1, 3, 8, 8))
    assert {*tensors} == {name for name, _ in network.named_parameters()}
    weights = frozenset(tensors[f"{layer}.weight"] for layer in layers)
    graph = torch.export.export(read_program(data), (torch.zeros(1, 3, 8, 8),)).module().graph
    chosen = litert_convert.chosen_nodes(graph, weights)
    convolutions = [n for n in graph.nodes if n.target is torch.ops.aten.conv2d.default]
    assert [n in chosen for n in convolutions] == [
        name in layers for name in ("stem", "left", "right")
    ]
    (added,) = (n for n in graph.nodes if n.target is torch.ops.aten.add.Tensor)
    assert (added in chosen) is sums


class ClassToken(nn.Module):
    """Patches and a token of its own, with a shortcut around a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.layer = nn.Conv2d(3, 4, 4, 4), nn.Linear(4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        return (x + self.layer(x)).mean(1)


def test_a_stream_with_a_class_token_stays_float() -> None:
    network, example = ClassToken().eval(), torch.zeros(2, 3, 8, 8)
    graph = torch.export.export(network, (example,)).module().graph
    chosen = {
        n.target
        for n in litert_convert.chosen_nodes(graph, {"patches.weight": "", "layer.weight": ""})
    }
    assert {torch.ops.aten.conv2d.default, torch.ops.aten.linear.default} <= chosen
    assert torch.ops.aten.transpose.int in chosen
    assert not {torch.ops.aten.cat.default, torch.ops.aten.add.Tensor} & chosen


def test_a_normalisation_in_a_program_is_folded_and_its_layer_quantised() -> None:
    pytest.importorskip("torchao")
    from torchao.quantization.pt2e.quantizer import Quantizer

    class Nothing(Quantizer):
        def annotate(self, model: torch.fx.GraphModule) -> torch.fx.GraphModule:
            return model

        def validate(self, model: torch.fx.GraphModule) -> None:
            """Nothing was annotated."""

    network, inputs = _suite.small_network(), torch.randn(2, 3, 8, 8)
    program = read_program(write_named(network, inputs[:1])[0])
    with torch.no_grad():
        made = litert_convert.quantized(program, inputs, Nothing(), inputs.numpy())
        torch.testing.assert_close(made(inputs), network(inputs))
    assert not any("batch_norm" in str(node.target) for node in made.graph.nodes)
