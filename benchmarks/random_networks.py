"""torchvision's networks with random weights, for latency: in all other respects they are like trained ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torchvision
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from onnxdistill.recipe import ExportTable
from onnxdistill.stages.export import export


class Scores(nn.Module):
    """A segmentation network that returns its scores alone."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.network(x)["out"]
        return scores


def images(count: int, size: int, seed: int) -> NDArray[np.float32]:
    """Normal noise, `[count, 3, size, size]`."""
    return np.random.default_rng(seed).standard_normal((count, 3, size, size)).astype(np.float32)


def build(name: str, size: int) -> nn.Module:
    """One of torchvision's, normalized."""
    torch.manual_seed(0)
    network = (
        torchvision.models.get_model(name, weights=None, weights_backbone=None)
        if _segments(name)
        else (torchvision.models.get_model(name, weights=None))
    )
    network = normalized(network, torch.from_numpy(images(8, size, 1)))
    return Scores(network) if _segments(name) else network


def normalized(network: nn.Module, inputs: Tensor) -> nn.Module:
    """The network, its batch norms those of random inputs, so that ranges aren't those of vanishing signals."""
    for key, parameter in network.named_parameters():
        if key.endswith("bias"):
            nn.init.normal_(parameter, 0, 0.05)
    for layer in network.modules():
        if isinstance(layer, _BatchNorm):
            layer.reset_running_stats()
            layer.momentum = None
    with torch.no_grad():
        network.train()(inputs)
    return network.eval()


def export_random(name: str, size: int, path: Path) -> Path:
    """Writes a network as a float32 file with inputs of `[batch, 3, size, size]`."""
    export(build(name, size), torch.from_numpy(images(2, size, 2)), path, ExportTable())
    return path


def _segments(name: str) -> bool:
    return name in torchvision.models.list_models(torchvision.models.segmentation)
