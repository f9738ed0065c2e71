"""One step of a training: the loss of a batch, its gradients, over parts and processes, and the update."""

from __future__ import annotations

import numpy as np

from onnxdistill.tasks.base import Objective, Task, TrainingBatch
from onnxdistill.training.batches import parts_of
from onnxdistill.training.hardware import Hardware
from onnxdistill.training.learner import Learner
from onnxdistill.training.smallmaps import small_maps_as_products
from onnxdistill.training.teaching import Teaching
from onnxdistill.training.team import Team


class DivergedError(Exception):
    """The loss, or a weight, is not finite."""


class Steps:
    """The steps of one training.

    Args:
        learner: The network that learns, and what trains it.
        task: Gives the loss.
        objective: Weighs its parts.
        teaching: The teachers.
        team: The processes that a batch is shared by.
        micro_batch: Samples that a process takes at once; None for all of its share.
        hardware: In which type activations are.
    """

    def __init__(
        self,
        learner: Learner,
        task: Task,
        objective: Objective,
        teaching: Teaching,
        team: Team,
        micro_batch: int | None,
        hardware: Hardware,
    ) -> None:
        self._learner = learner
        self._task = task
        self._objective = objective
        self._teaching = teaching
        self._team = team
        self._micro_batch = micro_batch
        self._hardware = hardware
        self._as_products = small_maps_as_products(learner.network)

    def step(self, batch: TrainingBatch, epoch: int) -> float:
        """One step of the optimizer; returns the loss before it, of all processes together.

        Args:
            batch: This process's share.
            epoch: Decides which of the teachers' stored answers it is shown.

        Raises:
            DivergedError: If the loss is not finite.
        """
        value = self._backward(batch, epoch)
        self._learner.update()
        return value

    def _backward(self, batch: TrainingBatch, epoch: int) -> float:
        """The loss of a batch; its gradients are left in the parameters, summed up over parts of the batch."""
        learner, team = self._learner, self._team
        learner.forget_gradients()
        values = []
        whole = round(team.total(len(batch.inputs)))
        for part in parts_of(batch, self._micro_batch, whole, team.size):
            share = len(part.inputs) / whole
            taught = self._teaching.outputs(epoch, part)
            with self._hardware.autocast(), self._as_products:
                loss = self._task.step(learner.trained, part, self._objective, taught)["loss"]
            if learner.follower is not None:
                loss = loss + learner.follower.weight * learner.follower.loss()
            values.append(team.total(share * loss.item()))
            if not np.isfinite(values[-1]):
                raise DivergedError(f"the loss is {values[-1]}")
            # The mean over the team has to be the sum over all samples' shares.
            (share * team.size * loss).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        team.average([p.grad for p in learner.trained.parameters() if p.grad is not None])
        return sum(values)
