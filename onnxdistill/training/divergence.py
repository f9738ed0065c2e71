"""How far a changed network's outputs are from those that it had."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from onnxdistill.tasks.base import Objective, Task

# Confident networks differ in what they say of the other classes long before they differ in the first one.
_OBJECTIVE = Objective(hard_weight=0.0, soft_weight=1.0, temperature=2.0)


class Divergence:
    """Measures the distillation loss of other networks against one, on calibration samples.

    It is zero for the same network, whatever its loss on the labels is, which it may have learned by heart.

    Args:
        network: In evaluation mode; not changed.
        task: Gives calibration samples and compares outputs.
        samples: Of how many samples, or of all, where there are fewer.
    """

    def __init__(self, network: nn.Module, task: Task, samples: int) -> None:
        self._task = task
        batch = next(iter(task.calibration_batches(samples)))
        self._batch = batch
        with torch.no_grad():
            self._taught: Tensor = task.step(network, self._batch.copied(), Objective())["output"]

    @property
    def inputs(self) -> Tensor:
        """What it looks at."""
        return self._batch.copied().inputs

    def of(self, changed: nn.Module) -> float:
        """The loss of another network; infinite, where that gives nothing that is a number."""
        with torch.no_grad():
            loss = float(self._task.step(changed, self._batch.copied(), _OBJECTIVE, [self._taught])["loss"])
        return max(0.0, loss) if math.isfinite(loss) else math.inf
