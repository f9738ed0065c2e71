"""A network that reads digits, without a training, and what makes its int8 form fail."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from onnxdistill.recipe import ExportTable
from onnxdistill.stages.export import export
from onnxdistill.tasks.classification import Classification


class FittedDigits(nn.Module):
    """Random convolutions and a classifier that is fitted to them by least squares.

    Args:
        task: Gives the training images.
        outlier: One channel of the first convolution fires at very few places, this many times as strongly as others.
        spread: Channels of the first convolution are up to this many times larger or smaller, and what reads them is
            the other way round.
        dead: Whether two channels of the first convolution do not depend on the input: one has weights of zero, the
            other has such as are next to nothing beside its bias.
    """

    def __init__(self, task: Classification, *, outlier: float = 0.0, spread: float = 1.0, dead: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        images, labels = task.example_input(task.training_samples), task.splits.train.labels
        self.first = nn.Conv2d(images.shape[1], 16, 3, padding=1)
        self.second = nn.Conv2d(16, 32, 3, padding=1)
        with torch.no_grad():
            if outlier:
                inside = self.first(images)[:, 0]
                self.first.weight[0] *= outlier
                self.first.bias[0] *= outlier  # type: ignore[index]
                self.first.bias[0] -= outlier * inside.max() - outlier / 2  # type: ignore[index]
                self.second.weight[:, 0] /= outlier
            if dead:
                self.first.weight[1] = 0.0
                self.first.weight[2] *= 1e-9
                self.first.bias[1:3] = torch.tensor([-1.0, 1.0])  # type: ignore[index]
            scales = torch.logspace(-1, 1, 16, base=spread)
            self.first.weight *= scales.reshape(-1, 1, 1, 1)
            self.first.bias *= scales
            self.second.weight /= scales.reshape(1, -1, 1, 1)
            features = self.features(images)
            features = torch.cat((features, torch.ones(len(features), 1)), 1).double()
            moments = features.T @ features + 0.1 * torch.eye(features.shape[1], dtype=torch.float64)
            solved = torch.linalg.solve(moments, features.T @ nn.functional.one_hot(labels, 10).double()).float()
            self.last = nn.Linear(features.shape[1] - 1, 10)
            self.last.weight.copy_(solved[:-1].T)
            self.last.bias.copy_(solved[-1])

    def features(self, x: Tensor) -> Tensor:
        x = torch.relu(self.second(torch.relu(self.first(x))))
        return nn.functional.adaptive_avg_pool2d(x, 4).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.features(x))


def export_digits(network: nn.Module, task: Classification, path: Path) -> Path:
    names = {"input_name": task.input_name, "output_name": task.output_name}
    export(network.eval(), task.example_input(3), path, ExportTable(), **names)
    return path
