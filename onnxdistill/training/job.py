"""What a training is asked for: all that a team of processes has to know, and its fingerprint."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

import onnxdistill
from onnxdistill.recipe import FeaturesTable, TrainingTable
from onnxdistill.tasks.base import Objective, Task
from onnxdistill.training.checkpoint import fingerprint
from onnxdistill.training.hardware import Hardware

FINGERPRINT_BATCH = 64


@dataclass(frozen=True)
class Guidance:
    """Who teaches, and how, beside the labels.

    Attributes:
        teachers: Networks whose outputs are soft targets; not changed.
        views: Stored views of every image; 0 for new ones in every epoch. See `Teaching`.
        features: Layers that follow those of the first teacher.
    """

    teachers: tuple[nn.Module, ...] = ()
    views: int = 0
    features: FeaturesTable | None = None


@dataclass(frozen=True)
class Job:
    """One training; for what the parts mean, see `train`."""

    network: nn.Module
    table: TrainingTable
    seed: int
    objective: Objective
    guidance: Guidance

    def fingerprint(self, task: Task, processes: int) -> str:
        """Of all that decides the weights. What networks compute and real inputs stand for code and for files."""
        settings = f"state 4 {onnxdistill.__version__} {self.seed} {self.objective} {Hardware.of(self.table).dtype}"
        following = f"{self.guidance.views} {self.guidance.features}"
        data = f"{task.describe_data()} {task.metadata()}"
        networks = (self.network, *self.guidance.teachers)
        inputs, outputs = list[str](), list[Tensor]()
        for batch in task.calibration_batches(FINGERPRINT_BATCH):  # which are not held together
            if not inputs:
                with torch.inference_mode():
                    outputs = [net(batch.inputs.clone()) for net in networks]
            inputs.append(fingerprint(batch.inputs))
        return fingerprint(*networks, self.table, f"{settings} {processes}", following, data, *inputs, *outputs)
