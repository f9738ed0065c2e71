"""Trainings that follow labels and the logits of other networks, as a recipe's table says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from onnxdistill.recipe import FeaturesTable, GuidedTable
from onnxdistill.tasks.base import Objective, Task
from onnxdistill.training.job import Guidance
from onnxdistill.training.records import OnStatus, TrainingResult
from onnxdistill.training.run import train

PUBLISHED = {
    ("kd", True): (9.0, 2.0),
    ("kd", False): (1.0, 4.0),
    ("dkd", True): (9.0, 2.0),
    ("dkd", False): (1.0, 4.0),
    ("dist", False): (2.0, 1.0),
}
"""Weight and temperature by loss, and by whether logits are standardised, where a recipe leaves them out.

Sun et al. 2024 for standardised logits, Hinton et al. 2015 and Zhao et al. 2022 for others, Huang et al. 2022.
"""


def train_guided(
    network: nn.Module,
    teachers: Sequence[nn.Module],
    task: Task,
    table: GuidedTable,
    seed: int,
    on_status: OnStatus | None = None,
    checkpoint: Path | None = None,
    features: FeaturesTable | None = None,
) -> TrainingResult:
    """Trains a copy of `network`; the weights that score best on validation are kept.

    Args:
        network: Not changed.
        teachers: The networks whose logits it follows; without any, it learns from labels alone.
        task: Gives batches, loss and score.
        table: The recipe's `[distill]` or `[teacher.train]`.
        seed: Seeds order and augmentation.
        on_status: Called a few times a second.
        checkpoint: Where the training keeps its state, and goes on from.
        features: Layers that follow those of the first teacher.

    Raises:
        TrainingError: If training diverges.
        RecipeError: If one of the layers to follow isn't there.
    """
    if not teachers:
        return train(
            network, task, table, seed, Objective(label_smoothing=table.label_smoothing), None, on_status, checkpoint
        )
    objective = objective_of(table, len(task.class_names))
    # One that nobody listens to need not speak; layers follow the first one.
    heard = len(teachers) if objective.soft_weight > 0 else int(features is not None)
    guidance = Guidance(tuple(teachers[:heard]), table.views, features)
    return train(network, task, table, seed, objective, guidance, on_status, checkpoint)


def objective_of(table: GuidedTable, classes: int) -> Objective:
    """How a training that follows networks weighs labels and logits, of so many classes."""
    standardise = table.loss == "kd" if table.standardise is None else table.standardise
    standardise = standardise and classes > 2
    weight, temperature = PUBLISHED[table.loss, standardise]
    return Objective(
        hard_weight=table.hard_weight,
        label_smoothing=table.label_smoothing,
        soft_weight=weight if table.soft_weight is None else table.soft_weight,
        soft_loss=table.loss,
        temperature=temperature if table.temperature is None else table.temperature,
        standardise=standardise,
        target_weight=table.target_weight,
        others_weight=table.others_weight,
    )
