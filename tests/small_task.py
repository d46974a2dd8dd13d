"""A real task that trains in a second: scikit-learn's digits and a small convolutional network."""

from functools import cache

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from paretune.spaces.discover import discover
from paretune.spaces.plan import CompressionPlan
from paretune.tasks.published import digits
from paretune.tasks.score import Top1
from paretune.tasks.split import ImageSplit
from paretune.tasks.task import Task


class Small(nn.Module):
    """Two convolutions at 8x8, one at 4x4."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 2 * width, 3, 2, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(2 * width)
        self.head = nn.Linear(2 * width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        x = F.relu(self.bn3(self.conv3(x)))
        return self.head(x.mean((2, 3)))


def splits() -> dict[str, ImageSplit]:
    images = digits()
    order = np.random.default_rng(0).permutation(len(images.images))
    whole = ImageSplit("all", images.images, images.labels, (0.3,), (0.35,))
    rows = {"train": order[:1000], "search": order[1000:1300], "evaluate": order[1300:]}
    return {name: whole.part(name, part) for name, part in rows.items()}


@cache
def trained(epochs: int = 6) -> nn.Module:
    """The network after a plain torch training (about 97 %)."""
    torch.manual_seed(0)
    network, train = Small(), splits()["train"]
    inputs, targets = train.take(np.arange(len(train)))
    optimiser = torch.optim.Adam(network.parameters(), 0.01)
    for epoch in range(epochs):
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(epoch))
        for rows in order.split(100):
            optimiser.zero_grad()
            F.cross_entropy(network(inputs[rows]), targets[rows]).backward()
            optimiser.step()
    return network.eval().requires_grad_(False)


def task() -> Task:
    parts = splits()
    example = parts["train"].take(np.arange(1))[0]
    return Task("small", trained(), example, **parts, score=Top1(), fingerprint="small")


def quartered(whole: Task) -> tuple:
    """(space, the plan that keeps a quarter of every group's channels)."""
    space = discover(whole.network, whole.example)
    groups = {name: max(1, kept // 4) for name, kept in space.identity.groups.items()}
    return space, CompressionPlan(groups, space.identity.layers)
