"""A small ResNet for 8x8 grey images: the teacher of the embedded default."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ProjectionBlock(nn.Module):
    """Two 3x3 convolutions with a 1x1 projection shortcut (He et al. 2015, option B) where the shape changes."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[N, C, H, W]` to `[N, C', H/stride, W/stride]`."""
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


class DigitsResNet(nn.Module):
    """A stem and three residual blocks for `[N, 1, 8, 8]` images.

    Args:
        widths: Channels of the three blocks, at 8x8, 8x8 and 4x4 pixels.
        num_classes: Number of outputs.
    """

    def __init__(self, widths: tuple[int, int, int], num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.block1 = ProjectionBlock(widths[0], widths[0], 1)
        self.block2 = ProjectionBlock(widths[0], widths[1], 1)
        self.block3 = ProjectionBlock(widths[1], widths[2], 2)
        self.linear = nn.Linear(widths[2], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Maps normalised images `[N, 1, 8, 8]` to logits `[N, num_classes]`."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.block3(self.block2(self.block1(x)))
        x = F.adaptive_avg_pool2d(x, 1)
        logits: Tensor = self.linear(torch.flatten(x, 1))
        return logits


def digits_resnet(num_classes: int = 10) -> DigitsResNet:
    """The digits teacher: 0.23 M parameters, 10.7 M multiply-adds."""
    return DigitsResNet((64, 64, 64), num_classes)
