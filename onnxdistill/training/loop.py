"""One training loop for every task: it knows batches, a loss, and a score, and nothing else."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

import onnxdistill
from onnxdistill.errors import TrainingError
from onnxdistill.recipe import TrainingTable
from onnxdistill.tasks.base import Augmentation, Feeds, Objective, Runner, Task, TrainingBatch
from onnxdistill.training.checkpoint import (
    Checkpoint,
    State,
    fingerprint,
    numpy_random_state,
    plain_random_state,
)
from onnxdistill.training.optimizers import build_optimizer, build_schedule
from onnxdistill.training.precision import training_dtype

STATUS_INTERVAL_S = 0.25
CHECKPOINT_INTERVAL_S = 60.0
"""Within an epoch; there is one after every epoch, too."""

MAX_HALVINGS = 2

FINGERPRINT_BATCH = 64


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
    checkpoint: Path | None = None,
) -> TrainingResult:
    """Trains a copy of `network` and returns it with the weights that score best on validation.

    The starting weights count as epoch 0, so the result is never worse on validation than the start. A loss that is
    not finite takes the training back to its last good state with half the learning rate, twice at most.

    Args:
        network: Not changed.
        task: Gives batches, loss and score.
        table: Epochs, optimizer, schedule, augmentation.
        seed: Seeds the order, the augmentation, and dropout.
        objective: Weights of the loss's parts.
        teacher: Its outputs are the soft targets; not changed.
        on_status: Called a few times a second.
        checkpoint: A file to keep the state in. If it holds that of the same training (networks, data, settings),
            this one goes on from there, to the same weights as if it had never been ended.

    Raises:
        TrainingError: If the loss becomes infinite or NaN a third time.
        OSError: If the checkpoint cannot be written.
    """
    kept = None
    if checkpoint is not None:
        kept = Checkpoint(checkpoint, _fingerprint(network, task, table, seed, objective, teacher))
    run = _Run(copy.deepcopy(network), task, table, seed, objective, teacher, on_status, kept)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return run.whole()


def _fingerprint(
    network: nn.Module, task: Task, table: TrainingTable, seed: int, objective: Objective, teacher: nn.Module | None
) -> str:
    """Of all that decides the weights. What networks compute and real inputs stand for code and for files."""
    settings = f"{onnxdistill.__version__} {seed} {objective} {training_dtype(table.precision)}"
    data = f"{task.describe_data()} {task.metadata()}"
    inputs = [batch.inputs for batch in task.calibration_batches(FINGERPRINT_BATCH)]
    with torch.inference_mode():
        outputs = [net(inputs[0]) for net in (network, teacher) if net is not None and inputs]
    return fingerprint(network, teacher, table, settings, data, *inputs, *outputs)


class _DivergedError(Exception):
    """The loss, or a weight, is not finite."""


@dataclass
class _Position:
    """Where a training stands, beside its tensors. All of it goes into the checkpoint."""

    epoch: int = 1
    step: int = 0  # of that epoch, done
    losses: list[float] = field(default_factory=list)  # of that epoch
    seconds: float = 0.0  # in that epoch
    learning_rate: float = 0.0  # at the start of that epoch
    history: list[EpochRecord] = field(default_factory=list)
    best_epoch: int = 0
    best_score: float = 0.0
    start_score: float = 0.0
    score: float = 0.0
    halvings: int = 0  # of the learning rate
    notes: list[str] = field(default_factory=list)


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
        checkpoint: Checkpoint | None,
    ) -> None:
        self.network = network.to(memory_format=torch.channels_last)
        self.task = task
        self.table = table
        self.objective = objective
        self.teacher = None if teacher is None else copy.deepcopy(teacher).to(memory_format=torch.channels_last).eval()
        self.on_status = on_status
        self.checkpoint = checkpoint
        self.rng = np.random.default_rng(seed)
        self.steps = task.steps_per_epoch(table.batch_size)
        self.dtype = training_dtype(table.precision)
        self.optimizer = build_optimizer(self.network, table)
        self.schedule = build_schedule(self.optimizer, table, table.epochs * self.steps)
        self.rates = list(self.schedule.base_lrs)
        self.average = None
        if table.average:
            self.average = AveragedModel(self.network, avg_fn=_blend(table.average), use_buffers=True)
        self.last_status = 0.0

    def whole(self) -> TrainingResult:
        if not self._resume():
            score = self._validate()
            self.at = _Position(start_score=score, score=score, best_score=score)
            self.best_state = self._weights()
            self.epoch_rng = self.rng.bit_generator.state
            self.last_good = self._state()
        self.started = self.last_saved = time.monotonic()
        self.steps_before = self._steps_done()
        while self.at.epoch <= self.table.epochs:
            try:
                self._epoch()
            except _DivergedError as error:
                self._go_back(error)
        self.network.load_state_dict(self.best_state)
        network = self.network.to(memory_format=torch.contiguous_format).eval()
        at = self.at
        return TrainingResult(network, tuple(at.history), at.best_epoch, at.start_score, at.best_score, tuple(at.notes))

    def _epoch(self) -> None:
        """The rest of the current epoch."""
        at, started = self.at, time.monotonic()
        seconds_before = at.seconds
        if at.step == 0:
            at.learning_rate = self.optimizer.param_groups[0]["lr"]
        random_state = torch.get_rng_state()
        augmentation = Augmentation(self.table.crop_pad, self.table.flip)
        batches = self.task.training_batches(self.table.batch_size, augmentation, self.rng)
        for _ in range(at.step):  # done before this process
            next(batches)
        torch.set_rng_state(random_state)
        self.network.train()
        for batch in batches:
            self._step(batch)
            at.seconds = seconds_before + time.monotonic() - started
            if self.checkpoint is not None and time.monotonic() - self.last_saved > CHECKPOINT_INTERVAL_S:
                self._check_weights()
                self._write_down()
        self._check_weights()
        at.score = self._validate()
        at.seconds = seconds_before + time.monotonic() - started
        at.history.append(EpochRecord(at.epoch, float(np.mean(at.losses)), at.score, at.learning_rate, at.seconds))
        # Not worse than the best so far: of equals the last, which has trained the longest.
        if self.task.metric.drop(at.best_score, at.score) <= 0:
            at.best_epoch, at.best_score, self.best_state = at.epoch, at.score, self._weights()
        at.epoch, at.step, at.losses, at.seconds = at.epoch + 1, 0, [], 0.0
        self.epoch_rng = self.rng.bit_generator.state
        self._keep()

    def _step(self, batch: TrainingBatch) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=self.dtype, enabled=self.dtype != torch.float32):
            loss = self.task.step(self.network, self.teacher, batch, self.objective)["loss"]
        value = loss.item()
        if not np.isfinite(value):
            raise _DivergedError(f"the loss is {value}")
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        if self.table.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.table.clip_norm)
        self.optimizer.step()
        self.schedule.step()
        if self.average is not None:
            self.average.update_parameters(self.network)
        self.at.step += 1
        self.at.losses.append(value)
        self._report()

    def _check_weights(self) -> None:
        """The last step's update may have gone wrong after a finite loss."""
        if not all(bool(parameter.isfinite().all()) for parameter in self.network.parameters()):
            raise _DivergedError("the weights are not finite")

    def _go_back(self, error: _DivergedError) -> None:
        rate = self.optimizer.param_groups[0]["lr"]
        place = f"{error} at epoch {self.at.epoch}, step {self.at.step + 1}, with a learning rate of {rate:.3g}"
        halvings, notes = self.at.halvings + 1, [*self.at.notes, f"{place}; it went on with half of it"]
        if halvings > MAX_HALVINGS:
            raise TrainingError(
                f"The training diverged: {place}, though it was halved {MAX_HALVINGS} times.",
                "Lower learning_rate, or set clip_norm = 1.0.",
            ) from error
        self._restore(self.last_good)
        self.at.halvings, self.at.notes = halvings, notes
        self._set_rate()
        self._keep()

    def _set_rate(self) -> None:
        self.schedule.base_lrs = [rate * 0.5**self.at.halvings for rate in self.rates]
        for group, rate in zip(self.optimizer.param_groups, self.schedule.base_lrs, strict=True):
            group["lr"] = rate * self.schedule.lr_lambdas[0](self.schedule.last_epoch)

    def _keep(self) -> None:
        """Takes this for the last good state, and writes it down.

        Only the starts of epochs are such states: they do not depend on how fast the machine is.
        """
        self.last_good = self._state()
        self._write_down(self.last_good)

    def _write_down(self, state: State | None = None) -> None:
        self.last_saved = time.monotonic()
        if self.checkpoint is None:
            return
        try:
            self.checkpoint.save({"now": state or self._state(), "good": self.last_good})
        except OSError as error:  # a help that is missed only if the run is ended
            self.checkpoint = None
            reason = error.strerror or type(error).__name__
            self.at.notes.append(f"its checkpoint could not be written ({reason}), and it went on without one")

    def _resume(self) -> bool:
        state = None if self.checkpoint is None else self.checkpoint.load()
        if state is None:
            return False
        self.last_good = state["good"]
        self._restore(state["now"])
        self.at.notes.append(
            f"it went on at epoch {self.at.epoch}, step {self.at.step + 1}, where a run had been ended"
        )
        return True

    def _state(self) -> State:
        return copy.deepcopy(
            {
                "at": asdict(self.at),
                "network": self.network.state_dict(),
                "unsaved": _unsaved_buffers(self.network),
                "best": self.best_state,
                "optimizer": self.optimizer.state_dict(),
                "schedule": self.schedule.state_dict(),
                "average": None if self.average is None else self.average.state_dict(),
                "order": plain_random_state(self.epoch_rng),
                "torch": torch.get_rng_state(),
            }
        )

    def _restore(self, state: State) -> None:
        state = copy.deepcopy(state)
        records = [EpochRecord(**record) for record in state["at"].pop("history")]
        self.at = _Position(**state["at"], history=records)
        self.network.load_state_dict(state["network"])
        for name, buffer in _unsaved_buffers(self.network).items():
            buffer.copy_(state["unsaved"][name])
        self.best_state = state["best"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.epoch_rng = numpy_random_state(state["order"])
        self.rng.bit_generator.state = self.epoch_rng
        torch.set_rng_state(state["torch"])

    def _validate(self) -> float:
        return self.task.score(module_runner(self._shown().eval(), self.task), "validation").value

    def _shown(self) -> nn.Module:
        """The network whose weights count: the average of those on the way, if one is kept."""
        return self.network if self.average is None else self.average.module

    def _weights(self) -> dict[str, torch.Tensor]:
        return copy.deepcopy(self._shown().state_dict())

    def _steps_done(self) -> int:
        return (self.at.epoch - 1) * self.steps + self.at.step

    def _report(self) -> None:
        now = time.monotonic()
        if self.on_status is None or now - self.last_status < STATUS_INTERVAL_S:
            return
        self.last_status = now
        done = self._steps_done()
        steps_per_s = (done - self.steps_before) / (now - self.started)
        self.on_status(
            TrainingStatus(
                epoch=self.at.epoch,
                epochs=self.table.epochs,
                step=self.at.step,
                steps=self.steps,
                loss=float(np.mean(self.at.losses[-50:])),
                score=self.at.score,
                samples_per_s=steps_per_s * self.table.batch_size,
                remaining_s=(self.table.epochs * self.steps - done) / steps_per_s,
            )
        )


def _blend(decay: float) -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor | int], torch.Tensor]:
    """A step of a moving average; what is not a real number, such as an index or a counter, is the latest one."""

    def blended(average: torch.Tensor, latest: torch.Tensor, _count: torch.Tensor | int) -> torch.Tensor:
        return torch.lerp(average, latest, 1.0 - decay) if average.is_floating_point() else latest

    return blended


def _unsaved_buffers(network: nn.Module) -> dict[str, torch.Tensor]:
    """The buffers that a state dict leaves out."""
    saved = network.state_dict().keys()
    return {name: buffer for name, buffer in network.named_buffers() if name not in saved}
