"""MobileNetV2 for CIFAR-10: torchvision's blocks, with less of the downsampling.

The first convolution and the second stage have stride 1, since images of 32 pixels would be one pixel at the end; what
is left of them are 4 x 4 places. Normalised images `[N, 3, 32, 32]` become logits `[N, num_classes]`.
"""

from __future__ import annotations

from torch import nn
from torchvision.models import MobileNetV2

# Expansion, channels, blocks and stride of the stages: those of Sandler et al. 2018, table 2, but that the second stage
# keeps its size.
_STAGES = [
    [1, 16, 1, 1],
    [6, 24, 2, 1],
    [6, 32, 3, 2],
    [6, 64, 4, 2],
    [6, 96, 3, 1],
    [6, 160, 3, 2],
    [6, 320, 1, 1],
]


def mobilenet_v2(num_classes: int = 10) -> nn.Module:
    """MobileNetV2 of half width: 0.70 M parameters, 28.0 M multiply-adds."""
    network: nn.Module = MobileNetV2(num_classes, width_mult=0.5, inverted_residual_setting=_STAGES)
    first = network.get_submodule("features.0.0")
    assert isinstance(first, nn.Conv2d)
    first.stride = (1, 1)
    return network
