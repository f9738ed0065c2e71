"""What a training tells: while it runs, epoch by epoch, and at its end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class EpochRecord:
    """One line of the training log; `score` is the task's metric on the validation split."""

    epoch: int
    loss: float
    score: float
    learning_rate: float
    seconds: float


@dataclass(frozen=True)
class TrainingStatus:
    """Where a running training stands.

    Attributes:
        epoch: From 1.
        epochs: In all.
        step: Of this epoch, done.
        steps: In an epoch.
        loss: Mean over the last steps.
        score: The task's metric on validation, at the last epoch's end.
        learning_rate: Of the next step.
        samples_per_s: Of this process, and of those that work with it.
        remaining_s: Until the end, if it goes on like this.
        epoch_done: True once an epoch, after its validation.
        looked: While the teachers look at the epoch's images before it starts: which share they have seen.
        part: Which training of the stage it is, if there are several.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    score: float
    learning_rate: float
    samples_per_s: float
    remaining_s: float
    epoch_done: bool = False
    looked: float | None = None
    part: str = ""


OnStatus = Callable[[TrainingStatus], None]


@dataclass(frozen=True)
class TrainingResult:
    """A trained network: the weights of `best_epoch` (0 is before the first step), and the log.

    Attributes:
        network: In evaluation mode.
        history: A record an epoch.
        best_epoch: The epoch that the weights are of.
        start_score: On validation, before the first step.
        best_score: On validation, of the weights that were kept.
        notes: A sentence for everything that the user should know.
    """

    network: nn.Module
    history: tuple[EpochRecord, ...]
    best_epoch: int
    start_score: float
    best_score: float
    notes: tuple[str, ...] = ()
