"""The shipped networks: shapes, sizes, names, and the accuracy of the given weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from paretune.errors import InputError
from paretune.tasks.load import load_task
from paretune.tasks.vision import PadShortcut, cifar_resnet, plain_cnn, vgg16_bn_cifar


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


# He et al. 2015, table 6 (in millions); exact counts from 6n+2 layers of 16/32/64 channels
@pytest.mark.parametrize(
    ("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)]
)
def test_resnet_sizes_are_the_papers(depth: int, millions: float) -> None:
    network = cifar_resnet(depth).eval()
    assert parameters(network) / 1e6 == pytest.approx(millions, rel=0.03)
    convs = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert len(convs) == depth - 1
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_resnet_tensor_names() -> None:
    names = set(cifar_resnet(20, classes=7).state_dict())
    assert {"conv1.weight", "bn1.running_var", "linear.bias"} <= names
    assert {
        f"layer{s}.{i}.{k}.weight"
        for s in (1, 2, 3)
        for i in range(3)
        for k in ("conv1", "bn1", "conv2", "bn2")
    } <= names
    assert {n.split(".")[0] for n in names} == {
        "conv1",
        "bn1",
        "layer1",
        "layer2",
        "layer3",
        "linear",
    }


def test_pad_shortcut_is_subsampling_with_zero_channels() -> None:
    x = torch.randn(2, 16, 8, 8)
    out = PadShortcut(8)(x)
    assert out.shape == (2, 32, 4, 4)
    assert torch.equal(out[:, 8:24], F.max_pool2d(x, 1, stride=2))
    assert not out[:, :8].any() and not out[:, 24:].any()
    assert not list(PadShortcut(8).parameters())


@pytest.mark.parametrize("convs", range(4, 13))
def test_plain_cnns(convs: int) -> None:
    network = plain_cnn(convs, classes=7, width=8).eval()
    assert sum(isinstance(m, nn.Conv2d) for m in network.modules()) == convs
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 7)
    small = plain_cnn(convs, channels=1, size=8, width=4).eval()
    assert small(torch.zeros(3, 1, 8, 8)).shape == (3, 10)


def test_vgg16_is_torchvisions_up_to_the_classifier() -> None:
    from torchvision.models import vgg16_bn

    ours = [m.weight.shape for m in vgg16_bn_cifar().modules() if isinstance(m, nn.Conv2d)]
    theirs = [
        m.weight.shape for m in vgg16_bn(init_weights=False).features if isinstance(m, nn.Conv2d)
    ]
    assert ours == theirs
    assert vgg16_bn_cifar(100).eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 100)


@pytest.mark.parametrize(
    "build",
    [
        lambda: cifar_resnet(21),
        lambda: cifar_resnet("20"),
        lambda: cifar_resnet(20, classes=0),
        lambda: plain_cnn(3),
        lambda: plain_cnn(13),
        lambda: plain_cnn(4, width=0),
        lambda: vgg16_bn_cifar(-1),
    ],
)
def test_impossible_networks_are_refused(build) -> None:
    with pytest.raises(InputError):
        build()


@pytest.mark.data
@pytest.mark.parametrize(
    ("depth", "percent"), [(20, 91.48), pytest.param(56, 93.36, marks=pytest.mark.slow)]
)
def test_given_weights_score_as_published(depth: int, percent: float, data_folder: Path) -> None:
    task = load_task(
        {
            "name": f"resnet{depth}",
            "task": {
                "model": "paretune.tasks.vision:cifar_resnet",
                "model_args": {"depth": depth},
                "weights": f"{data_folder}/cifar10_resnet{depth}.safetensors",
                "data": {
                    "kind": "imagefolder",
                    "train": f"{data_folder}/train",
                    "train_count": 64,
                    "search": 1000,
                    "evaluate": f"{data_folder}/val",
                    "mean": [0.485, 0.456, 0.406],
                    "std": [0.229, 0.224, 0.225],
                },
            },
        }
    )
    assert len(task.train) == 64
    right = 0.0
    for split in (task.search, task.evaluate):
        result = task.score.measure(task.network_predict, split)
        right += result.values["accuracy"] * result.count
    assert len(task.search) == 1000 and len(task.evaluate) == 4000
    assert 100 * right / 5000 == pytest.approx(percent, abs=0.05)
