"""How far a changed network's outputs are from those that it had."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn

from onnxdistill.tasks.base import Objective, Task, TrainingBatch
from onnxdistill.training.repaired import CALIBRATION_BATCH

# Confident networks differ in what they say of the other classes long before they differ in the first one.
_OBJECTIVE = Objective(hard_weight=0.0, soft_weight=1.0, temperature=2.0)


class Divergence:
    """Measures the mean distillation loss of other networks against one, on calibration samples.

    It is zero for the same network, whatever its loss on the labels is, which it may have learned by heart.

    Args:
        network: In evaluation mode; not changed.
        task: Gives calibration samples and compares outputs.
        batches: Of how many batches.
    """

    def __init__(self, network: nn.Module, task: Task, batches: int) -> None:
        self._task = task
        self._taught: list[tuple[TrainingBatch, Tensor]] = []
        with torch.inference_mode():
            for batch in itertools.islice(task.calibration_batches(CALIBRATION_BATCH), batches):
                self._taught.append((batch, task.step(network, batch, Objective())["output"]))

    @property
    def inputs(self) -> list[Tensor]:
        """What it looks at, batch by batch."""
        return [batch.inputs for batch, _ in self._taught]

    def of(self, changed: nn.Module) -> float:
        """The loss of another network; infinite, where that gives nothing that is a number."""
        with torch.inference_mode():
            losses = [
                float(self._task.step(changed, batch, _OBJECTIVE, [output])["loss"]) for batch, output in self._taught
            ]
        mean = sum(losses) / max(1, len(losses))
        return max(0.0, mean) if math.isfinite(mean) else math.inf
