"""Learned steps: gradients against finite differences, and files that predict what was trained."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from paretune.errors import CandidateError
from paretune.operators.learned_step import (
    RoundedConv2d,
    Rounding,
    learned_round,
    prepare,
    settle,
)
from paretune.targets.onnxruntime_cpu import OnnxRuntimeCpu
from paretune.targets.target import Bits
from paretune.targets.uniform import to_floats, to_integers

LOW, HIGH = -7, 7


def surrogate(x: np.ndarray, step: np.ndarray, at_x: np.ndarray, at_step: np.ndarray) -> np.ndarray:
    """The documented one, in numpy: the rounding error is that of the point looked at."""
    inside = np.clip(at_x / at_step[:, None], LOW, HIGH)
    error = np.rint(inside) - inside
    return step[:, None] * (np.clip(x / step[:, None], LOW, HIGH) + error)


def test_gradients_are_those_of_the_surrogate_by_finite_differences() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 40)) * 2
    step = np.array([0.11, 0.3, 0.7])
    pull = rng.standard_normal(x.shape)
    xt = torch.tensor(x, dtype=torch.float32, requires_grad=True)
    st = torch.tensor(step, dtype=torch.float32, requires_grad=True)
    out = learned_round(xt, st, LOW, HIGH)
    np.testing.assert_allclose(out.detach(), surrogate(x, step, x, step), atol=1e-5)
    (out * torch.tensor(pull)).sum().backward()
    tiny = 1e-6
    for i in range(3):
        ends = []
        for sign in (1, -1):
            moved = step.copy()
            moved[i] += sign * tiny
            ends.append((surrogate(x, moved, x, step) * pull).sum())
        slope = (ends[0] - ends[1]) / (2 * tiny) / np.sqrt(40 * HIGH)  # the paper's gradient scale
        np.testing.assert_allclose(st.grad[i], slope, rtol=2e-3, atol=1e-4)
    for place in rng.integers(0, 40, 30):
        for i in range(3):
            if abs(abs(x[i, place] / step[i]) - HIGH) < 1e-3:
                continue
            ends = []
            for sign in (1, -1):
                moved = x.copy()
                moved[i, place] += sign * tiny
                ends.append((surrogate(moved, step, x, step) * pull).sum())
            slope = (ends[0] - ends[1]) / (2 * tiny)
            np.testing.assert_allclose(xt.grad[i, place], slope, rtol=1e-3, atol=1e-5)


def test_an_activation_is_rounded_as_onnx_does() -> None:
    rounding = Rounding(-1.0, 3.0)
    x = torch.linspace(-2, 4, 1001)
    scale = np.float32(4 / 255)
    zero = np.rint(1 / scale)
    expected = (np.clip(np.rint(x.numpy() / scale) + zero, 0, 255) - zero) * scale
    np.testing.assert_allclose(rounding(x).detach().numpy(), expected, atol=1e-6)
    low, high = rounding.range
    assert low == pytest.approx(-zero * scale) and high == pytest.approx((255 - zero) * scale)


class Block(nn.Module):
    """A residual block whose sum is a module's output."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.Conv2d(8, 8, 3, padding=1)
        self.norm, self.act = nn.BatchNorm2d(8), nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.b(self.act(self.norm(self.a(x)))) + x)


class Small(nn.Module):
    """A stem of functions, which a shortcut reads too, and a sum that only a pooling reads."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.blocks = nn.Sequential(Block(), Block())
        self.fc = nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.max_pool2d(functional.relu(self.norm(self.stem(x))), 2)
        return self.fc(functional.adaptive_avg_pool2d(self.blocks(x), 1).flatten(1))


class Tokens(nn.Module):
    """Linear layers of tokens, whose biases the file adds by operators of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(12, 16), nn.LayerNorm(16)
        self.up, self.down, self.fc = nn.Linear(16, 24), nn.Linear(24, 16), nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x.reshape(-1, 16, 12))
        x = x + self.down(functional.gelu(self.up(self.norm(x))))
        return self.fc(x.mean(1))


def small(kind: type[nn.Module] = Small) -> nn.Module:
    torch.manual_seed(0)
    return kind()


TOKEN_LAYERS = ("first", "up", "down", "fc")
LAYERS = ("stem", "blocks.0.a", "blocks.0.b", "blocks.1.a", "blocks.1.b", "fc")


@pytest.mark.parametrize(
    ("pair", "kind", "layers"),
    [
        *((pair, Small, LAYERS) for pair in ((8, 8), (4, 8), (2, 8), (4, 32))),
        ((4, 8), Tokens, TOKEN_LAYERS),
    ],
)
@pytest.mark.parametrize("format", ["qoperator", "qdq"])
def test_the_file_predicts_what_the_trained_network_does(
    pair: tuple[int, int],
    kind: type[nn.Module],
    layers: tuple[str, ...],
    format: str,
    tmp_path: Path,
) -> None:
    generator = torch.Generator().manual_seed(1)
    patterns = torch.randn(10, 3, 8, 8, generator=generator)
    labels = torch.arange(600) % 10
    inputs = patterns[labels] + 0.2 * torch.randn(600, 3, 8, 8, generator=generator)
    bits = {name: Bits(*pair) for name in layers}
    network = small(kind).train()
    before = copy.deepcopy(network.state_dict())
    trained = prepare(network, bits, inputs[:64])
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())
    steps = {n: p.detach().clone() for n, p in trained.named_parameters() if "step" in n}
    optimiser = torch.optim.Adam(trained.parameters(), lr=1e-2)
    for start in [*range(0, 600, 40)] * 3:
        loss = nn.functional.cross_entropy(
            trained(inputs[start : start + 40]), labels[start : start + 40]
        )
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    moved = [n for n, p in trained.named_parameters() if n in steps and (p != steps[n]).any()]
    assert set(moved) == set(steps)
    trained.eval()
    plain, grids = settle(trained)
    with torch.no_grad():
        expected = trained(inputs).numpy()
    assert set(grids) == set(layers)
    assert not any(isinstance(m, RoundedConv2d | Rounding) for m in plain.modules())
    assert plain.state_dict().keys() == network.state_dict().keys()
    for name, grid in grids.items():
        weight = plain.get_submodule(name).weight.detach().numpy()
        again = to_floats(to_integers(weight, grid), grid)
        np.testing.assert_allclose(again, weight, rtol=1e-6)
        assert (grid.input_range is None) == (pair[1] == 32)
    target = OnnxRuntimeCpu(format=format)
    path = tmp_path / "a.onnx"
    target.export(plain, inputs[:1], bits, [inputs[:64].numpy()], path, grids)
    given = target.load(path).predict(inputs.numpy())
    assert (expected.argmax(1) == labels.numpy()).mean() > 0.3  # it learned: chance is 0.1
    assert (np.abs(given - expected) < 1e-4).mean() >= 0.97  # the rest: sums halfway between two
    assert (given.argmax(1) == expected.argmax(1)).mean() >= 0.995


def test_layers_that_read_the_same_share_a_step() -> None:
    trained = prepare(small().eval(), {n: Bits(8, 8) for n in LAYERS}, torch.randn(16, 3, 8, 8))
    block = trained.get_submodule("blocks.0")
    layer = trained.get_submodule("blocks.1.a")
    assert layer.input_rounding is block.rounding_behind and not layer.rounds_input
    again, _ = settle(copy.deepcopy(trained))
    assert not any(m._forward_hooks for m in again.modules())


def test_what_cannot_be_trained_is_named() -> None:
    inputs = torch.randn(4, 3, 8, 8)
    with pytest.raises(CandidateError, match="^nowhere: no such layer"):
        prepare(small(), {"nowhere": Bits(8, 8)}, inputs)
    odd = nn.Sequential(nn.ConvTranspose2d(3, 4, 2)).eval()
    with pytest.raises(CandidateError, match="^0: ConvTranspose2d"):
        prepare(odd, {"0": Bits(4, 32)}, inputs)
    broken = small()
    with torch.no_grad():
        broken.stem.weight.fill_(float("nan"))
    with pytest.raises(CandidateError, match="^stem: its weights are not finite"):
        prepare(broken, {"stem": Bits(4, 8)}, inputs)


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize("pair", [(8, 8), (4, 8)])
def test_resnet20_file_agrees_with_the_trained_network(
    pair: tuple[int, int], data_folder: Path, tmp_path: Path
) -> None:
    """After 30 steps of training: 99.5 % of 1,000 predictions."""
    from paretune.spaces.shortcut import rewrite_shortcuts
    from paretune.tasks.load import load_task

    example = Path(__file__).parents[2] / "examples" / "cifar10_resnet20.yaml"
    task = load_task(example)
    network = rewrite_shortcuts(task.network, task.example)
    layers = [n for n, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    bits = {name: Bits(*pair) for name in layers}
    calibration = torch.cat(task.calibration(256))
    trained = prepare(network, bits, calibration).train()
    optimiser = torch.optim.SGD(trained.parameters(), lr=0.002, momentum=0.9)
    for x, y in task.train.batches(64, limit=64 * 30):
        optimiser.zero_grad()
        nn.functional.cross_entropy(trained(x), y).backward()
        optimiser.step()
    trained.eval()
    plain, grids = settle(trained)
    target, path = OnnxRuntimeCpu(), tmp_path / "a.onnx"
    target.export(plain, task.example, bits, [calibration.numpy()], path, grids)
    inputs = torch.cat([x for x, _ in task.search.batches(250)])
    with torch.no_grad():
        expected = torch.cat([trained(part) for part in inputs.split(250)]).argmax(1).numpy()
    given = target.load(path).predict(inputs.numpy()).argmax(1)
    assert (given == expected).mean() >= 0.995
