"""The part of a network that can be traced.

Detectors decide by data how many boxes they keep, and no tracer follows that. What their channels depend on is all
before it: backbone, pyramid, proposal heads, and the box heads on whatever regions they are given.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection.fcos import FCOS
from torchvision.models.detection.ssd import SSD
from torchvision.ops import roi_align

PREFIX = "network."


class Core(nn.Module):
    """What is traced in place of a network, which it holds as `network`."""

    network: Any  # a detector's parts are no attributes of `nn.Module`

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Any:
        """Maps images `[N, C, H, W]` to tensors."""
        return self.network(images)


class OneStageCore(Core):
    """RetinaNet, FCOS and SSD: backbone and heads on every feature map."""

    def forward(self, images: Tensor) -> Any:
        """Maps images `[N, C, H, W]` to the raw outputs of the heads."""
        features = _as_dict(self.network.backbone(images))
        return self.network.head(list(features.values()))


class RegionCore(Core):
    """Faster R-CNN: also the box heads, on one fixed region of every feature map that regions are cut from."""

    def forward(self, images: Tensor) -> Any:
        """Maps images `[N, C, H, W]` to the raw outputs of proposal and box heads."""
        network = self.network
        features = _as_dict(network.backbone(images))
        outputs = [network.rpn.head(list(features.values()))]
        pool = network.roi_heads.box_roi_pool
        for name in pool.featmap_names:
            if name in features:
                regions = torch.tensor([[0.0, 0.0, 0.0, 16.0, 16.0]], device=images.device, dtype=images.dtype)
                cut = roi_align(features[name], regions, pool.output_size, 1.0 / 16, pool.sampling_ratio)
                outputs.append(network.roi_heads.box_predictor(network.roi_heads.box_head(cut)))
        return outputs


def core_of(network: nn.Module) -> Core:
    """The traceable core of a network: the network itself, but for detectors."""
    if isinstance(network, FasterRCNN):
        return RegionCore(network)
    if isinstance(network, RetinaNet | FCOS | SSD):
        return OneStageCore(network)
    return Core(network)


def _as_dict(features: Any) -> Mapping[str, Tensor]:
    return {"0": features} if isinstance(features, Tensor) else features
