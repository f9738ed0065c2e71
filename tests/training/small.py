"""What the tests of trainings train."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from onnxdistill.recipe import TrainingTable


def small_network(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, 2, 1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(0.1),
            nn.Linear(128, 10),
        ).eval()


def table(**changes: object) -> TrainingTable:
    values = {"epochs": 2, "batch_size": 64, "learning_rate": 0.1, "precision": "float32", "crop_pad": 0}
    return TrainingTable.model_validate(values | changes)


class Counting(nn.Module):
    """Has an index, and a mean that no state dict has."""

    def __init__(self) -> None:
        super().__init__()
        self.index = nn.Buffer(torch.arange(200))
        self.mean = nn.Buffer(torch.zeros(10), persistent=False)
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.linear(x.flatten(1))
        if self.training:
            self.mean.lerp_(result.detach().mean(0), 0.1)
        return result - self.mean
