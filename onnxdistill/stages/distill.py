"""Stage `distill`: fine-tune the student on the labels and the teacher's logits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from onnxdistill.recipe import DistillTable
from onnxdistill.tasks import Task
from onnxdistill.tasks.base import Objective
from onnxdistill.training import Guidance, OnStatus, TrainingResult, train

SOFT_WEIGHTS = {"kd": 9.0, "dkd": 1.0, "dist": 2.0}
"""Those of the papers: Sun et al. 2024 for standardised logits, Zhao et al. 2022, Huang et al. 2022."""


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
    objective = Objective(
        hard_weight=table.hard_weight,
        label_smoothing=table.label_smoothing,
        soft_weight=SOFT_WEIGHTS[table.loss] if table.soft_weight is None else table.soft_weight,
        soft_loss=table.loss,
        temperature=table.temperature,
        standardise=table.standardise,
        target_weight=table.target_weight,
        others_weight=table.others_weight,
    )
    # One that nobody listens to need not speak; layers follow the first one.
    heard = len(teachers) if objective.soft_weight > 0 else int(table.features is not None)
    guidance = Guidance(tuple(teachers[:heard]), table.views, table.features)
    return train(student, task, table, seed, objective, guidance, on_status, checkpoint)
