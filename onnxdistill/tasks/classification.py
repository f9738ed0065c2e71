"""Image classification, judged by top-1 accuracy."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from math import ceil

import numpy as np
import torch
from scipy.stats import binomtest
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_accuracy

from onnxdistill.data import load_images
from onnxdistill.data.augment import random_crop, random_flip
from onnxdistill.data.images import IMAGENET_MEAN, Images, Splits, in_batches
from onnxdistill.errors import DataError
from onnxdistill.graph.losses import distillation_loss
from onnxdistill.recipe import Recipe
from onnxdistill.tasks.base import (
    Augmentation,
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
        size = recipe.data.image_size or 224
        mean = recipe.data.mean or IMAGENET_MEAN
        return LatencyOnlyClassification(len(mean), size, recipe.data.calibration, recipe.seed)
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
        if splits.train.fetch(np.zeros(1, dtype=np.int64)).shape[1] != splits.channels:
            raise DataError(
                f"data.mean has {splits.channels} channels, but the images have another number.",
                "Give data.mean and data.std one number a channel.",
            )

    def example_input(self, batch: int) -> Tensor:
        """See `Task.example_input`."""
        indices = np.arange(batch, dtype=np.int64) % len(self.splits.train)
        return self._normalised(self.splits.train.fetch(indices))

    def steps_per_epoch(self, batch_size: int) -> int:
        """See `Task.steps_per_epoch`."""
        return ceil(len(self.splits.train) / batch_size)

    def training_batches(
        self, batch_size: int, augmentation: Augmentation, rng: np.random.Generator
    ) -> Iterator[TrainingBatch]:
        """See `Task.training_batches`."""
        order = rng.permutation(len(self.splits.train)).astype(np.int64)
        for pixels, labels in in_batches(self.splits.train, batch_size, order):
            changed = random_crop(pixels, augmentation.crop_pad, rng)
            if augmentation.flip:
                changed = random_flip(changed, rng)
            yield TrainingBatch(self._normalised(changed), labels)

    def step(
        self, student: nn.Module, teacher: nn.Module | None, batch: TrainingBatch, objective: Objective
    ) -> StepResult:
        """Cross-entropy with the labels and, with a teacher, `graph.losses.distillation_loss`."""
        logits = student(batch.inputs)
        loss = objective.hard_weight * F.cross_entropy(logits.float(), batch.targets)
        if teacher is not None and objective.soft_weight > 0:
            with torch.no_grad():
                target = teacher(batch.inputs)
            loss = loss + objective.soft_weight * distillation_loss(
                logits.float(), target.float(), objective.temperature, objective.standardise
            )
        return {"loss": loss, "output": logits}

    def calibration_batches(self, batch_size: int) -> Iterator[TrainingBatch]:
        """See `Task.calibration_batches`."""
        for pixels, labels in in_batches(self.splits.calibration, batch_size):
            yield TrainingBatch(self._normalised(pixels), labels)

    def score(self, runner: Runner, split: Split, on_progress: Callable[[int, int], None] | None = None) -> Score:
        """Top-1 accuracy in percent with its Wilson interval, and for every class."""
        images: Images = getattr(self.splits, split)
        predicted: list[Tensor] = []
        for pixels, _ in in_batches(images, SCORING_BATCH):
            logits = runner({self.input_name: self._normalised(pixels).numpy()})[self.output_name]
            predicted.append(torch.from_numpy(np.asarray(logits)).argmax(1))
            if on_progress is not None:
                on_progress(sum(len(part) for part in predicted), len(images))
        predictions = torch.cat(predicted)
        count = len(self.class_names)
        overall = multiclass_accuracy(predictions, images.labels, count, average="micro")
        by_class = multiclass_accuracy(predictions, images.labels, count, average="none")
        hits = int((predictions == images.labels).sum())
        low, high = binomtest(hits, len(images)).proportion_ci(method="wilson")
        return Score(
            value=100.0 * float(overall),
            interval=(100.0 * low, 100.0 * high),
            samples=len(images),
            by_class={name: 100.0 * float(v) for name, v in zip(self.class_names, by_class, strict=True)},
            correct=(predictions == images.labels).numpy(),
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

    def _normalised(self, pixels: Tensor) -> Tensor:
        return (pixels.float() / 255.0 - self._mean) / self._std


class LatencyOnlyClassification:
    """Stands in for data that is not there: random inputs, and no score.

    Args:
        channels: Channels of the input.
        size: Height and width of the input, in pixels.
        calibration: Random inputs to calibrate with.
        seed: Seeds the inputs.
    """

    metric = Classification.metric
    input_name = Classification.input_name
    output_name = Classification.output_name
    measurable = False
    class_names: Sequence[str] = tuple(str(index) for index in range(IMAGENET_CLASSES))

    def __init__(self, channels: int, size: int, calibration: int, seed: int) -> None:
        self._shape = (channels, size, size)
        self._calibration = calibration
        self._seed = seed

    def example_input(self, batch: int) -> Tensor:
        """See `Task.example_input`."""
        return torch.randn(batch, *self._shape, generator=torch.Generator().manual_seed(self._seed))

    def calibration_batches(self, batch_size: int) -> Iterator[TrainingBatch]:
        """Random inputs, each with a random class."""
        generator = torch.Generator().manual_seed(self._seed)
        for start in range(0, self._calibration, batch_size):
            count = min(batch_size, self._calibration - start)
            inputs = torch.randn(count, *self._shape, generator=generator)
            yield TrainingBatch(inputs, torch.randint(len(self.class_names), (count,), generator=generator))

    def steps_per_epoch(self, batch_size: int) -> int:
        """There is nothing to train on."""
        return 0

    def training_batches(
        self, batch_size: int, augmentation: Augmentation, rng: np.random.Generator
    ) -> Iterator[TrainingBatch]:
        """There is nothing to train on."""
        return iter(())

    def step(
        self, student: nn.Module, teacher: nn.Module | None, batch: TrainingBatch, objective: Objective
    ) -> StepResult:
        """There is nothing to learn.

        Raises:
            DataError: Always; callers ask `measurable` first.
        """
        raise DataError("There are no images to train on.", "Give the teacher weights and data.root.")

    def score(self, runner: Runner, split: Split, on_progress: Callable[[int, int], None] | None = None) -> Score:
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
