"""One training loop for every task, epoch by epoch: it knows batches, a loss, and a score, and nothing else."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import numpy as np
from torch import nn

from onnxdistill.data.augment import Augmentation
from onnxdistill.data.images import Indices
from onnxdistill.errors import OnnxDistillError
from onnxdistill.recipe import FeaturesTable
from onnxdistill.tasks.base import Task, TrainingBatch
from onnxdistill.training.batches import cuts_of
from onnxdistill.training.budget import budget_notes, epochs_within, measured_costs
from onnxdistill.training.checkpoint import Checkpoint
from onnxdistill.training.features import Follower
from onnxdistill.training.hardware import Hardware, on_processor
from onnxdistill.training.job import Job
from onnxdistill.training.learner import Learner
from onnxdistill.training.records import OnStatus, TrainingResult
from onnxdistill.training.recovery import Recovery
from onnxdistill.training.reporting import Reporter
from onnxdistill.training.state import TrainingState
from onnxdistill.training.steps import DivergedError, Steps
from onnxdistill.training.teaching import Teaching
from onnxdistill.training.team import Team
from onnxdistill.training.validation import validation_score


class Loop:
    """The epochs of one training, in one process of a team.

    Args:
        job: What is asked for.
        task: Gives batches, loss and score.
        team: The processes that train together.
        hardware: What this one trains on.
        on_status: Called a few times a second, and after every epoch.
        checkpoint: Keeps the state, and may have that of a training that was ended.
    """

    def __init__(
        self,
        job: Job,
        task: Task,
        team: Team,
        hardware: Hardware,
        on_status: OnStatus | None,
        checkpoint: Checkpoint | None,
    ) -> None:
        table, guidance = job.table, job.guidance
        self._task, self._table, self._team, self._seed = task, table, team, job.seed
        self._augmentation = Augmentation(
            table.crop_pad, table.flip, table.rand_augment, float(table.mixup), float(table.cutmix)
        )
        self._cuts = cuts_of(task.training_samples, table.batch_size, team.size)
        steps = len(self._cuts) + 1
        self._hardware = hardware
        inside = guidance.features is not None
        views = min(guidance.views, table.epochs)
        self._teaching = Teaching(
            guidance.teachers, task, self._augmentation, views, job.seed, hardware, table.micro_batch, every_step=inside
        )
        self._learner = Learner(job.network, table, table.epochs * steps, hardware, self._follow(guidance.features))
        self._state = TrainingState(self._learner, table.epochs, steps, job.seed, hardware)
        self._steps = Steps(self._learner, task, job.objective, self._teaching, team, table.micro_batch, hardware)
        self._recovery = Recovery(self._state, checkpoint, team)
        self._reporter = Reporter(self._state, self._teaching, table.batch_size, on_status)

    def run(self) -> TrainingResult:
        """Every epoch that has not been done.

        Raises:
            TrainingError: If the loss, or a weight, becomes infinite or NaN a third time.
        """
        with self._team.synchronised(self._learner.network):
            trained = self._learner.trained
            trained.load_state_dict(self._team.leaders(on_processor(trained.state_dict())))
            if not self._recovery.resume():
                self._start()
            self._reporter.restart()
            while self._state.at.epoch <= self._state.at.epochs:
                try:
                    self._epoch()
                except DivergedError as error:
                    self._recovery.go_back(error)
                    self._reporter.restart()
        return self._state.result()

    def _start(self) -> None:
        """What comes before the first epoch."""
        started = time.monotonic()
        notes = [*self._recovery.notes, *self._learner.notes, *self._teaching.notes]
        self._state.start(self._validate(), notes)
        if self._table.minutes is not None:
            self._fit_into_budget(self._table.minutes, time.monotonic() - started)
        self._recovery.start()

    def _epoch(self) -> None:
        """The rest of the current epoch."""
        state, at, started = self._state, self._state.at, time.monotonic()
        seconds_before = at.seconds
        if at.step == 0:
            at.learning_rate = self._learner.rate
        order = state.order.permutation(self._task.training_samples).astype(np.int64)
        fresh = int(state.order.integers(2**62))
        with self._reporter.looking():
            self._teaching.prepare(at.epoch, lambda share: self._reporter.report(looked=share))
        stored = self._teaching.seed(at.epoch)
        self._learner.start_training()
        # Those before `at.step` were done before this process.
        for batch in self._batches(order, fresh if stored is None else stored, at.step):
            self._team.reseed((self._seed, at.epoch, at.step))
            loss = self._steps.step(batch, at.epoch)
            at.step += 1
            at.losses.append(loss)
            self._reporter.report()
            at.seconds = seconds_before + time.monotonic() - started
            self._recovery.keep_in_between()
        if not self._learner.is_finite():  # the last step's update may have gone wrong after a finite loss
            raise DivergedError("the weights are not finite")
        score = self._validate()
        at.seconds = seconds_before + time.monotonic() - started
        state.end_epoch(score, self._task.metric)
        self._reporter.report(epoch_done=True)
        state.next_epoch()
        self._recovery.keep()

    def _fit_into_budget(self, minutes: float, validation_s: float) -> None:
        """Sets the epochs to those that the budget of time allows, as real steps show, which are then taken back."""
        budget_s, before = 60.0 * minutes, self._state.saved()
        self._learner.start_training()
        costs = measured_costs(
            self._batches(np.arange(self._task.training_samples, dtype=np.int64), 0),
            lambda batch: [answer.cpu() for answer in self._teaching.computed(batch.inputs)],  # a GPU answers later
            self._try,
            budget_s,
            self._team.leaders,
        )
        self._state.restore(before)
        most, views = self._table.epochs, self._teaching.stored_views
        fitting, epoch_s = epochs_within(budget_s, most, self._state.steps, costs, validation_s, views)
        fitting = self._team.leaders(fitting)
        self._state.at.notes += budget_notes(minutes, most, fitting, epoch_s)
        self._state.plan(max(1, fitting))

    def _try(self, batch: TrainingBatch) -> None:
        """A step that will be taken back; if it diverges, so will the training, which can say so."""
        with suppress(DivergedError):
            self._steps.step(batch, self._state.at.epoch)
        self._hardware.wait()

    def _batches(self, order: Indices, seed: int, first: int = 0) -> Iterator[TrainingBatch]:
        """This process's shares of an epoch's batches, from the `first` on."""
        shares = [self._team.share(batch) for batch in np.split(order, self._cuts)[first:]]
        batches, failed = iter(self._task.training_batches(shares, self._augmentation, seed)), None
        for _ in shares:
            try:
                batch = next(batches)
            except OnnxDistillError as error:  # such as an image that only this process reads
                failed = error
            self._team.agreed(failed)
            yield self._hardware.placed(batch)

    def _validate(self) -> float:
        """The leading process does."""
        mine = validation_score(self._learner.shown, self._task) if self._team.rank == 0 else 0.0
        return self._team.leaders(mine)

    def _follow(self, features: FeaturesTable | None) -> Callable[[nn.Module], Follower] | None:
        if features is None:
            return None
        example = self._task.example_input(2).to(self._hardware.device)
        return lambda student: Follower(student, self._teaching.networks[0], features, example)
