"""One training loop for every task: it knows batches, a loss, and a score, and nothing else."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

import onnxdistill
from onnxdistill.data.augment import Augmentation
from onnxdistill.errors import OnnxDistillError, TrainingError
from onnxdistill.recipe import FeaturesTable, TrainingTable
from onnxdistill.tasks.base import Feeds, Objective, Runner, Task, TrainingBatch
from onnxdistill.training.budget import fitting_epochs, measured_costs
from onnxdistill.training.checkpoint import (
    Checkpoint,
    State,
    fingerprint,
    numpy_random_state,
    plain_random_state,
)
from onnxdistill.training.features import Follower
from onnxdistill.training.optimizers import build_optimizer, build_schedule
from onnxdistill.training.precision import autocast, training_dtype
from onnxdistill.training.records import EpochRecord, OnStatus, TrainingResult, TrainingStatus
from onnxdistill.training.teaching import Teaching
from onnxdistill.training.team import Team, current_team

STATUS_INTERVAL_S = 0.25
CHECKPOINT_INTERVAL_S = 60.0
"""Within an epoch; there is one after every epoch, too."""

MAX_HALVINGS = 2

FINGERPRINT_BATCH = 64


@dataclass(frozen=True)
class Guidance:
    """Who teaches, and how, beside the labels.

    Attributes:
        teachers: Networks whose outputs are soft targets; not changed.
        views: Stored views of every image; 0 for new ones in every epoch. See `Teaching`.
        features: Layers that follow those of the first teacher.
    """

    teachers: tuple[nn.Module, ...] = ()
    views: int = 0
    features: FeaturesTable | None = None


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
    guidance: Guidance | None = None,
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
        guidance: The teachers; nobody by default.
        on_status: Called a few times a second, and after every epoch.
        checkpoint: A file to keep the state in. If it holds that of the same training (networks, data, settings),
            this one goes on from there, to the same weights as if it had never been ended.

    Raises:
        TrainingError: If the loss becomes infinite or NaN a third time.
        RecipeError: If a layer whose features are asked for isn't there.
        OSError: If the checkpoint cannot be written.
    """
    job = _Job(network, table, seed, objective, guidance or Guidance())
    kept = None if checkpoint is None else Checkpoint(checkpoint, _fingerprint(job, task))
    current_team().leaders(job)
    return _work(job, task, on_status, kept)


def follow(task: Task) -> None:
    """Takes part in all trainings of the leading process, until it lets its team go."""
    while (job := current_team().leaders(cast("_Job | None", None))) is not None:
        with suppress(OnnxDistillError):  # the leading process meets the same, and says so
            _work(job, task, None, None)


@contextmanager
def leading() -> Iterator[None]:
    """Lets those that `follow` this process go at the end of the block; without a team, nothing happens.

    After an error that only this process has met they may be anywhere; then they end when it does.
    """
    try:
        yield
    except OnnxDistillError:
        current_team().leaders(None)
        raise
    current_team().leaders(None)


@dataclass(frozen=True)
class _Job:
    """What a whole team needs to know of a training; see `train`."""

    network: nn.Module
    table: TrainingTable
    seed: int
    objective: Objective
    guidance: Guidance


def _work(job: _Job, task: Task, on_status: OnStatus | None, checkpoint: Checkpoint | None) -> TrainingResult:
    team = current_team()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(job.seed + team.rank)  # of dropout
        run = _Run(job, task, on_status, checkpoint, team)
        with team.synchronised(run.network):
            run.whole()
        return run.result()


def _fingerprint(job: _Job, task: Task) -> str:
    """Of all that decides the weights. What networks compute and real inputs stand for code and for files."""
    size = current_team().size
    settings = f"{onnxdistill.__version__} {job.seed} {job.objective} {training_dtype(job.table.precision)} {size}"
    following = f"{job.guidance.views} {job.guidance.features}"
    data = f"{task.describe_data()} {task.metadata()}"
    inputs = [batch.inputs for batch in task.calibration_batches(FINGERPRINT_BATCH)]
    networks = (job.network, *job.guidance.teachers)
    with torch.inference_mode():
        outputs = [net(inputs[0]) for net in networks if inputs]
    return fingerprint(*networks, job.table, settings, following, data, *inputs, *outputs)


class _DivergedError(Exception):
    """The loss, or a weight, is not finite."""


@dataclass
class _Position:
    """Where a training stands, beside its tensors. All of it goes into the checkpoint."""

    epochs: int  # in all
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
        self, job: _Job, task: Task, on_status: OnStatus | None, checkpoint: Checkpoint | None, team: Team
    ) -> None:
        self.network = copy.deepcopy(job.network).to(memory_format=torch.channels_last)
        self.task = task
        self.table = table = job.table
        self.objective = job.objective
        guidance, seed = job.guidance, job.seed
        self.team = team
        self.on_status = on_status
        self.checkpoint = checkpoint
        self.rng = np.random.default_rng(seed)
        self.augmentation = Augmentation(
            table.crop_pad, table.flip, table.rand_augment, float(table.mixup), float(table.cutmix)
        )
        self.cuts = _cuts(task.training_samples, table.batch_size, team.size)
        self.steps = len(self.cuts) + 1
        self.dtype = training_dtype(table.precision)
        self.average = None
        if table.average:
            self.average = AveragedModel(self.network, avg_fn=_blend(table.average), use_buffers=True)
        inside = guidance.features is not None
        views = min(guidance.views, table.epochs)
        self.teaching = Teaching(guidance.teachers, task, self.augmentation, views, seed, self.dtype, inside)
        self.follower: Follower | None = None
        if guidance.features is not None:
            example = task.example_input(2)
            self.follower = Follower(self.network, self.teaching.networks[0], guidance.features, example)
            self.features_weight = guidance.features.weight
        self.trained: nn.Module = self.network if self.follower is None else self.follower
        adapters = [] if self.follower is None else self.follower.adapters.parameters()
        self.optimizer = build_optimizer(self.network, table, adapters)
        self.last_status = 0.0
        self.look_s = self.looking_s = 0.0  # of teachers at an epoch's images: the last time, and in all

    def whole(self) -> None:
        """Every epoch; then `result` has the network."""
        self.trained.load_state_dict(self.team.leaders(self.trained.state_dict()))
        if not self._resume():
            started = time.monotonic()
            score = self._validate()
            self.at = _Position(self.table.epochs, start_score=score, score=score, best_score=score)
            self.at.notes += self.teaching.notes
            self.best_state = self._weights()
            self.epoch_rng = self.rng.bit_generator.state
            self._build_schedule()
            self._fit_into_budget(time.monotonic() - started)
            self._build_schedule()
            self.last_good = self._state()
        self.started = self.last_saved = time.monotonic()
        self.steps_before = self._steps_done()
        while self.at.epoch <= self.at.epochs:
            try:
                self._epoch()
            except _DivergedError as error:
                self._go_back(error)

    def result(self) -> TrainingResult:
        """What has come of it."""
        if self.follower is not None:
            self.follower.close()
        self.network.load_state_dict(self.best_state)
        network = self.network.to(memory_format=torch.contiguous_format).eval()
        at = self.at
        return TrainingResult(network, tuple(at.history), at.best_epoch, at.start_score, at.best_score, tuple(at.notes))

    def _epoch(self) -> None:
        """The rest of the current epoch."""
        at, started = self.at, time.monotonic()
        seconds_before = at.seconds
        if at.step == 0:
            at.learning_rate = self._rate()
        order = self.rng.permutation(self.task.training_samples).astype(np.int64)
        fresh = int(self.rng.integers(2**62))
        self._prepare()
        stored = self.teaching.seed(at.epoch)
        # Those before `step` were done before this process.
        batches = [self.team.share(batch) for batch in np.split(order, self.cuts)[at.step :]]
        self.network.train()
        for batch in self.task.training_batches(batches, self.augmentation, fresh if stored is None else stored):
            self._step(batch)
            at.seconds = seconds_before + time.monotonic() - started
            # How fast the machine is must decide on nothing else: weights that are not finite show up later.
            if time.monotonic() - self.last_saved > CHECKPOINT_INTERVAL_S and self._is_finite():
                self._write_down()
        if not self._is_finite():  # the last step's update may have gone wrong after a finite loss
            raise _DivergedError("the weights are not finite")
        at.score = self._validate()
        at.seconds = seconds_before + time.monotonic() - started
        at.history.append(EpochRecord(at.epoch, float(np.mean(at.losses)), at.score, at.learning_rate, at.seconds))
        # Not worse than the best so far: of equals the last, which has trained the longest.
        if self.task.metric.drop(at.best_score, at.score) <= 0:
            at.best_epoch, at.best_score, self.best_state = at.epoch, at.score, self._weights()
        self._report(epoch_done=True)
        at.epoch, at.step, at.losses, at.seconds = at.epoch + 1, 0, [], 0.0
        self.epoch_rng = self.rng.bit_generator.state
        self._keep()

    def _prepare(self) -> None:
        """Lets the teachers look at the epoch's images, if that has to be done before it."""
        before, seen = time.monotonic(), self.teaching.looks
        self.teaching.prepare(self.at.epoch, lambda share: self._report(looked=share))
        if self.teaching.looks > seen:
            self.look_s = time.monotonic() - before
            self.looking_s += self.look_s

    def _step(self, batch: TrainingBatch) -> None:
        value = self._learn(batch)
        self.at.step += 1
        self.at.losses.append(value)
        self._report()

    def _learn(self, batch: TrainingBatch) -> float:
        """One step of the optimizer; returns the loss before it."""
        value = self._backward(batch)
        if self.table.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.trained.parameters(), self.table.clip_norm)
        self.optimizer.step()
        self.schedule.step()
        if self.average is not None:
            self.average.update_parameters(self.network)
        return value

    def _backward(self, batch: TrainingBatch) -> float:
        """The loss of a batch; its gradients are left in the parameters, summed up over parts of the batch."""
        self.optimizer.zero_grad(set_to_none=True)
        values = []
        whole = round(self.team.total(len(batch.inputs)))
        for part in parts_of(batch, self.table.micro_batch, whole, self.team.size):
            share = len(part.inputs) / whole
            taught = self.teaching.outputs(self.at.epoch, part)
            with autocast(self.dtype):
                loss = self.task.step(self.trained, part, self.objective, taught)["loss"]
            if self.follower is not None:
                loss = loss + self.features_weight * self.follower.loss()
            values.append(self.team.total(share * loss.item()))
            if not np.isfinite(values[-1]):
                raise _DivergedError(f"the loss is {values[-1]}")
            # The mean over the team has to be the sum over all samples' shares.
            (share * self.team.size * loss).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.team.average([p.grad for p in self.trained.parameters() if p.grad is not None])
        return sum(values)

    def _fit_into_budget(self, validation_s: float) -> None:
        """Sets the epochs to those that the budget of time allows, as real steps show, which are then taken back."""
        if self.table.minutes is None:
            return
        budget_s, state = 60.0 * self.table.minutes, self._state()
        order = np.arange(self.task.training_samples, dtype=np.int64)
        batches = [self.team.share(batch) for batch in np.split(order, self.cuts)]
        self.network.train()
        costs = measured_costs(
            self.task.training_batches(batches, self.augmentation, 0),
            lambda batch: self.teaching.computed(batch.inputs),
            self._tried,
            budget_s,
            self.team.leaders,
        )
        self._restore(state)
        look_s = self.steps * costs.teachers_s
        epoch_s = self.steps * (costs.batch_s + costs.student_s) + validation_s
        if self.teaching.stored_views:
            look_s += self.steps * costs.batch_s
        looks = self.teaching.stored_views or self.table.epochs
        left_s = budget_s - validation_s - costs.measuring_s
        fitting = self.team.leaders(fitting_epochs(self.table.epochs, left_s, epoch_s, look_s, looks))
        self.at.epochs = max(1, fitting)
        self._note_budget(fitting, epoch_s + look_s)

    def _tried(self, batch: TrainingBatch) -> None:
        """A step that will be taken back; if it diverges, so will the training, which can say so."""
        with suppress(_DivergedError):
            self._learn(batch)

    def _note_budget(self, fitting: int, epoch_s: float) -> None:
        budget = f"{self.table.minutes:.3g} minutes"
        if fitting == 0:
            self.at.notes.append(f"{budget} do not suffice for an epoch of some {epoch_s:.3g} s; it did one")
        elif fitting < self.table.epochs:
            self.at.notes.append(f"{budget} were measured to suffice for {fitting} of {self.table.epochs} epochs")

    def _build_schedule(self) -> None:
        self.schedule = build_schedule(self.optimizer, self.table, self.at.epochs * self.steps)
        self.rates = list(self.schedule.base_lrs)

    def _is_finite(self) -> bool:
        return all(bool(parameter.isfinite().all()) for parameter in self.network.parameters())

    def _go_back(self, error: _DivergedError) -> None:
        place = f"{error} at epoch {self.at.epoch}, step {self.at.step + 1}, with a learning rate of {self._rate():.3g}"
        halvings, notes = self.at.halvings + 1, [*self.at.notes, f"{place}; it went on with half of it"]
        if halvings > MAX_HALVINGS:
            raise TrainingError(
                f"The training diverged: {place}, though it was halved {MAX_HALVINGS} times.",
                "Lower learning_rate, or set clip_norm = 1.0.",
            ) from error
        self._restore(self.last_good)
        self.started, self.steps_before, self.looking_s = time.monotonic(), self._steps_done(), 0.0
        self.at.halvings, self.at.notes = halvings, notes
        self._set_rate()
        self._keep()

    def _recent_loss(self, whole_epoch: bool) -> float:
        losses = self.at.losses if whole_epoch else self.at.losses[-50:]
        before = [record.loss for record in self.at.history[-1:]]  # while the teachers look, none is new
        return float(np.mean(losses or before or [0.0]))

    def _rate(self) -> float:
        return max(float(group["lr"]) for group in self.optimizer.param_groups)

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
        state = self.team.leaders(None if self.checkpoint is None else self.checkpoint.load())
        if state is None:
            return False
        self.last_good = state["good"]
        self.at = _Position(state["now"]["at"]["epochs"])
        self._build_schedule()
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
                "adapters": None if self.follower is None else self.follower.adapters.state_dict(),
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
        if self.follower is not None:
            self.follower.adapters.load_state_dict(state["adapters"])
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
        return self.team.leaders(self._validated() if self.team.rank == 0 else 0.0)

    def _validated(self) -> float:
        return self.task.score(module_runner(self._shown().eval(), self.task), "validation").value

    def _shown(self) -> nn.Module:
        """The network whose weights count: the average of those on the way, if one is kept."""
        return self.network if self.average is None else self.average.module

    def _weights(self) -> dict[str, torch.Tensor]:
        return copy.deepcopy(self._shown().state_dict())

    def _steps_done(self) -> int:
        return (self.at.epoch - 1) * self.steps + self.at.step

    def _report(self, epoch_done: bool = False, looked: float | None = None) -> None:
        now = time.monotonic()
        if self.on_status is None or (now - self.last_status < STATUS_INTERVAL_S and not epoch_done):
            return
        self.last_status = now
        done = self._steps_done()
        steps_per_s = (done - self.steps_before) / (now - self.started - self.looking_s)
        looks = min(self.teaching.stored_views, self.at.epochs) - self.teaching.looks
        self.on_status(
            TrainingStatus(
                epoch=self.at.epoch,
                epochs=self.at.epochs,
                step=self.at.step,
                steps=self.steps,
                loss=self._recent_loss(epoch_done),
                score=self.at.score,
                learning_rate=self._rate(),
                samples_per_s=steps_per_s * self.table.batch_size,
                remaining_s=(self.at.epochs * self.steps - done) / steps_per_s + max(0, looks) * self.look_s
                if steps_per_s
                else 0.0,
                epoch_done=epoch_done,
                looked=looked,
            )
        )


def _cuts(samples: int, batch_size: int, processes: int) -> Sequence[int]:
    """Where an epoch is cut into batches; a last single sample a process joins the batch before, for batch norm."""
    return range(batch_size, samples - 2 * processes + 1, batch_size)


def parts_of(batch: TrainingBatch, most: int | None, whole: int, processes: int) -> list[TrainingBatch]:
    """A process's share of a batch in parts of nearly one size.

    Args:
        batch: The share.
        most: Samples that a part should have at the most; None for one part.
        whole: Samples of the batch in all processes.
        processes: How many there are; all get as many parts.
    """
    if most is None:
        return [batch]
    largest, smallest = -(-whole // processes), whole // processes
    # Batch norm cannot train on a single sample.
    count = max(1, min(-(-largest // most), smallest // 2))
    tensors = [batch.inputs, batch.targets] + ([] if batch.samples is None else [batch.samples])
    return [
        TrainingBatch(*part) for part in zip(*(torch.tensor_split(tensor, count) for tensor in tensors), strict=True)
    ]


def _blend(decay: float) -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor | int], torch.Tensor]:
    """A step of a moving average; what is not a real number, such as an index or a counter, is the latest one."""

    def blended(average: torch.Tensor, latest: torch.Tensor, _count: torch.Tensor | int) -> torch.Tensor:
        return torch.lerp(average, latest, 1.0 - decay) if average.is_floating_point() else latest

    return blended


def _unsaved_buffers(network: nn.Module) -> dict[str, torch.Tensor]:
    """The buffers that a state dict leaves out."""
    saved = network.state_dict().keys()
    return {name: buffer for name, buffer in network.named_buffers() if name not in saved}
