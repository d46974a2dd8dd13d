"""Exported graphs compute what torch computes, with the layers' names, in few legible nodes."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from paretune.errors import CandidateError
from paretune.targets.onnx_export import export_model, write_model
from paretune.targets.onnx_session import open_session


class Residual(nn.Module):
    """Padded shortcut (no weights), BatchNorm to fold, view with the batch size."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.block = nn.ModuleDict(
            {"conv": nn.Conv2d(width, 2 * width, 3, 2, 1), "bn": nn.BatchNorm2d(2 * width)}
        )
        self.fc = nn.Linear(2 * width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.bn1(self.conv1(x)))
        pad = x.shape[1] // 2
        short = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, pad, x.shape[1] - pad))
        x = functional.relu(self.block["bn"](self.block["conv"](x)) + short)
        x = functional.avg_pool2d(
            x, x.size(3) if x.size(2) == x.size(3) else (x.size(2), x.size(3))
        )
        return self.fc(x.view(x.size(0), -1))


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Sequential(nn.Linear(6, 6), nn.Tanh())
        self.out = nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.inside(self.inside(x)))


class Attention(nn.Module):
    """Its projections are functional calls of torch's attention; only ``out`` is a module."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.out = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(x + self.attention(x, x, x, need_weights=False)[0])


class Functional(nn.Module):
    """A weight of the same shape used without a module comes first."""

    def __init__(self) -> None:
        super().__init__()
        self.free = nn.Parameter(torch.randn(5, 5))
        self.fc = nn.Linear(5, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(functional.relu(functional.linear(x, self.free)))


def randomise(network: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(generator=generator)
            module.running_var.uniform_(0.5, 2.0, generator=generator)
            module.weight.data.normal_(generator=generator)
    return network.eval()


def networks() -> dict[str, tuple[nn.Module, tuple[int, ...], list[str]]]:
    torch.manual_seed(0)
    depthwise = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), nn.ReLU6()),
        nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False),
        nn.Conv2d(6, 4, 1, groups=2),
    )
    zeroed = nn.Sequential(nn.Conv2d(1, 2, 3))
    nn.init.zeros_(zeroed[0].weight)
    return {
        "residual": (Residual(), (3, 8, 8), ["conv1", "block.conv", "fc"]),
        "depthwise": (depthwise, (3, 7, 5), ["0.0", "1", "2"]),
        "linear 3d": (
            nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 2)),
            (5, 4),
            ["0", "2"],
        ),
        "linear 2d": (nn.Sequential(nn.Flatten(), nn.Linear(20, 3, bias=False)), (5, 4), ["1"]),
        "shared": (Shared(), (6,), ["inside.0", "inside.0#2", "out"]),
        "functional": (Functional(), (5,), ["fc"]),
        "transposed": (nn.Sequential(nn.ConvTranspose2d(2, 3, 2, 2)), (2, 3, 3), ["0"]),
        "conv1d": (nn.Sequential(nn.Conv1d(2, 3, 3), nn.ReLU()), (2, 9), ["0"]),
        "zero": (zeroed, (1, 4, 4), ["0"]),
    }


@pytest.mark.parametrize("which", list(networks()))
def test_exported_graph_equals_torch_for_any_batch(which: str) -> None:
    network, shape, names = networks()[which]
    randomise(network)
    model = export_model(network, torch.zeros(1, *shape))
    onnx.checker.check_model(model, full_check=True)
    assert [model.graph.input[0].name, model.graph.output[0].name] == ["input", "output"]
    weighted = ("Conv", "ConvTranspose", "Gemm", "MatMul")
    found = [n.name for n in model.graph.node if n.op_type in weighted]
    assert [n for n in found if not n.startswith(weighted)] == names
    session = open_session(model.SerializeToString())
    for count in (1, 2, 5):
        inputs = torch.randn(count, *shape)
        with torch.no_grad():
            expected = network(inputs).numpy()
        (given,) = session.run(None, {"input": inputs.numpy()})
        np.testing.assert_allclose(given, expected, atol=1e-5)


@given(
    width=st.integers(1, 5),
    height=st.integers(2, 9),
    breadth=st.integers(2, 9),
    kernel=st.sampled_from([1, 3]),
    stride=st.integers(1, 2),
    groups=st.sampled_from([1, 2]),
)
@settings(max_examples=12, deadline=None)
def test_random_shapes(
    width: int, height: int, breadth: int, kernel: int, stride: int, groups: int
) -> None:
    torch.manual_seed(width)
    channels = 2 * width
    network = randomise(
        nn.Sequential(
            nn.Conv2d(2, channels, kernel, stride, kernel // 2, groups=groups, bias=False),
            *(nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, 3, 1)),
        )
    )
    model = export_model(network, torch.zeros(1, 2, height, breadth))
    inputs = torch.randn(3, 2, height, breadth)
    with torch.no_grad():
        expected = network(inputs).numpy()
    (given,) = open_session(model.SerializeToString()).run(None, {"input": inputs.numpy()})
    np.testing.assert_allclose(given, expected, atol=1e-5)
    assert [n.name for n in model.graph.node if n.op_type == "Conv"] == ["0", "3"]


def test_shape_arithmetic_is_folded_and_nothing_of_this_machine_is_left() -> None:
    network = randomise(Residual())
    model = export_model(network, torch.zeros(1, 3, 8, 8))
    kinds = {n.op_type for n in model.graph.node}
    assert not kinds & {
        "Shape",
        "Constant",
        "Gather",
        "Concat",
        "Cast",
        "ConstantOfShape",
        "Identity",
    }
    assert not model.metadata_props and not model.graph.value_info
    assert not any(n.doc_string or n.metadata_props for n in model.graph.node)
    text = model.SerializeToString()
    assert str(Path(__file__).parent).encode() not in text and b".py" not in text
    assert text == export_model(copy.deepcopy(network), torch.zeros(1, 3, 8, 8)).SerializeToString()


def test_attention_takes_the_fast_exporter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.onnx, "export", functools.partial(_only_fast, torch.onnx.export))
    torch.manual_seed(0)
    network = Attention().eval()
    model = export_model(network, torch.zeros(1, 5, 8))
    names = [n.name for n in model.graph.node if n.op_type in ("Gemm", "MatMul")]
    assert [name for name in names if not name.startswith(("Gemm", "MatMul"))] == ["out"]
    inputs = torch.randn(3, 5, 8)
    with torch.no_grad():
        expected = network(inputs).numpy()
    (given,) = open_session(model.SerializeToString()).run(None, {"input": inputs.numpy()})
    np.testing.assert_allclose(given, expected, atol=1e-5)


def _only_fast(real: Callable[..., object], *args: object, **options: object) -> object:
    if options["dynamo"]:
        raise RuntimeError("no")  # it would take half a minute
    return real(*args, **options)


def test_silence(capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder) -> None:
    network = randomise(Residual())
    export_model(network, torch.zeros(1, 3, 8, 8))
    assert capfd.readouterr() == ("", "")
    assert not [w for w in recwarn if "onnx" in str(w.message).lower()]


def test_failures_name_the_layer_or_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.onnx, "export", functools.partial(_only_fast, torch.onnx.export))
    with pytest.raises(CandidateError, match=r"^1: the network cannot run"):
        export_model(nn.Sequential(nn.Flatten(), nn.Linear(5, 2)), torch.zeros(1, 4))

    class Odd(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.special.bessel_y1(x)

    with pytest.raises(CandidateError, match="bessel_y1") as caught:
        export_model(Odd().eval(), torch.ones(1, 4))
    assert "\n" not in str(caught.value) and "/" not in str(caught.value).replace("https://", "")


def test_slow_exporter_takes_over(monkeypatch: pytest.MonkeyPatch) -> None:
    real = torch.onnx.export

    def fast_fails(*args: object, **options: object) -> object:
        if options.get("dynamo") is False:
            raise RuntimeError("unsupported operator")
        return real(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.onnx, "export", fast_fails)
    network = randomise(Residual())
    model = export_model(network, torch.zeros(1, 3, 8, 8))
    names = [n.name for n in model.graph.node if n.op_type in ("Conv", "Gemm")]
    assert names == ["conv1", "block.conv", "fc"]
    inputs = torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        expected = network(inputs).numpy()
    (given,) = open_session(model.SerializeToString()).run(None, {"input": inputs.numpy()})
    np.testing.assert_allclose(given, expected, atol=1e-5)


def test_write_replaces_the_file_and_leaves_no_part(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"old")
    model = export_model(nn.Sequential(nn.Linear(3, 2)), torch.zeros(1, 3))
    write_model(model, path)
    assert path.read_bytes() == model.SerializeToString(deterministic=True)
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]
