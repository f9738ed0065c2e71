"""How many epochs a budget of time allows: the first steps are measured, on a copy that is thrown away."""

from __future__ import annotations

import copy
import time
from itertools import islice

import numpy as np
import torch
from torch import nn

from onnxdistill.data.augment import Augmentation
from onnxdistill.recipe import TrainingTable
from onnxdistill.tasks.base import Objective, Task, TrainingBatch
from onnxdistill.training.optimizers import build_optimizer
from onnxdistill.training.precision import autocast, training_dtype
from onnxdistill.training.teaching import Teaching
from onnxdistill.training.team import current_team

WARMUP_STEPS = 3
MEASURED_STEPS = 15


def affordable_epochs(
    table: TrainingTable,
    task: Task,
    network: nn.Module,
    teaching: Teaching,
    objective: Objective,
    augmentation: Augmentation,
    validation_s: float,
) -> int:
    """The epochs that fit into `table.minutes`, at least one and at most `table.epochs`.

    Args:
        table: The training's.
        task: Gives the batches.
        network: Not changed.
        teaching: The training's.
        objective: The training's.
        augmentation: The training's.
        validation_s: Seconds that a validation takes.
    """
    assert table.minutes is not None, "there is a budget"
    step_s, teaching_s = _measured(table, task, network, teaching, objective, augmentation)
    steps = task.training_samples / table.batch_size
    looks = teaching.stored_views or table.epochs
    fitting = fitting_epochs(table.epochs, 60 * table.minutes, steps * step_s + validation_s, steps * teaching_s, looks)
    return current_team().leaders(fitting)


def fitting_epochs(most: int, budget_s: float, epoch_s: float, look_s: float, looks: int) -> int:
    """The epochs that fit into a budget, at least one.

    Args:
        most: Not more than so many.
        budget_s: The budget, in seconds.
        epoch_s: An epoch without the teachers.
        look_s: What the teachers take for an epoch's images.
        looks: In how many epochs, from the first on, they have to look.
    """
    fitting = 1
    while fitting < most and (fitting + 1) * epoch_s + min(fitting + 1, looks) * look_s <= budget_s:
        fitting += 1
    return fitting


def _measured(
    table: TrainingTable,
    task: Task,
    network: nn.Module,
    teaching: Teaching,
    objective: Objective,
    augmentation: Augmentation,
) -> tuple[float, float]:
    """Seconds of a step without the teachers, and what the teachers take; medians, after a few steps."""
    scratch = copy.deepcopy(network).train()
    optimizer = build_optimizer(scratch, table)
    dtype = training_dtype(table.precision)
    count = task.training_samples
    order = np.arange(count, dtype=np.int64)
    starts = range(0, max(count - 1, 1), table.batch_size)
    cuts = [current_team().share(order[start : start + table.batch_size]) for start in starts]
    batches = task.training_batches(cuts, augmentation, 0)
    step_s, teaching_s = [], []
    with torch.random.fork_rng(devices=[]):
        clock = time.perf_counter()
        for batch in islice(batches, WARMUP_STEPS + MEASURED_STEPS):
            before = time.perf_counter()
            taught = teaching.computed(batch.inputs)
            after = time.perf_counter()
            optimizer.zero_grad()
            with autocast(dtype):
                loss = task.step(scratch, TrainingBatch(batch.inputs, batch.targets), objective, taught)["loss"]
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            optimizer.step()
            now = time.perf_counter()
            teaching_s.append(after - before)
            step_s.append(now - clock - (after - before))  # with the making of the batch
            clock = now
    warm = WARMUP_STEPS if len(step_s) > WARMUP_STEPS else 0
    return float(np.median(step_s[warm:])), float(np.median(teaching_s[warm:]))
