"""Bits that a job names: numbers, pairs, and what the target offers only when asked."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from paretune.errors import InputError
from paretune.objectives.problem import find_space
from paretune.spaces.space import SearchSpace
from paretune.targets import torch_eager
from paretune.targets.onnxruntime_cpu import OnnxRuntimeCpu
from paretune.targets.target import Target
from paretune.targets.torch_eager import TorchCpu
from paretune.tasks.job import load_job


def space(bits: list[object] | None, *targets: Target) -> SearchSpace:
    job = load_job(
        {
            "name": "bits",
            "task": {"model": "paretune.tasks.vision:plain_cnn", "data": {"kind": "digits"}},
            "space": {"bits": bits, "freeze": [], "rank": False, "prune": False},
        }
    )
    network = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Flatten(), nn.Linear(8 * 36, 4)).eval()
    task = SimpleNamespace(network=network, example=torch.zeros(1, 1, 8, 8))
    first, *further = targets or (OnnxRuntimeCpu(),)
    return find_space(job, task, first, further)


def test_float_and_8_bits_are_what_is_offered_by_itself() -> None:
    assert OnnxRuntimeCpu().choices.bits == ((32, 32), (8, 8))
    assert all(layer.bits == ((32, 32), (8, 8)) for layer in space(None).layers)


def test_a_job_that_names_no_bits_runs_on_every_target() -> None:
    """Each offers its own widths; together they offer those that all of them run."""
    job = load_job({"name": "plain", "task": {"model": "m:m", "data": {"kind": "digits"}}})
    assert load_job(job.to_json()) == job and job.space.bits is None
    offered = space(None, TorchCpu()).layers
    assert all(layer.bits == TorchCpu().choices.bits for layer in offered)
    assert TorchCpu().choices.bits[:2] == ((32, 32), (16, 16))
    with pytest.raises(InputError, match="4 bits are not offered by this target; known: "):
        space([4, 32], TorchCpu())


def test_what_is_not_offered_here_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_eager, "integer_kernels", lambda: False)
    assert all(layer.bits == ((32, 32), (16, 16)) for layer in space(None, TorchCpu()).layers)
    with pytest.raises(InputError) as caught:
        space([8, 32], TorchCpu())
    said = "8 bits are not offered by this target (this processor has no fast 8-bit kernels"
    assert said in str(caught.value) and "known: 16, 32" in str(caught.value)


@pytest.mark.parametrize(
    ("named", "pairs"),
    [
        ([8, 32], ((32, 32), (8, 8))),
        ([4, 8, 32], ((32, 32), (8, 8), (4, 8))),
        (["w4a32", 2, "w8a32", 32], ((32, 32), (8, 32), (4, 32), (2, 8))),
        (["w4a8", 4, 32], ((32, 32), (4, 8))),
    ],
)
def test_a_number_is_the_usual_pair_and_a_name_says_both(
    named: list[object], pairs: tuple[tuple[int, int], ...]
) -> None:
    assert all(layer.bits == pairs for layer in space(named).layers)


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ([5, 32], "5 bits are not offered by this target; known: 2, 3, 4, 6, 8, 32, w2a8"),
        (["w4a16", 32], "w4a16 bits are not offered"),
        ([0, 32], "at least 1"),
        ([7.5, 32], "expected a whole number"),
        (["four", 32], "bits"),
        ([8], "space.bits: every plan is compared with the unchanged network"),
    ],
)
def test_other_bits_are_refused_in_one_line(named: list[object], said: str) -> None:
    with pytest.raises(InputError) as caught:
        space(named)
    assert said in str(caught.value) and "\n" not in str(caught.value)
