"""The networks that ship: CIFAR ResNets, the plain CNNs of compression tutorials, VGG-16-BN."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import InputError

CIFAR_DEPTHS = (8, 14, 20, 32, 44, 56, 110)
_VGG16 = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)


class PadShortcut(nn.Module):
    """The parameter-free shortcut of He et al. 2015, section 4.2, option A.

    Takes every second pixel and adds ``pad`` zero channels on both sides:
    (n, C, H, W) -> (n, C + 2 pad, H / 2, W / 2).
    """

    def __init__(self, pad: int) -> None:
        super().__init__()
        self.pad = pad

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: (n, inputs, H, W) -> (n, outputs, H/s, W/s)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1:
            self.shortcut = PadShortcut((outputs - inputs) // 2)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x))


class CifarResNet(nn.Module):
    """The three-stage ResNet of He et al. 2015, section 4.2: (n, 3, 32, 32) -> (n, classes)."""

    def __init__(self, blocks: int, classes: int, width: int = 16) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = self._stage(width, width, blocks, 1)
        self.layer2 = self._stage(width, 2 * width, blocks, 2)
        self.layer3 = self._stage(2 * width, 4 * width, blocks, 2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(4 * width, classes)

    @staticmethod
    def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
        first = BasicBlock(inputs, outputs, stride)
        return nn.Sequential(first, *(BasicBlock(outputs, outputs, 1) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(torch.flatten(self.pool(x), 1))  # type: ignore[no-any-return]


class PlainCnn(nn.Module):
    """Convolution, BatchNorm and ReLU in a row, pooling between stages, one linear classifier."""

    def __init__(self, stages: list[list[int]], channels: int, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for index, stage in enumerate(stages):
            if index:
                layers.append(nn.MaxPool2d(2))
            for outputs in stage:
                layers += [
                    nn.Conv2d(channels, outputs, 3, padding=1, bias=False),
                    nn.BatchNorm2d(outputs),
                    nn.ReLU(),
                ]
                channels = outputs
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.flatten(self.pool(self.features(x)), 1)
        return self.classifier(x)  # type: ignore[no-any-return]


def cifar_resnet(depth: int = 20, classes: int = 10, width: int = 16) -> nn.Module:
    """ResNet-8/14/20/32/44/56/110 for CIFAR: (n, 3, 32, 32) -> (n, classes).

    width: even number of channels of the first stage; 16 is the published one.
    Tensor names: ``conv1, bn1, layer{1,2,3}.{i}.{conv1,bn1,conv2,bn2}, linear``.
    Raises InputError on another depth or an odd width.
    """
    if depth not in CIFAR_DEPTHS:
        known = ", ".join(map(str, CIFAR_DEPTHS))
        raise InputError("cifar_resnet", f"there is no depth {depth!r}", f"known: {known}")
    if _positive("width", width) % 2:
        raise InputError("cifar_resnet", f"width={width!r} is odd", "take an even one")
    return _initialised(CifarResNet((depth - 2) // 6, _positive("classes", classes), width))


def plain_cnn(
    convs: int = 6, classes: int = 10, channels: int = 3, size: int = 32, width: int = 32
) -> nn.Module:
    """4 to 12 convolutions and a linear classifier: (n, channels, size, size) -> (n, classes).

    ``width`` channels in the first stage, doubled after each pooling; three stages from 16 pixels
    on, two from 8, one below. Raises InputError on a number out of range.
    """
    if not isinstance(convs, int) or not 4 <= convs <= 12:
        raise InputError("plain_cnn", f"convs={convs!r} is not between 4 and 12", "")
    for name, value in (("classes", classes), ("channels", channels), ("width", width)):
        _positive(name, value)
    count = 3 if _positive("size", size) >= 16 else 2 if size >= 8 else 1
    each = [convs // count + (index < convs % count) for index in range(count)]
    stages = [[width * 2**index] * n for index, n in enumerate(each)]
    return _initialised(PlainCnn(stages, channels, classes))


def vgg16_bn_cifar(classes: int = 10) -> nn.Module:
    """VGG-16 with BatchNorm for CIFAR, one linear classifier: (n, 3, 32, 32) -> (n, classes).

    The 13 convolutions of Simonyan and Zisserman 2014, configuration D.
    """
    stages: list[list[int]] = [[]]
    for outputs in _VGG16:
        if outputs:
            stages[-1].append(outputs)
        else:
            stages.append([])
    return _initialised(PlainCnn(stages[:-1], 3, _positive("classes", classes)))


def _positive(name: str, value: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 1_000_000:
        raise InputError(name, f"expected a positive whole number, got {value!r}", "")
    return value


def _initialised(network: nn.Module) -> nn.Module:
    """He et al.'s initialisation for the convolutions; torch's own for the rest."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network
