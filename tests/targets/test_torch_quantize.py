"""8 bits in PyTorch: what a file holds, and what oneDNN's kernels make of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from torch import nn
from torch.nn import functional as F

from paretune.errors import CandidateError
from paretune.targets import torch_eager
from paretune.targets.catalogue import make_target
from paretune.targets.target import Bits, Target
from paretune.targets.torch_lowering import integer_kernels, lowered
from paretune.targets.torch_packed import PackedProgram
from paretune.targets.torch_program import read_program

pytest.importorskip("torchao")
with_kernels = pytest.mark.skipif(not integer_kernels(), reason="no VNNI on this processor")
EIGHT, SIXTEEN = Bits(8, 8), Bits(16, 16)


@pytest.fixture()
def target(monkeypatch: pytest.MonkeyPatch) -> Iterator[Target]:
    """The target as on a processor with kernels: files can be written everywhere."""
    with monkeypatch.context() as patch:
        patch.setattr(torch_eager, "integer_kernels", lambda: True)
        made = make_target("torch-cpu", {"seconds": 0.2})
    yield made


class Blocks(nn.Module):
    """Residual sums of every kind: a value added twice, one that is also the layer's input, one
    from a second layer, and from a pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.normal = nn.BatchNorm2d(16)
        self.first = nn.Conv2d(16, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 16, 3, padding=1)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.down = nn.Conv2d(16, 24, 3, stride=2, padding=1)
        self.short = nn.Conv2d(16, 24, 1, stride=2)
        self.last = nn.Conv2d(24, 24, 1)
        self.inner = nn.Linear(24, 32)
        self.head = nn.Linear(32, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(F.relu(self.normal(self.stem(x))), 3, 2, 1)
        y = F.relu(self.first(x) + x)
        y = F.hardtanh(F.relu6(self.depthwise(y)), -0.5, 2.0)
        z = self.second(y) + x
        z = z + x.mean((2, 3), keepdim=True)
        z = F.relu(self.down(z) + self.short(x), inplace=True)
        z = F.hardswish(self.last(z)) + z
        z = z.view(z.shape[0], z.shape[1], -1).mean(2)
        return self.head(F.dropout(F.gelu(self.inner(z)), 0.5, self.training))  # type: ignore[no-any-return]


def blocks() -> Blocks:
    torch.manual_seed(1)
    network = Blocks()
    network.normal.running_var.uniform_(0.5, 2.0)  # type: ignore[union-attr]
    return network.eval()


def images(count: int = 16) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.standard_normal((count, 3, 16, 16)).astype(np.float32)


def layers_of(network: nn.Module) -> dict[str, Bits]:
    kinds = (nn.Conv1d, nn.Conv2d, nn.Linear)
    return {name: EIGHT for name, m in network.named_modules() if isinstance(m, kinds)}


def written(target: Target, network: nn.Module, bits: dict[str, Bits], path: Path) -> bytes:
    given = images()
    target.export(network, torch.from_numpy(given[:1]), bits, [given], path)
    return path.read_bytes()


def steps(values: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """Values on the 8-bit grid between the smallest and largest that were seen while calibrating,
    by torch's fake quantiser."""
    low, high = min(float(seen.min()), 0.0), max(float(seen.max()), 0.0)
    scale = (high - low) / 255
    zero = int(np.clip(round(-low / scale), 0, 255))
    return torch.fake_quantize_per_tensor_affine(values, scale, zero, 0, 255)


def channels(weight: torch.Tensor) -> torch.Tensor:
    scales = weight.abs().flatten(1).amax(1) / 127
    zeros = torch.zeros(len(weight), dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scales, zeros, 0, -127, 127)


def test_the_file_computes_with_min_max_ranges_and_a_scale_a_channel(
    target: Target, tmp_path: Path
) -> None:
    torch.manual_seed(2)
    network = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, bias=False), nn.ReLU()).eval()
    network.extend([nn.Conv2d(8, 8, 3, groups=4), nn.Flatten(), nn.Linear(8 * 25, 4)])
    path = tmp_path / "a.safetensors"
    written(target, network, layers_of(network), path)
    x = torch.from_numpy(images())
    first, _, second, flat, last = network
    assert isinstance(first, nn.Conv2d) and isinstance(second, nn.Conv2d)
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        seen = [x, network[:2](x), network[:4](x)]
        y = F.relu(F.conv2d(steps(x, seen[0]), channels(first.weight), stride=2))
        y = F.conv2d(steps(y, seen[1]), channels(second.weight), second.bias, groups=4)
        expected = F.linear(steps(flat(y), seen[2]), channels(last.weight), last.bias).numpy()
    found = target.load(path).predict(images())
    spread = expected.max() - expected.min()
    assert (
        np.abs(found - expected).max() < 0.01 * spread
    )  # a value between two steps goes either way
    assert np.abs(found - expected).mean() < 0.001 * spread


@with_kernels
def test_kernels_compute_what_the_file_says(target: Target, tmp_path: Path) -> None:
    network = blocks()
    data = written(target, network, layers_of(network), tmp_path / "a.safetensors")
    x = torch.from_numpy(images(7))
    said, kernels = read_program(data), lowered(read_program(data), True)
    assert isinstance(kernels, PackedProgram)
    names = [str(node.target) for node in kernels.program.graph.nodes]
    assert sum("pointwise" in name for name in names) == 9
    assert not any(name.startswith(("aten.conv", "aten.linear", "aten.relu")) for name in names)
    with torch.inference_mode():
        for count in (1, 2, 7):
            expected = said(x[:count])
            spread = float(expected.max() - expected.min())
            found = kernels(x[:count])
            off = float((found - expected).abs().max())
            assert off < 0.01 * spread  # a value in the middle between two steps may go either way
            assert torch.equal(found, kernels(x[:count]))  # nothing of the first call is left


def test_without_kernels_the_same_file_computes_in_float32(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = blocks()
    data = written(target, network, layers_of(network), tmp_path / "a.safetensors")
    with torch.no_grad():
        expected = read_program(data)(torch.from_numpy(images())).numpy()
    monkeypatch.setattr(torch_eager, "integer_kernels", lambda: False)
    elsewhere = make_target("torch-cpu")
    assert (8, 8) not in elsewhere.choices.bits
    found = elsewhere.load(tmp_path / "a.safetensors").predict(images())
    np.testing.assert_allclose(found, expected, atol=1e-5)
    with pytest.raises(CandidateError, match="head: torch-cpu without 8 bits: this processor has"):
        written(elsewhere, network, {"head": EIGHT}, tmp_path / "b.safetensors")


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)
        self.middle, self.normal = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat(
            [self.left(x), self.normal(self.middle(x)), self.right(x).relu()], 1
        ).flatten(1)


def test_widths_mix_and_float32_layers_stay_exact(target: Target, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = Branches().eval()
    bits = {"left": EIGHT, "middle": SIXTEEN}
    path = tmp_path / "a.safetensors"
    held = load(written(target, network, bits, path))
    assert {t.dtype for t in held.values()} == {torch.int8, torch.bfloat16, torch.float32}
    found = target.load(path).predict(images()).reshape(16, 12, -1)
    with torch.no_grad():
        expected = network(torch.from_numpy(images())).numpy().reshape(16, 12, -1)
    np.testing.assert_allclose(found[:, 8:], expected[:, 8:], atol=1e-6)
    for part in (slice(0, 4), slice(4, 8)):
        off = np.abs(found[:, part] - expected[:, part]).max()
        assert 1e-4 < off < 0.05


def test_weights_are_stored_in_8_bits_and_once(target: Target, tmp_path: Path) -> None:
    network = blocks()
    held = load(written(target, network, layers_of(network), tmp_path / "a.safetensors"))
    weights = sum(p.numel() for n, p in network.named_parameters() if p.ndim > 1)
    assert sum(t.numel() for t in held.values() if t.dtype == torch.int8) == weights
    most = max(t.numel() for t in held.values() if t.dtype != torch.int8)
    assert most == 32  # scales and biases


def test_one_dimensional_layers(target: Target, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(2), nn.Conv1d(3, 8, 5, stride=2), nn.SiLU(), nn.Flatten())
    path = tmp_path / "a.safetensors"
    written(target, network.eval(), {"1": EIGHT}, path)
    with torch.no_grad():
        expected = network(torch.from_numpy(images())).numpy()
    found = target.load(path).predict(images())
    assert 0 < np.abs(found - expected).max() < 0.02 * (expected.max() - expected.min())


def test_a_layer_without_an_8_bit_form_is_named(target: Target, tmp_path: Path) -> None:
    network = nn.Sequential(nn.ConvTranspose2d(3, 4, 3), nn.Flatten()).eval()
    with pytest.raises(CandidateError, match="^0: torch has no 8-bit form of it$"):
        written(target, network, {"0": EIGHT}, tmp_path / "a.safetensors")


def test_compile_runs_the_same_kernels(target: Target, tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()).eval()
    path = tmp_path / "a.safetensors"
    written(target, network, {"0": EIGHT}, path)
    if integer_kernels():
        compiled = make_target("torch-cpu", {"compile": True})
        np.testing.assert_array_equal(
            compiled.load(path).predict(images()), target.load(path).predict(images())
        )


def changed(data: bytes, old: str, new: str, **tensors: torch.Tensor) -> bytes:
    length = int.from_bytes(data[:8], "little")
    program = json.loads(data[8 : 8 + length])["__metadata__"]["program"]
    assert old in program
    return save({**load(data), **tensors}, {"program": program.replace(old, new)})


@pytest.mark.parametrize(
    "change",
    [
        ("quantize_per_tensor.default", "choose_qparams.tensor"),
        ("quantize_per_tensor.default", "quantize_per_tensor.tensor"),
        ("quantized_decomposed.quantize_per_tensor", "quantized.linear"),
        ("quantized_decomposed.dequantize_per_channel", "quantized_decomposed.__class__"),
        ('"int8"', '"quint8"'),
    ],
)
def test_a_file_names_no_other_operator(
    target: Target, tmp_path: Path, change: tuple[str, str]
) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()).eval()
    path = tmp_path / "a.safetensors"
    path.write_bytes(changed(written(target, network, {"0": EIGHT}, path), *change))
    with pytest.raises(CandidateError, match="^a.safetensors: ") as caught:
        target.load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "tensors"),
    [
        ("[1,1]", "[0,1]", {}),
        ("[1,1]", "[1,1,1]", {}),
        ("[1,1]", "[1,-1]", {}),
        ("", "", {"scales": torch.ones(3)}),
        ("", "", {"scales": torch.ones(1)}),
        ("", "", {"scales": torch.ones(4, dtype=torch.float64)}),
        ("", "", {"weight": torch.ones(4, 9, dtype=torch.int8)}),
        ("", "", {"weight": torch.ones(4, 3, 3, 3)}),
        ("", "", {"weight": torch.ones(4, 2, 3, 3, dtype=torch.int8)}),
        ("", "", {"bias": torch.ones(1)}),
    ],
)
def test_sizes_that_do_not_fit_reach_no_kernel(
    target: Target, tmp_path: Path, old: str, new: str, tensors: dict[str, Any]
) -> None:
    """A kernel would read beyond a tensor that is too short; the float operators check theirs."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=(1, 1)), nn.Flatten()).eval()
    path = tmp_path / "a.safetensors"
    data = written(target, network, {"0": EIGHT}, path)
    names = {"weight": "", "scales": "", "bias": ""}
    for name, tensor in load(data).items():
        kind = "bias" if torch.equal(tensor, network[0].bias) else "scales"  # type: ignore[arg-type]
        names["weight" if tensor.ndim == 4 else kind] = name
    swapped = {names[kind]: tensor for kind, tensor in tensors.items()}
    path.write_bytes(changed(data, old, new, **swapped))
    inputs = torch.from_numpy(images())
    try:
        expected = read_program(path.read_bytes())(inputs).detach().numpy()
    except Exception:
        with pytest.raises(CandidateError) as caught:
            target.load(path).predict(images())
        assert "\n" not in str(caught.value)
    else:  # one scale for all channels, or a wider one, can be computed with
        assert "scales" in tensors
        np.testing.assert_allclose(target.load(path).predict(images()), expected, rtol=1e-5)
