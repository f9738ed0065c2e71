"""One training loop for every task: it knows batches, a loss, and a score, and nothing else."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from onnxdistill.errors import TrainingError
from onnxdistill.recipe import TrainingTable
from onnxdistill.tasks.base import Augmentation, Feeds, Objective, Runner, Task
from onnxdistill.training.optimizers import build_optimizer, build_schedule
from onnxdistill.training.precision import training_dtype

STATUS_INTERVAL_S = 0.25


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
    """Where a running training stands."""

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    score: float | None
    samples_per_s: float
    remaining_s: float


@dataclass(frozen=True)
class TrainingResult:
    """A trained network: the weights of `best_epoch` (0 is before the first step), and the log."""

    network: nn.Module
    history: tuple[EpochRecord, ...]
    best_epoch: int
    start_score: float
    best_score: float


OnStatus = Callable[[TrainingStatus], None]


def module_runner(network: nn.Module, task: Task) -> Runner:
    """A runner of a torch module in float32 evaluation mode."""

    def run(feeds: Feeds) -> Feeds:
        with torch.inference_mode():
            output = network(torch.from_numpy(feeds[task.input_name]))
        return {task.output_name: output.float().numpy()}

    return run


def train(
    network: nn.Module,
    task: Task,
    table: TrainingTable,
    seed: int,
    objective: Objective,
    teacher: nn.Module | None = None,
    on_status: OnStatus | None = None,
) -> TrainingResult:
    """Trains a copy of `network` and returns it with the weights that score best on validation.

    The starting weights count as epoch 0, so the result is never worse on validation than the start.

    Args:
        network: Not changed.
        task: Gives batches, loss and score.
        table: Epochs, optimizer, schedule, augmentation.
        seed: Seeds the order, the augmentation, and dropout.
        objective: Weights of the loss's parts.
        teacher: Its outputs are the soft targets; not changed.
        on_status: Called a few times a second.

    Raises:
        TrainingError: If the loss becomes infinite or NaN.
    """
    run = _Run(copy.deepcopy(network), task, table, seed, objective, teacher, on_status)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return run.whole()


class _Run:
    def __init__(
        self,
        network: nn.Module,
        task: Task,
        table: TrainingTable,
        seed: int,
        objective: Objective,
        teacher: nn.Module | None,
        on_status: OnStatus | None,
    ) -> None:
        self.network = network.to(memory_format=torch.channels_last)
        self.task = task
        self.table = table
        self.objective = objective
        self.teacher = None if teacher is None else copy.deepcopy(teacher).to(memory_format=torch.channels_last).eval()
        self.on_status = on_status
        self.rng = np.random.default_rng(seed)
        self.steps = task.steps_per_epoch(table.batch_size)
        self.dtype = training_dtype(table.precision)
        self.optimizer = build_optimizer(self.network, table)
        self.schedule = build_schedule(self.optimizer, table, table.epochs * self.steps)
        self.started = time.monotonic()
        self.last_status = 0.0
        self.score: float | None = None

    def whole(self) -> TrainingResult:
        start_score = self.score = self._validate()
        best_epoch, best_score, best_state = 0, start_score, self._state()
        history: list[EpochRecord] = []
        for epoch in range(1, self.table.epochs + 1):
            record = self._epoch(epoch)
            history.append(record)
            # Not worse than the best so far: of equals the last, which has trained the longest.
            if self.task.metric.drop(best_score, record.score) <= 0:
                best_epoch, best_score, best_state = epoch, record.score, self._state()
        self.network.load_state_dict(best_state)
        network = self.network.to(memory_format=torch.contiguous_format).eval()
        return TrainingResult(network, tuple(history), best_epoch, start_score, best_score)

    def _epoch(self, epoch: int) -> EpochRecord:
        self.network.train()
        started = time.monotonic()
        learning_rate = self.optimizer.param_groups[0]["lr"]
        losses: list[float] = []
        augmentation = Augmentation(self.table.crop_pad, self.table.flip)
        batches = self.task.training_batches(self.table.batch_size, augmentation, self.rng)
        for step, batch in enumerate(batches, 1):
            self.optimizer.zero_grad(set_to_none=True)
            with torch.autocast("cpu", dtype=self.dtype, enabled=self.dtype != torch.float32):
                loss = self.task.step(self.network, self.teacher, batch, self.objective)["loss"]
            losses.append(self._checked(loss.item(), epoch, step))
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            if self.table.clip_norm is not None:
                nn.utils.clip_grad_norm_(self.network.parameters(), self.table.clip_norm)
            self.optimizer.step()
            self.schedule.step()
            self._report(epoch, step, losses)
        self.score = self._validate()
        seconds = time.monotonic() - started
        return EpochRecord(epoch, float(np.mean(losses)), self.score, learning_rate, seconds)

    def _checked(self, loss: float, epoch: int, step: int) -> float:
        if not np.isfinite(loss):
            raise TrainingError(
                f"The training diverged: the loss is {loss} at epoch {epoch}, step {step}, with a learning rate of "
                f"{self.optimizer.param_groups[0]['lr']:.3g}.",
                "Lower learning_rate, or set clip_norm = 1.0.",
            )
        return loss

    def _validate(self) -> float:
        self.network.eval()
        return self.task.score(module_runner(self.network, self.task), "validation").value

    def _state(self) -> dict[str, torch.Tensor]:
        return {name: tensor.detach().clone() for name, tensor in self.network.state_dict().items()}

    def _report(self, epoch: int, step: int, losses: list[float]) -> None:
        now = time.monotonic()
        if self.on_status is None or now - self.last_status < STATUS_INTERVAL_S:
            return
        self.last_status = now
        done = (epoch - 1) * self.steps + step
        elapsed = now - self.started
        self.on_status(
            TrainingStatus(
                epoch=epoch,
                epochs=self.table.epochs,
                step=step,
                steps=self.steps,
                loss=float(np.mean(losses[-50:])),
                score=self.score,
                samples_per_s=done * self.table.batch_size / elapsed,
                remaining_s=elapsed / done * (self.table.epochs * self.steps - done),
            )
        )
