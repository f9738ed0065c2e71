"""Tiny networks whose channel groups are known by hand: one a rule."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Chain(nn.Module):
    """conv(3->6) bn relu conv(6->4) relu mean linear(4->2)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 4, 3, padding=1)
        self.linear = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.conv2(x)).mean((2, 3))
        return self.linear(x)


class Residual(nn.Module):
    """The stream (4) runs through stem, conv2 and linear; the inside (6) through conv1 and conv2."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.conv1 = nn.Conv2d(4, 6, 3, padding=1)
        self.conv2 = nn.Conv2d(6, 4, 3, padding=1)
        self.linear = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(x + self.conv2(F.relu(self.conv1(x))))
        return self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Padded(nn.Module):
    """Option A: of conv1's 8 channels, 2..5 meet the stem's 4 and 0, 1, 6, 7 meet zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.conv1 = nn.Conv2d(4, 8, 3, 2, padding=1)
        self.linear = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.conv1(F.relu(x)) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
        return self.linear(F.relu(x).mean((2, 3)))


class Concatenated(nn.Module):
    """Channels 0..3 of the joint come from left, 4..8 from right."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 4, 1)
        self.right = nn.Conv2d(3, 5, 1)
        self.joint = nn.Conv2d(9, 6, 3, padding=1)
        self.linear = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.left(x), self.right(x)], 1)
        return self.linear(F.relu(self.joint(F.relu(x))).mean((2, 3)))


class DepthwiseSeparable(nn.Module):
    """The depthwise convolution belongs to the channels that it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.bn = nn.BatchNorm2d(6)
        self.pointwise = nn.Conv2d(6, 5, 1)
        self.linear = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.bn(self.depthwise(F.relu6(self.stem(x)))))
        return self.linear(F.relu(self.pointwise(x)).mean((2, 3)))


class Grouped(nn.Module):
    """Two groups: channels j and j + 4 of the stem go together, and j and j + 3 of the grouped convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.grouped = nn.Conv2d(8, 6, 3, padding=1, groups=2)
        self.linear = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.grouped(F.relu(self.stem(x))))
        return self.linear(x.mean((2, 3)))


class Flattened(nn.Module):
    """Every channel of the convolution is 2 x 2 inputs of the linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.linear1 = nn.Linear(16, 6)
        self.linear2 = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_max_pool2d(F.relu(self.conv(x)), 2)
        return self.linear2(torch.tanh(self.linear1(x.view(x.shape[0], -1))))


class SqueezeExcite(nn.Module):
    """The gate's last layer goes with the channels that it multiplies."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.squeeze = nn.Conv2d(6, 4, 1)
        self.excite = nn.Conv2d(4, 6, 1)
        self.linear = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x))
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))))
        return self.linear((x * gate).mean((2, 3)))


class Shared(nn.Module):
    """One convolution used twice: what it gives is what it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 5, 3, padding=1)
        self.shared = nn.Conv2d(5, 5, 3, padding=1)
        self.linear = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(self.shared(F.relu(self.shared(x))))
        return self.linear(x.mean((2, 3)))


class Scaled(nn.Module):
    """A bare parameter of the channels' width, as layer scale is."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3, padding=1)
        self.scale = nn.Parameter(torch.rand(5, 1, 1))
        self.linear = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(F.relu(self.conv(x) * self.scale).mean((2, 3)))


class Unknown(nn.Module):
    """A cumulative sum over channels has no rule: the stem is frozen, what follows is not."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.conv = nn.Conv2d(4, 6, 3, padding=1)
        self.linear = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cumsum(self.stem(x), 1)
        return self.linear(F.relu(self.conv(x)).mean((2, 3)))


class Split(nn.Module):
    """Channels cut in two at a place that is written into the code."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.conv = nn.Conv2d(3, 5, 3, padding=1)
        self.linear = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.stem(x).chunk(2, 1)
        return self.linear(F.relu(self.conv(left * torch.sigmoid(right))).mean((2, 3)))


class HardCoded(nn.Module):
    """The size of a view is written into the code as a number, so the traced group cannot be cut."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.linear = nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_max_pool2d(F.relu(self.conv(x)), 2)
        return self.linear(x.reshape(-1, 16))
