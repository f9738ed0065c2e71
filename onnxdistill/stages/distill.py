"""Stage `distill`: fine-tune the student on the labels and the teacher's logits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from onnxdistill.recipe import DistillTable
from onnxdistill.tasks import Task
from onnxdistill.training import OnStatus, TrainingResult, train_guided


def distill(
    student: nn.Module,
    teachers: Sequence[nn.Module],
    task: Task,
    table: DistillTable,
    seed: int,
    on_status: OnStatus | None = None,
    checkpoint: Path | None = None,
) -> TrainingResult:
    """Fine-tunes a copy of the student; the weights that score best on validation are kept.

    Args:
        student: The compressed network.
        teachers: The networks whose logits it learns; the layers of the first one, if any.
        task: Gives batches, loss and score.
        table: The recipe's `[distill]`.
        seed: Seeds order and augmentation.
        on_status: Called a few times a second.
        checkpoint: Where the training keeps its state, and goes on from.

    Raises:
        TrainingError: If training diverges.
        RecipeError: If a layer of `[distill.features]` isn't there.
    """
    return train_guided(student, teachers, task, table, seed, on_status, checkpoint, table.features)
