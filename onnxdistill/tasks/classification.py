"""Image classification, judged by top-1 accuracy."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from scipy.stats import binomtest
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_accuracy

from onnxdistill.data import Outline, load_images, outline
from onnxdistill.data.augment import Augmentation, Views, mixed
from onnxdistill.data.images import Images, Indices, Splits, in_batches
from onnxdistill.data.repeats import seen_test_images
from onnxdistill.errors import DataError, NetworkError
from onnxdistill.graph.losses import decoupled_loss, distillation_loss, relation_loss, standardised
from onnxdistill.recipe import Recipe
from onnxdistill.tasks.base import (
    Metric,
    Objective,
    Runner,
    Score,
    Split,
    StepResult,
    Task,
    TrainingBatch,
)

SCORING_BATCH = 64
IMAGENET_CLASSES = 1000


def build_classification(recipe: Recipe) -> Task:
    """Loads the recipe's data; without a trained teacher, stands in random inputs of the right shape.

    Raises:
        DataError: If the data is missing or unfit.
    """
    if recipe.latency_only:
        expected = outline(recipe.data)
        if recipe.data.mean is not None:
            _check_channels(len(recipe.data.mean), expected.channels)
        return LatencyOnlyClassification(expected, recipe.data.calibration, recipe.seed)
    return Classification(load_images(recipe.data, recipe.seed))


class Classification:
    """See `Task`.

    Args:
        splits: The images; outputs are expected in the order of `splits.classes`.
    """

    metric = Metric("top-1 accuracy", "%")
    input_name = "image"
    output_name = "logits"
    measurable = True

    def __init__(self, splits: Splits) -> None:
        self.splits = splits
        self.class_names: Sequence[str] = splits.classes
        self._mean = torch.tensor(splits.mean).view(-1, 1, 1)
        self._std = torch.tensor(splits.std).view(-1, 1, 1)
        _check_channels(splits.channels, splits.train.fetch(np.zeros(1, dtype=np.int64)).shape[1])

    def example_input(self, batch: int) -> Tensor:
        """See `Task.example_input`."""
        # Spread evenly, since images may lie in the order of their classes.
        count = len(self.splits.train)
        indices = np.arange(batch, dtype=np.int64) * max(1, count // batch) % count
        return self._normalised(self.splits.train.fetch(indices))

    def check_output(self, output: object, batch: int) -> None:
        """See `Task.check_output`: one float32 tensor `[batch, classes]`."""
        _check_logits(output, batch, len(self.class_names))

    @property
    def training_samples(self) -> int:
        """See `Task.training_samples`."""
        return len(self.splits.train)

    def training_batches(
        self, batches: Iterable[Indices], augmentation: Augmentation, seed: int
    ) -> Iterator[TrainingBatch]:
        """See `Task.training_batches`; the targets are labels `[B]`, or probabilities `[B, classes]` where it mixes."""
        train = self.splits.train
        views = Views(len(train), augmentation, seed)
        for chosen in batches:
            samples = torch.from_numpy(chosen)
            inputs, targets = self._normalised(views(train.fetch(chosen), chosen)), train.labels[samples]
            if augmentation.mixes:
                place = (seed, int(chosen[0]))
                inputs, targets = mixed(inputs, targets, len(self.class_names), augmentation, place)
            yield TrainingBatch(inputs, targets, samples)

    def step(
        self, student: nn.Module, batch: TrainingBatch, objective: Objective, taught: Sequence[Tensor] = ()
    ) -> StepResult:
        """Cross-entropy with the labels and, with teachers, the objective's loss of `graph.losses`, their mean.

        For `kd`, the mean over teachers has the gradients of one whose probabilities are the mean of theirs (You et al.
        2017, "Learning from Multiple Teacher Networks", section 3.1).
        """
        logits = student(batch.inputs)
        scores = logits.float()
        loss = objective.hard_weight * F.cross_entropy(scores, batch.targets, label_smoothing=objective.label_smoothing)
        if taught and objective.soft_weight > 0:
            parts = [_soft_loss(scores, target.float(), batch.targets, objective) for target in taught]
            loss = loss + objective.soft_weight * torch.stack(parts).mean()
        return {"loss": loss, "output": logits}

    def calibration_batches(self, batch_size: int) -> Iterator[TrainingBatch]:
        """See `Task.calibration_batches`."""
        for pixels, labels in in_batches(self.splits.calibration, batch_size):
            yield TrainingBatch(self._normalised(pixels), labels)

    def drawn_targets(self, batch: TrainingBatch, output: Tensor, generator: torch.Generator) -> TrainingBatch:
        """See `Task.drawn_targets`: classes, by the probabilities that the logits stand for."""
        drawn = torch.multinomial(output.detach().float().softmax(1), 1, generator=generator)
        return TrainingBatch(batch.inputs, drawn[:, 0], batch.samples)

    def score(
        self,
        runner: Runner,
        split: Split,
        on_progress: Callable[[int, int], None] | None = None,
        most: int | None = None,
    ) -> Score:
        """Top-1 accuracy in percent with its Wilson interval, and for every class."""
        images: Images = getattr(self.splits, split)
        count = len(images) if most is None else min(most, len(images))
        # Spread evenly, since images may lie in the order of their classes.
        order = np.arange(count, dtype=np.int64) * len(images) // count
        labels = images.labels[torch.from_numpy(order)]
        predicted: list[Tensor] = []
        for pixels, _ in in_batches(images, SCORING_BATCH, order):
            logits = runner({self.input_name: self._normalised(pixels).numpy()})[self.output_name]
            predicted.append(torch.from_numpy(np.asarray(logits)).argmax(1))
            if on_progress is not None:
                on_progress(sum(len(part) for part in predicted), count)
        predictions = torch.cat(predicted)
        by_class = multiclass_accuracy(predictions, labels, len(self.class_names), average="none")
        hits = int((predictions == labels).sum())
        low, high = binomtest(hits, count).proportion_ci(method="wilson")
        return Score(
            value=100.0 * hits / count,  # not torchmetrics' float32, which may miss a limit that is just met
            interval=(100.0 * low, 100.0 * high),
            samples=count,
            by_class={name: 100.0 * float(v) for name, v in zip(self.class_names, by_class, strict=True)},
            correct=(predictions == labels).numpy(),
        )

    def metadata(self) -> dict[str, str]:
        """See `Task.metadata`."""
        return {
            "task": "classification",
            "input": f"RGB or grey image, {self.splits.image_size} x {self.splits.image_size}, 0..1, NCHW, "
            "then (value - mean) / std per channel",
            "mean": json.dumps(self.splits.mean),
            "std": json.dumps(self.splits.std),
            "classes": json.dumps(self.class_names),
        }

    def describe_data(self) -> dict[str, dict[str, int | str]]:
        """See `Task.describe_data`."""
        return self.splits.describe()

    def data_notes(self) -> list[str]:
        """See `Task.data_notes`."""
        seen = seen_test_images(self.splits)
        if not seen:
            return []
        return [
            f"data: {seen:,} of the {len(self.splits.test):,} test images are, pixel by pixel, also among those that "
            "are learned, calibrated or decided by; accuracies may be too good for that."
        ]

    def _normalised(self, pixels: Tensor) -> Tensor:
        return (pixels.float() / 255.0 - self._mean) / self._std


def _soft_loss(student: Tensor, teacher: Tensor, labels: Tensor, objective: Objective) -> Tensor:
    """Two logits are never standardised: all that a z-score leaves of them is which one is the larger."""
    if objective.soft_loss == "dist":
        return relation_loss(student, teacher, objective.temperature)
    standardise = objective.standardise and student.shape[-1] > 2
    if objective.soft_loss == "kd":
        return distillation_loss(student, teacher, objective.temperature, standardise)
    if standardise:
        student, teacher = standardised(student), standardised(teacher)
    return decoupled_loss(
        student, teacher, labels, objective.temperature, objective.target_weight, objective.others_weight
    )


class LatencyOnlyClassification:
    """Stands in for data that is not there: random inputs, and no score.

    Args:
        expected: What the images would be; ImageNet's number of classes where it isn't known.
        calibration: Random inputs to calibrate with.
        seed: Seeds the inputs.
    """

    metric = Classification.metric
    input_name = Classification.input_name
    output_name = Classification.output_name
    measurable = False

    def __init__(self, expected: Outline, calibration: int, seed: int) -> None:
        self.class_names: Sequence[str] = tuple(str(index) for index in range(expected.classes or IMAGENET_CLASSES))
        self._shape = (expected.channels, expected.size, expected.size)
        self._classes = expected.classes
        self._calibration = calibration
        self._seed = seed

    def example_input(self, batch: int) -> Tensor:
        """See `Task.example_input`."""
        return torch.randn(batch, *self._shape, generator=torch.Generator().manual_seed(self._seed))

    def check_output(self, output: object, batch: int) -> None:
        """See `Task.check_output`: one float32 tensor `[batch, classes]`; any number where it isn't known."""
        _check_logits(output, batch, self._classes)

    def calibration_batches(self, batch_size: int) -> Iterator[TrainingBatch]:
        """Random inputs, each with a random class."""
        generator = torch.Generator().manual_seed(self._seed)
        for start in range(0, self._calibration, batch_size):
            count = min(batch_size, self._calibration - start)
            inputs = torch.randn(count, *self._shape, generator=generator)
            yield TrainingBatch(inputs, torch.randint(len(self.class_names), (count,), generator=generator))

    def drawn_targets(self, batch: TrainingBatch, output: Tensor, generator: torch.Generator) -> TrainingBatch:
        """The batch as it is: its targets are random."""
        return batch

    @property
    def training_samples(self) -> int:
        """There is nothing to train on."""
        return 0

    def training_batches(
        self, batches: Iterable[Indices], augmentation: Augmentation, seed: int
    ) -> Iterator[TrainingBatch]:
        """There is nothing to train on."""
        return iter(())

    def step(
        self, student: nn.Module, batch: TrainingBatch, objective: Objective, taught: Sequence[Tensor] = ()
    ) -> StepResult:
        """There is nothing to learn.

        Raises:
            DataError: Always; callers ask `measurable` first.
        """
        raise DataError("There are no images to train on.", "Give the teacher weights and data.root.")

    def score(
        self,
        runner: Runner,
        split: Split,
        on_progress: Callable[[int, int], None] | None = None,
        most: int | None = None,
    ) -> Score:
        """There is no score.

        Raises:
            DataError: Always; callers ask `measurable` first.
        """
        raise DataError(
            f"There are no {split} images to measure accuracy on.", "Give the teacher weights and data.root."
        )

    def metadata(self) -> dict[str, str]:
        """See `Task.metadata`."""
        return {"task": "classification", "input": "latency only: random weights", "classes": "[]"}

    def describe_data(self) -> dict[str, dict[str, int | str]]:
        """No split holds anything."""
        return {}

    def data_notes(self) -> list[str]:
        """There is no data."""
        return []


def _check_channels(given: int, images: int) -> None:
    if given != images:
        raise DataError(
            f"data.mean has {given} channels, but the images have {images}.",
            "Give data.mean and data.std one number a channel.",
        )


def _check_logits(output: object, batch: int, classes: int | None) -> None:
    """Refuses anything but a float32 tensor `[batch, classes]`; None stands for any number of classes."""
    wanted = f"float32 logits [{batch}, {'classes' if classes is None else classes}] for {batch} images"
    if not isinstance(output, Tensor):
        raise NetworkError(
            f"The teacher returns a {type(output).__name__}, not one tensor of {wanted}.",
            "Let its forward return the logits alone.",
        )
    fits = output.ndim == 2 and len(output) == batch and output.shape[1] == (classes or output.shape[1])
    if not fits or output.dtype != torch.float32:
        raise NetworkError(
            f"The teacher returns {str(output.dtype).removeprefix('torch.')} {list(output.shape)}, not {wanted}.",
            "The number of its outputs is the number of classes in the data; a function gets it as num_classes, "
            "if it has such a parameter.",
        )
