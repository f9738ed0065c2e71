"""Stage `distill`: fine-tune the student on the labels and the teacher's logits."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from onnxdistill.recipe import DistillTable
from onnxdistill.tasks import Task
from onnxdistill.tasks.base import Objective
from onnxdistill.training import TrainingResult, train
from onnxdistill.training.loop import OnStatus


def distill(
    student: nn.Module,
    teacher: nn.Module,
    task: Task,
    table: DistillTable,
    seed: int,
    on_status: OnStatus | None = None,
    checkpoint: Path | None = None,
) -> TrainingResult:
    """Fine-tunes a copy of the student; the weights that score best on validation are kept.

    Args:
        student: The compressed network.
        teacher: The network whose logits it learns.
        task: Gives batches, loss and score.
        table: The recipe's `[distill]`.
        seed: Seeds order and augmentation.
        on_status: Called a few times a second.
        checkpoint: Where the training keeps its state, and goes on from.

    Raises:
        TrainingError: If training diverges.
    """
    objective = Objective(
        hard_weight=table.hard_weight,
        soft_weight=table.soft_weight,
        temperature=table.temperature,
        standardise=table.standardise,
    )
    return train(student, task, table, seed, objective, teacher, on_status, checkpoint)
