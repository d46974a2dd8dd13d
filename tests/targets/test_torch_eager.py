"""PyTorch as a runtime: the conformance suite, and what a program file may not hold."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save
from torch import nn

from paretune.errors import CandidateError, InputError
from paretune.targets.catalogue import make_target
from paretune.targets.target import Target
from paretune.targets.torch_program import ProgramError, read_program, write_program

_path = Path(__file__).parents[1] / "conformance" / "target_conformance.py"
_spec = importlib.util.spec_from_file_location("target_conformance", _path)
assert _spec and _spec.loader
_suite = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_suite)


class TestTorchCpu(_suite.TargetConformance):
    def make_target(self) -> Target:
        return make_target("torch-cpu", {"seconds": 0.5})


def test_a_transformer_survives_the_file() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, activation="gelu")
    network = nn.Sequential(nn.Linear(4, 16), layer).eval()
    inputs = torch.randn(3, 5, 4)
    again = read_program(write_program(network, inputs[:1]))
    with torch.no_grad():
        torch.testing.assert_close(again(inputs), network(inputs), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "row",
    [
        {"call": "aten.from_file.default", "args": ["/etc/passwd"], "kwargs": {}},
        {"call": "operator.attrgetter", "args": ["x"], "kwargs": {}},
        {"call": "os.system", "args": ["true"], "kwargs": {}},
        {"call": "aten.relu.default", "args": ["__import__('os')"], "kwargs": {}},
        {"call": "aten.relu.default", "args": [{"dtype": "Tensor"}], "kwargs": {}},
        {"call": "aten.relu.__setattr__", "args": ["default", {"node": 0}], "kwargs": {}},
        {"call": "aten.relu.overloads", "args": [], "kwargs": {}},
    ],
)
def test_a_file_cannot_name_anything_else(row: dict[str, object]) -> None:
    rows = [{"input": 0}, row, {"output": {"node": 1}}]
    data = save({"t0": torch.zeros(1)}, {"program": json.dumps({"version": "1", "rows": rows})})
    with pytest.raises(ProgramError):
        read_program(data)


def test_an_operator_outside_the_list_is_named(tmp_path: Path) -> None:
    class Odd(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.linalg.det(x).unsqueeze(1)

    with pytest.raises(CandidateError, match="linalg_det"):
        make_target("torch-cpu").export(
            Odd().eval(), torch.randn(1, 4, 4), {}, [], tmp_path / "a.safetensors"
        )


def test_without_a_gpu_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="there is no CUDA device here; use 'torch-cpu'"):
        make_target("torch-cuda")
