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


def epochs_within(
    budget_s: float, most: int, steps: int, costs: StepCosts, validation_s: float, stored_views: int
) -> tuple[int, float]:
    """The epochs that fit into what is left of a budget; and the seconds of one in which the teachers look.

    Args:
        budget_s: The budget, in seconds, of which one validation and the measuring are spent.
        most: Not more than so many.
        steps: Of an epoch.
        costs: Of a step, as measured.
        validation_s: What a validation takes; there is one after every epoch.
        stored_views: In so many epochs the teachers look beforehand, at images that are made for it; 0 if they do in
            all steps.
    """
    look_s = steps * costs.teachers_s
    epoch_s = steps * (costs.batch_s + costs.student_s) + validation_s
    if stored_views:
        look_s += steps * costs.batch_s
    left_s = budget_s - validation_s - costs.measuring_s
    return fitting_epochs(most, left_s, epoch_s, look_s, stored_views or most), epoch_s + look_s


def budget_notes(minutes: float, most: int, fitting: int, epoch_s: float) -> list[str]:
    """What the user should know of a budget; nothing if it suffices.

    Args:
        minutes: The budget.
        most: The epochs that were asked for.
        fitting: Those that fit.
        epoch_s: What one takes.
    """
    budget = f"{minutes:.3g} minutes"
    if fitting == 0:
        return [f"{budget} do not suffice for an epoch of some {epoch_s:.3g} s; it did one"]
    if fitting < most:
        return [f"{budget} were measured to suffice for {fitting} of {most} epochs"]
    return []
