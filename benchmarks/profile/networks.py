"""A network for sounds and one with a decoder, beside those for images that classify: other kinds of layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class M5(nn.Module):
    """Dai et al. 2016, "Very Deep Convolutional Neural Networks for Raw Waveforms", table 1: `[B, 1, samples]`."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv1d(1, 128, 80, 4), nn.BatchNorm1d(128), nn.ReLU(), nn.MaxPool1d(4)]
        inputs = 128
        for outputs in (128, 256, 512):
            layers += [nn.Conv1d(inputs, outputs, 3), nn.BatchNorm1d(outputs), nn.ReLU(), nn.MaxPool1d(4)]
            inputs = outputs
        self.layers, self.head = nn.Sequential(*layers), nn.Linear(inputs, 10)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.layers(x).mean(2))
        return result


class UNet(nn.Module):
    """Ronneberger et al. 2015, "U-Net", figure 1, of half the width, with paddings and batch norm: `[B, 3, H, W]`."""

    WIDTHS = (32, 64, 128, 256)

    def __init__(self) -> None:
        super().__init__()
        narrower = list(zip((3, *self.WIDTHS), self.WIDTHS, strict=False))
        self.down = nn.ModuleList([_twice(*pair) for pair in narrower])
        wider = [(one, other) for other, one in narrower[1:]][::-1]
        self.up = nn.ModuleList([nn.ConvTranspose2d(*pair, 2, stride=2) for pair in wider])
        self.joined = nn.ModuleList([_twice(*pair) for pair in wider])
        self.head = nn.Conv2d(self.WIDTHS[0], 11, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for level, block in enumerate(self.down):
            x = block(x if level == 0 else nn.functional.max_pool2d(x, 2))
            kept.append(x)
        for up, block, beside in zip(self.up, self.joined, kept[-2::-1], strict=True):
            x = block(torch.cat([beside, up(x)], 1))
        result: Tensor = self.head(x)
        return result


def _twice(inputs: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in (inputs, outputs):
        layers += [nn.Conv2d(width, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)
