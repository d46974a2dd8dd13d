"""Feature matching: which maps are taken, and the distance against numpy."""

import numpy as np
import pytest
import torch
from small_task import Small
from torch import nn

from paretune.errors import InputError
from paretune.operators.features import FeatureMatch, Pairs, Taps, stages
from paretune.tasks.vision import cifar_resnet, plain_cnn

EXAMPLE = torch.randn(1, 1, 8, 8)


def test_stages_are_the_last_maps_of_each_resolution():
    assert stages(cifar_resnet(20).eval(), torch.zeros(1, 3, 32, 32)) == [
        "layer1",
        "layer2",
        "layer3",
    ]
    assert stages(Small().eval(), EXAMPLE) == ["bn2", "bn3"]
    found = stages(plain_cnn(6).eval(), torch.zeros(1, 3, 32, 32))
    assert len(found) == 3 and found[-1] == "features"


def test_equal_widths_are_compared_directly():
    torch.manual_seed(0)
    mine, theirs = Small().eval(), Small().eval()
    pairs = Pairs.find(["conv2", "conv3"], mine, theirs, EXAMPLE)
    match = FeatureMatch(pairs, mine, theirs, EXAMPLE)
    assert not list(match.parameters())
    batch = torch.randn(5, 1, 8, 8)
    taps = Taps(mine, pairs.mine), Taps(theirs, pairs.theirs)
    with torch.no_grad():
        mine(batch), theirs(batch)
    expected = 0.0
    for name in ("conv2", "conv3"):
        got, want = (t.outputs[name].numpy().astype(np.float64) for t in taps)
        expected += ((got - want) ** 2).mean() / (want**2).mean() / 2
    assert float(match(taps[0].outputs, taps[1].outputs)) == pytest.approx(expected, rel=1e-5)
    for tap in taps:
        tap.close()
    assert not any(m._forward_hooks for m in mine.modules())


def test_other_widths_go_through_a_learned_projection():
    mine, theirs = Small(4).eval(), Small(6).eval()
    pairs = Pairs.find("auto", mine, theirs, EXAMPLE)
    match = FeatureMatch(pairs, mine, theirs, EXAMPLE)
    assert [tuple(p.shape) for p in match.parameters()] == [(6, 4, 1, 1), (12, 8, 1, 1)]


def test_wrong_names_and_sizes_are_named():
    network = Small().eval()
    with pytest.raises(InputError, match="there is no module 'conv4'; did you mean 'conv"):
        Pairs.find(["conv4"], network, network, EXAMPLE, "job.yaml:3")
    other = nn.Sequential(nn.AvgPool2d(2), Small()).eval()
    pairs = Pairs(("conv2",), ("1.conv2",))
    with pytest.raises(InputError, match="name modules of the same resolution"):
        FeatureMatch(pairs, network, other, EXAMPLE)
