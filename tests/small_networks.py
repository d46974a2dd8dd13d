"""Small networks of every connection pattern that channel groups must understand."""

import torch
from torch import nn
from torch.nn import functional as F


class Residual(nn.Module):
    """Two residual blocks, the second with a strided projection."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.a = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.b = nn.Conv2d(2 * width, width, 3, padding=1)
        self.down = nn.Conv2d(width, 2 * width, 1, stride=2)
        self.c = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.head = nn.Linear(2 * width, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn(self.stem(x)))
        x = F.relu(x + self.b(F.relu(self.a(x))))
        x = F.relu(self.down(x) + self.c(x))
        return self.head(x.mean((2, 3)))


class Dense(nn.Module):
    """Concatenation, and a flatten before the classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding=1)
        self.b = nn.Conv2d(8, 8, 3, padding=1)
        self.c = nn.Conv2d(16, 8, 1)
        self.head = nn.Linear(8 * 4 * 4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.a(x))
        x = torch.cat([x, F.relu(self.b(x))], 1)
        return self.head(F.adaptive_avg_pool2d(F.relu(self.c(x)), 4).flatten(1))


class Depthwise(nn.Module):
    """Inverted bottleneck with a depthwise convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Conv2d(3, 16, 1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        self.depth = nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False)
        self.project = nn.Conv2d(16, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu6(self.depth(F.relu6(self.bn(self.expand(x)))))
        return self.head(self.project(x).mean((2, 3)))


class Grouped(nn.Module):
    """A grouped convolution between two plain ones."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 16, 3, padding=1)
        self.grouped = nn.Conv2d(16, 24, 3, padding=1, groups=4)
        self.c = nn.Conv2d(24, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.relu(self.c(F.relu(self.grouped(F.relu(self.a(x)))))).mean((2, 3)))


class PadShortcut(nn.Module):
    """Option A: every second pixel, channels padded with zeros."""

    def __init__(self, extra: int) -> None:
        super().__init__()
        self.extra = extra

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        half = self.extra // 2
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, half, self.extra - half))


class Padded(nn.Module):
    """A residual block over a padded shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv1 = nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.shortcut = PadShortcut(8)
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(self.conv2(F.relu(self.bn1(self.conv1(x)))) + self.shortcut(x))
        return self.head(x.mean((2, 3)))


class Perceptron(nn.Module):
    """Linear layers with LayerNorm, on flat inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(20, 32), nn.LayerNorm(32), nn.GELU(), nn.Linear(32, 16), nn.ReLU()
        )
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


IMAGE = (1, 3, 8, 8)
NETWORKS = {
    "residual": (Residual, IMAGE),
    "dense": (Dense, IMAGE),
    "depthwise": (Depthwise, IMAGE),
    "grouped": (Grouped, IMAGE),
    "padded": (Padded, IMAGE),
    "perceptron": (Perceptron, (1, 20)),
}


def build(name: str, seed: int = 0) -> tuple[nn.Module, torch.Tensor]:
    """A network with lived-in BatchNorm statistics, eval mode, and an example input."""
    torch.manual_seed(seed)
    kind, shape = NETWORKS[name]
    network = kind()
    network.train()
    for _ in range(3):
        network(torch.randn(16, *shape[1:]) * 2 + 0.5)
    return network.eval(), torch.randn(shape)
