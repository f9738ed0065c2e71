"""Top-1 accuracy by hand, on real images."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from onnxdistill.errors import DataError
from onnxdistill.recipe import Recipe
from onnxdistill.report.assemble import paired_interval
from onnxdistill.tasks.base import Augmentation, Feeds, Metric, Score
from onnxdistill.tasks.classification import Classification, build_classification


def answering(labels: torch.Tensor) -> object:
    """A runner that gives these answers in order."""
    position = 0

    def run(feeds: Feeds) -> Feeds:
        nonlocal position
        count = len(feeds["image"])
        chosen = labels[position : position + count]
        position += count
        return {"logits": np.eye(10, dtype=np.float32)[chosen.numpy()]}

    return run


def test_accuracy_by_hand(digits: Classification) -> None:
    labels = digits.splits.test.labels.clone()
    threes = torch.nonzero(labels == 3).flatten()
    labels[threes[:9]] = 5
    seen: list[tuple[int, int]] = []
    score = digits.score(answering(labels), "test", lambda done, total: seen.append((done, total)))  # type: ignore[arg-type]
    assert score.value == pytest.approx(100 * 441 / 450)
    assert score.by_class["3"] == pytest.approx(100 * (1 - 9 / len(threes)))
    assert score.by_class["5"] == pytest.approx(100)
    assert score.correct is not None
    assert score.correct.sum() == 441
    # Wilson's interval for 441 of 450.
    assert score.interval == pytest.approx((96.24, 98.94), abs=0.01)
    assert seen[-1] == (450, 450)


def test_paired_interval_by_hand() -> None:
    def score(bits: list[int]) -> Score:
        return Score(100 * sum(bits) / len(bits), (0, 0), len(bits), {}, np.array(bits, dtype=bool))

    # The teacher alone is right on 3 of 100, the student alone on 1: 2 points, +- 1.96 sqrt(4 - 4/100).
    teacher = score([1] * 90 + [1, 1, 1, 0] + [0] * 6)
    student = score([1] * 90 + [0, 0, 0, 1] + [0] * 6)
    assert paired_interval(teacher, student, 2.0) == pytest.approx((2 - 3.900, 2 + 3.900), abs=1e-3)


def test_metric_drop_has_the_sign_of_harm() -> None:
    assert Metric("accuracy", "%").drop(90, 88) == 2
    assert Metric("error", "%", higher_is_better=False).drop(10, 12) == 2


def test_training_batches_cover_every_image_once(digits: Classification) -> None:
    batches = list(digits.training_batches(100, Augmentation(), np.random.default_rng(0)))
    assert len(batches) == digits.steps_per_epoch(100)
    assert sum(len(b.targets) for b in batches) == len(digits.splits.train)
    assert sorted(torch.cat([b.targets for b in batches]).tolist()) == sorted(digits.splits.train.labels.tolist())


def test_inputs_are_normalised(digits: Classification) -> None:
    inputs = digits.example_input(500)
    assert inputs.shape == (500, 1, 8, 8)
    assert abs(inputs.mean().item()) < 0.05
    assert abs(inputs.std().item() - 1) < 0.05


def test_metadata_lets_a_caller_rebuild_the_preprocessing(digits: Classification) -> None:
    metadata = digits.metadata()
    assert metadata["mean"] == "[0.305]"
    assert '"9"' in metadata["classes"]


def test_without_weights_there_is_only_latency() -> None:
    recipe = Recipe.model_validate(
        {
            "name": "x",
            "data": {"source": "folder", "root": "/nowhere", "image_size": 32, "calibration": 5},
            "teacher": {"network": "torchvision:resnet18"},
        }
    )
    task = build_classification(recipe)
    assert not task.measurable
    assert task.example_input(2).shape == (2, 3, 32, 32)
    assert [len(b.inputs) for b in task.calibration_batches(3)] == [3, 2]
    assert task.describe_data() == {}
    with pytest.raises(DataError, match="no test images"):
        task.score(lambda feeds: feeds, "test")
