"""What a training is made of while it runs: enough to put it aside, and to go on with the same bits."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
import torch

from onnxdistill.tasks.base import Metric
from onnxdistill.training.checkpoint import State, numpy_random_state, plain_random_state
from onnxdistill.training.hardware import Hardware, copied
from onnxdistill.training.learner import Learner
from onnxdistill.training.records import EpochRecord, TrainingResult


@dataclass
class Position:
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


class TrainingState:
    """A learner, where it stands, its best weights, and what draws the order of the samples.

    Args:
        learner: The network that learns, and what trains it.
        epochs: In all.
        steps: In an epoch.
        seed: Of the order.
        hardware: Where random numbers are drawn.

    Attributes:
        at: Where it stands; another object after `restore`.
        steps: In an epoch.
        learner: As it was given.
        order: Draws the order of the samples, and the seed of their changes, epoch by epoch.
    """

    def __init__(self, learner: Learner, epochs: int, steps: int, seed: int, hardware: Hardware) -> None:
        self._hardware = hardware
        self.learner = learner
        self.steps = steps
        self.at = Position(epochs)
        self.order = np.random.default_rng(seed)
        self._epochs_order = self.order.bit_generator.state
        self._best: State = {}

    @property
    def steps_done(self) -> int:
        """Since the start."""
        return (self.at.epoch - 1) * self.steps + self.at.step

    def start(self, score: float, notes: Sequence[str]) -> None:
        """Before the first step, with the score that the network has then."""
        self.at.start_score = self.at.score = self.at.best_score = score
        self.at.notes += notes
        self._best = self.learner.weights()

    def plan(self, epochs: int) -> None:
        """Sets the number of epochs; the schedule of the learning rate starts again, and ends with the last one."""
        self.at.epochs = epochs
        self.learner.reschedule(epochs * self.steps)

    def end_epoch(self, score: float, metric: Metric) -> None:
        """Writes an epoch's line of the log, and keeps its weights if they are the best so far."""
        at = self.at
        at.score = score
        at.history.append(EpochRecord(at.epoch, float(np.mean(at.losses)), score, at.learning_rate, at.seconds))
        # Not worse than the best so far: of equals the last, which has trained the longest.
        if metric.drop(at.best_score, score) <= 0:
            at.best_epoch, at.best_score, self._best = at.epoch, score, self.learner.weights()

    def next_epoch(self) -> None:
        """Goes to the start of the epoch that follows."""
        at = self.at
        at.epoch, at.step, at.losses, at.seconds = at.epoch + 1, 0, [], 0.0
        self._epochs_order = self.order.bit_generator.state

    def result(self) -> TrainingResult:
        """What has come of it; the learner's network is given away."""
        at, network = self.at, self.learner.finished(self._best)
        useless = ["no epoch came up to the score before it, and those weights are kept; learning_rate may be too high"]
        notes = [*at.notes, *([] if at.best_epoch else useless)]
        return TrainingResult(network, tuple(at.history), at.best_epoch, at.start_score, at.best_score, tuple(notes))

    def saved(self) -> State:
        """A copy of everything. The order is that of the epoch's start, from where it is drawn again."""
        return copied(
            {
                "at": asdict(self.at),
                **self.learner.state(),
                "best": self._best,
                "order": plain_random_state(self._epochs_order),
                "torch": torch.get_rng_state(),
                "device": self._hardware.random_state(),
            }
        )

    def restore(self, state: State) -> None:
        """Goes back, or on, to what `saved` gave; the schedule has to be over the same steps as it was then."""
        state = copy.deepcopy(state)
        records = [EpochRecord(**record) for record in state["at"].pop("history")]
        self.at = Position(**state["at"], history=records)
        self.learner.restore(state)
        self._best = state["best"]
        self._epochs_order = numpy_random_state(state["order"])
        self.order.bit_generator.state = self._epochs_order
        torch.set_rng_state(state["torch"])
        self._hardware.set_random_state(state["device"])
