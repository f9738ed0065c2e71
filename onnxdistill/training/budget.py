"""How many epochs a budget of time allows."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from onnxdistill.tasks.base import TrainingBatch

WARMUP_STEPS = 2
MOST_STEPS = 20
MOST_OF_BUDGET = 0.1
"""What measuring may take."""


@dataclass(frozen=True)
class StepCosts:
    """Seconds, for a step's images.

    Attributes:
        batch_s: To read and to change them.
        teachers_s: Of the teachers to look at them.
        student_s: Of everything else in a step.
        measuring_s: That it took to find out, in all.
    """

    batch_s: float
    teachers_s: float
    student_s: float
    measuring_s: float


def measured_costs(
    batches: Iterator[TrainingBatch],
    teach: Callable[[TrainingBatch], object],
    step: Callable[[TrainingBatch], object],
    budget_s: float,
    agreed: Callable[[bool], bool],
) -> StepCosts:
    """Medians over a few steps, of which the first ones warm up.

    Args:
        batches: An epoch's.
        teach: Lets the teachers look at a batch.
        step: A whole step, in which the teachers look, too.
        budget_s: Of all the training; a tenth of it at most is spent here, but for the first step.
        agreed: Whether to go on, the same for all processes that train together.
    """
    costs: list[tuple[float, float, float]] = []
    started = time.perf_counter()
    for _ in range(WARMUP_STEPS + MOST_STEPS):
        before = time.perf_counter()
        batch = next(batches, None)
        made = time.perf_counter()
        if batch is None:
            break
        teach(batch)
        taught = time.perf_counter()
        step(batch)
        now = time.perf_counter()
        costs.append((made - before, taught - made, max(0.0, (now - taught) - (taught - made))))
        if not agreed(now - started < MOST_OF_BUDGET * budget_s):
            break
    warm = min(WARMUP_STEPS, len(costs) - 1)
    batch_s, teachers_s, student_s = np.median(costs[warm:], axis=0)
    return StepCosts(float(batch_s), float(teachers_s), float(student_s), time.perf_counter() - started)


def fitting_epochs(most: int, budget_s: float, epoch_s: float, look_s: float, looks: int) -> int:
    """The epochs that fit into a budget; 0 if not even one does.

    Args:
        most: Not more than so many.
        budget_s: The budget, in seconds.
        epoch_s: An epoch without the teachers.
        look_s: What the teachers take for an epoch's images.
        looks: In how many epochs, from the first on, they have to look.
    """
    fitting = 0
    while fitting < most and (fitting + 1) * epoch_s + min(fitting + 1, looks) * look_s <= budget_s:
        fitting += 1
    return fitting
