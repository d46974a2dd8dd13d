"""The learning rate against torch's own schedules and closed forms."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paretune.operators.schedule import SCHEDULES, rate_factor


def test_cosine_equals_torchs():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimiser = torch.optim.SGD([parameter], lr=1.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=50)
    for step in range(50):
        assert rate_factor("cosine", step / 50) == pytest.approx(
            optimiser.param_groups[0]["lr"], abs=1e-9
        )
        optimiser.step()
        theirs.step()


def test_step_equals_torchs():
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.MultiStepLR(optimiser, [20, 30], 0.1)
    for step in range(40):
        assert rate_factor("step", step / 40) == pytest.approx(optimiser.param_groups[0]["lr"])
        optimiser.step()
        theirs.step()


@settings(deadline=None, max_examples=50)
@given(
    kind=st.sampled_from(SCHEDULES),
    progress=st.floats(0, 1),
    warmup=st.floats(0.01, 0.9),
)
def test_warm_up_rises_linearly_and_nothing_leaves_the_unit_interval(kind, progress, warmup):
    factor = rate_factor(kind, progress, warmup)
    assert 0 <= factor <= 1
    if progress < warmup:
        assert factor == pytest.approx(progress / warmup)
    elif kind == "cosine":
        angle = math.pi * (progress - warmup) / (1 - warmup)
        assert factor == pytest.approx(math.cos(angle / 2) ** 2, abs=1e-9)
