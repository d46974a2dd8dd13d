"""What every target must do. Subclass it, give ``make_target``, and pytest runs the suite:

class TestMine(TargetConformance):
    def make_target(self):
        return MyTarget()
"""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from paretune.errors import CandidateError
from paretune.spaces.choices import Choices
from paretune.targets.target import Bits, Target, Timing


def small_network() -> nn.Module:
    torch.manual_seed(3)
    network = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)),
    )
    network[1].running_mean.uniform_(-0.5, 0.5)
    network[1].running_var.uniform_(0.5, 2.0)
    return network.eval()


LAYERS = ("0", "3", "7")


def wide_network() -> nn.Module:
    torch.manual_seed(4)
    network = nn.Sequential()
    network.add_module("stem", nn.Conv2d(3, 32, 3))
    network.add_module("outer", nn.Conv2d(32, 32, 3, bias=False))
    network.add_module("normal", nn.BatchNorm2d(32))
    network.add_module("block", nn.Sequential())
    network.block.add_module("inner", nn.Conv2d(32, 32, 3, padding=1))
    network.add_module("end", nn.Flatten())
    return network.eval()


def narrow(target: Target) -> Bits:
    """The usual width below float32."""
    usual = target.choices.bits[1:] or target.choices.more_bits[:1]
    return Bits(*usual[-1])


class TargetConformance:
    """The suite; its networks are small, so that it takes seconds."""

    tolerance = 1e-4  # of float32 outputs, absolute

    def make_target(self) -> Target:
        raise RuntimeError("a subclass gives the target")

    @pytest.fixture()
    def target(self) -> Target:
        return self.make_target()

    @pytest.fixture()
    def inputs(self) -> np.ndarray:
        return np.random.default_rng(0).standard_normal((7, 3, 8, 8)).astype(np.float32)

    def exported(
        self, target: Target, path: Path, bits: dict[str, Bits], inputs: np.ndarray
    ) -> Path:
        example = torch.from_numpy(inputs[:1])
        target.export(small_network(), example, bits, [inputs], path)
        return path

    def test_says_what_it_is(self, target: Target) -> None:
        assert target.name and target.format.isalnum()
        assert isinstance(target.choices, Choices)
        assert target.choices.bits[0] == (32, 32)

    def test_float_file_computes_what_torch_does(
        self, target: Target, tmp_path: Path, inputs: np.ndarray
    ) -> None:
        path = self.exported(target, tmp_path / f"a.{target.format}", {}, inputs)
        with torch.no_grad():
            expected = small_network()(torch.from_numpy(inputs)).numpy()
        runtime = target.load(path)
        for count in (1, 2, len(inputs)):
            given = runtime.predict(inputs[:count])
            assert given.shape == (count, 5)
            np.testing.assert_allclose(given, expected[:count], atol=self.tolerance)

    def test_every_offered_width_can_be_exported_and_run(
        self, target: Target, tmp_path: Path, inputs: np.ndarray
    ) -> None:
        with torch.no_grad():
            expected = small_network()(torch.from_numpy(inputs)).numpy()
        for weight, activation in target.choices.bits:
            bits = {name: Bits(weight, activation) for name in LAYERS}
            path = self.exported(target, tmp_path / f"b{weight}.{target.format}", bits, inputs)
            given = target.load(path).predict(inputs)
            spread = expected.max() - expected.min()
            assert np.abs(given - expected).max() <= 0.25 * spread

    def test_fewer_bits_make_a_smaller_file(self, target: Target, tmp_path: Path) -> None:
        """An outer layer and one inside a block, whose names have dots."""
        network = wide_network()
        inputs = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)
        layers, sizes = ("outer", "block.inner"), []
        weights = 2 * 32 * 32 * 9
        for pair in ((32, 32), *target.choices.bits[1:]):
            path = tmp_path / f"{pair[0]}.{target.format}"
            bits = {name: Bits(*pair) for name in layers}
            target.export(network, torch.from_numpy(inputs[:1]), bits, [inputs], path)
            sizes.append(path.stat().st_size)
            saved = (32 - pair[0]) / 8 * weights
            assert sizes[0] - sizes[-1] > 0.85 * saved - 1, (pair, sizes)

    def test_the_network_and_the_folder_are_left_alone(
        self, target: Target, tmp_path: Path, inputs: np.ndarray
    ) -> None:
        network = small_network()
        before = copy.deepcopy(network.state_dict())
        bits = {name: narrow(target) for name in LAYERS}
        path = tmp_path / f"c.{target.format}"
        target.export(network, torch.from_numpy(inputs[:1]), bits, [inputs], path)
        assert not network.training
        assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())
        assert [p.name for p in tmp_path.iterdir()] == [path.name]

    def test_the_same_network_gives_the_same_bytes(
        self, target: Target, tmp_path: Path, inputs: np.ndarray
    ) -> None:
        bits = {name: narrow(target) for name in LAYERS[1:]}
        paths = [tmp_path / f"{i}.{target.format}" for i in range(2)]
        first, second = (self.exported(target, path, bits, inputs).read_bytes() for path in paths)
        assert first == second
        assert str(Path.home()).encode() not in first and str(tmp_path).encode() not in first

    def test_what_cannot_be_is_a_candidate_error(
        self, target: Target, tmp_path: Path, inputs: np.ndarray
    ) -> None:
        with pytest.raises(CandidateError, match="3"):
            self.exported(target, tmp_path / "d", {"3": Bits(7, 5)}, inputs)
        with pytest.raises(CandidateError, match="nowhere"):
            self.exported(target, tmp_path / "d", {"nowhere": narrow(target)}, inputs)
        assert not list(tmp_path.iterdir())
        broken = tmp_path / f"broken.{target.format}"
        for content in (b"", b"not a model", bytes(range(256)) * 8):
            broken.write_bytes(content)
            with pytest.raises(CandidateError) as caught:
                target.load(broken)
            assert "\n" not in str(caught.value) and "broken" in str(caught.value)
        with pytest.raises(CandidateError):
            target.load(tmp_path / "absent")

    @pytest.mark.slow
    def test_a_file_is_as_fast_as_itself(self, target: Target, tmp_path: Path) -> None:
        """A real stopwatch on a real machine, which may be too busy to tell anything; see
        ``benchmarks/timing.py``."""
        inputs = np.random.default_rng(0).standard_normal((2, 3, 160, 160)).astype(np.float32)
        path = self.exported(target, tmp_path / f"e.{target.format}", {}, inputs)
        ratios: list[float] = []
        for _ in range(9):  # each opens the file anew; a machine's worst moments pass
            timing = target.time(path, path, inputs[:1])
            assert isinstance(timing, Timing)
            assert timing.rounds > 0 and timing.baseline_ms > 0 and 0 <= timing.share <= 1
            assert timing.unstable or timing.share > 0
            assert timing.ratio_error >= 0
            ratios += [] if timing.unstable else [timing.ratio]
            if len(ratios) >= 3 and abs(float(np.median(ratios)) - 1) <= 0.10:
                break
        assert not ratios or abs(float(np.median(ratios)) - 1) <= 0.10, (ratios, timing)
