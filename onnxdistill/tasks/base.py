"""What the stages know of a task: batches to train on, a loss, feeds to calibrate with, and a score."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import sqrt
from typing import Literal, Protocol, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from onnxdistill.data.augment import Augmentation
from onnxdistill.data.images import Indices

Feeds = dict[str, NDArray[np.generic]]
Runner = Callable[[Feeds], Feeds]
"""Maps inputs by name to outputs by name: a torch module or an ONNX Runtime session alike."""

SoftLoss = Literal["kd", "dkd", "dist"]
Split = Literal["train", "calibration", "validation", "test"]


@dataclass(frozen=True)
class Metric:
    """The number that a task is judged by."""

    name: str
    unit: str
    higher_is_better: bool = True

    def drop(self, teacher: float, student: float) -> float:
        """How much worse the student is than the teacher; negative if it is better."""
        return teacher - student if self.higher_is_better else student - teacher


@dataclass(frozen=True)
class Score:
    """A measured value of the task's metric.

    Attributes:
        value: In the metric's unit.
        interval: 95 % confidence interval of `value`, for the number of samples.
        samples: Samples that it was measured on.
        by_class: The same metric for every class, where that makes sense.
        correct: One bit a sample (its prediction was right), to pair two networks on the same samples.
    """

    value: float
    interval: tuple[float, float]
    samples: int
    by_class: dict[str, float] = field(default_factory=dict)
    correct: NDArray[np.bool_] | None = field(default=None, repr=False, compare=False)


def paired_interval(teacher: Score, student: Score, drop: float) -> tuple[float, float] | None:
    """95 % interval of the difference of two scores on the same samples, in points.

    Of a metric that is no share of right samples it is that of the student, if the teacher's score is exact, as that of
    a model which is compared with itself; else there is none.

    Source: Agresti and Min 2005, "Simple improved confidence intervals for comparing matched proportions", section 3:
    only samples on which the two disagree count, so the interval is narrower than that of two independent tests; half
    a sample more of every kind keeps it honest where there are few, or none.
    """
    if teacher.correct is None or student.correct is None:
        if teacher.interval != (teacher.value, teacher.value):
            return None
        low, high = student.interval
        return drop - (high - student.value), drop + (student.value - low)
    lost = int((teacher.correct & ~student.correct).sum())
    won = int((~teacher.correct & student.correct).sum())
    count = teacher.samples + 2
    error = 1.96 * sqrt(lost + won + 1 - (lost - won) ** 2 / count) / count
    middle = (lost - won) / count
    return 100.0 * max(middle - error, -1.0), 100.0 * min(middle + error, 1.0)


@dataclass(frozen=True)
class TrainingBatch:
    """One step's samples.

    Attributes:
        inputs: `[B, ...]`, as the network gets them.
        targets: The task's own.
        samples: Which of the training samples they are, `[B]`; None for calibration samples.
    """

    inputs: Tensor
    targets: Tensor
    samples: Tensor | None = None

    def copied(self) -> TrainingBatch:
        """With inputs of its own: a network may work in place on what it gets."""
        return replace(self, inputs=self.inputs.clone())


@dataclass(frozen=True)
class Objective:
    """The parts of the training loss and their weights; see `graph.losses`.

    Attributes:
        hard_weight: Of the labels.
        label_smoothing: Share of the labels' probability that is spread over all classes.
        soft_weight: Of the teacher's outputs.
        soft_loss: How these are compared.
        temperature: Softens both distributions.
        standardise: Whether to z-score logits first.
        target_weight: With `dkd`, of the right class against the rest.
        others_weight: With `dkd`, of the other classes among themselves.
    """

    hard_weight: float = 1.0
    label_smoothing: float = 0.0
    soft_weight: float = 0.0
    soft_loss: SoftLoss = "kd"
    temperature: float = 1.0
    standardise: bool = False
    target_weight: float = 1.0
    others_weight: float = 8.0


class StepResult(TypedDict):
    """What a task returns for a training step: the scalar loss, and the network's output."""

    loss: Tensor
    output: Tensor


class Scoring(Protocol):
    """What verifying and reporting need to know of data and a metric; of networks and trainings, nothing."""

    metric: Metric
    measurable: bool
    """False if there is neither data nor a trained teacher: only latency can be measured."""

    def score(self, runner: Runner, split: Split, on_progress: Callable[[int, int], None] | None = None) -> Score:
        """Measures the metric of `runner` on a split. `on_progress` gets samples done and in all."""
        ...

    def describe_data(self) -> dict[str, dict[str, int | str]]:
        """Number of samples and fingerprint of every split."""
        ...


class Task(Scoring, Protocol):
    """What is particular to a kind of task. The pipeline and the stages know nothing else of it."""

    input_name: str
    output_name: str
    class_names: Sequence[str]

    def data_notes(self) -> list[str]:
        """What the user shall know of the data, a sentence each."""
        ...

    def example_input(self, batch: int) -> Tensor:
        """Returns an input `[batch, ...]` of the right shape, from real training data where there is some."""
        ...

    def score(
        self,
        runner: Runner,
        split: Split,
        on_progress: Callable[[int, int], None] | None = None,
        most: int | None = None,
    ) -> Score:
        """See `Scoring.score`; of at most so many samples, spread evenly over the split, where `most` says so."""
        ...

    def check_output(self, output: object, batch: int) -> None:
        """Checks what a network returned for `example_input(batch)`.

        Raises:
            NetworkError: If the task cannot use it; the message says what it is and what it should be.
        """
        ...

    @property
    def training_samples(self) -> int:
        """Number of training samples."""
        ...

    def training_batches(
        self, batches: Iterable[Indices], augmentation: Augmentation, seed: int
    ) -> Iterator[TrainingBatch]:
        """Yields the training samples of every array of indices, changed at random.

        The changes of sample `i` depend on `seed` and on `i` alone, unless the augmentation mixes samples.
        """
        ...

    def step(
        self, student: nn.Module, batch: TrainingBatch, objective: Objective, taught: Sequence[Tensor] = ()
    ) -> StepResult:
        """Runs the student on a batch; the loss is differentiable.

        Args:
            student: The network that learns.
            batch: What it gets.
            objective: Weighs the labels against the teachers.
            taught: What every teacher returned for `batch.inputs`; nothing without teachers.
        """
        ...

    def calibration_batches(self, batch_size: int) -> Iterator[TrainingBatch]:
        """Yields the calibration samples, always the same ones in the same order."""
        ...

    def drawn_targets(self, batch: TrainingBatch, output: Tensor, generator: torch.Generator) -> TrainingBatch:
        """The batch with targets drawn at random from what a network says of it, in the place of its own."""
        ...

    def metadata(self) -> dict[str, str]:
        """What a caller of the ONNX file has to know: preprocessing, classes. Goes into the file."""
        ...
