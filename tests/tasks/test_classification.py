"""Top-1 accuracy by hand, on real images."""

from __future__ import annotations

import dataclasses
from math import log
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from onnxdistill.errors import DataError
from onnxdistill.graph.losses import distillation_loss
from onnxdistill.recipe import Recipe
from onnxdistill.report.assemble import check_drop
from onnxdistill.tasks.base import Augmentation, Feeds, Metric, Objective, Score, TrainingBatch, paired_interval
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
    assert score.value == 100 * 441 / 450
    assert score.by_class["3"] == pytest.approx(100 * (1 - 9 / len(threes)))
    assert score.by_class["5"] == pytest.approx(100)
    assert score.correct is not None
    assert score.correct.sum() == 441
    # Wilson's interval for 441 of 450.
    assert score.interval == pytest.approx((96.24, 98.94), abs=0.01)
    assert seen[-1] == (450, 450)


def test_some_samples_are_spread_evenly(digits: Classification) -> None:
    labels = digits.splits.test.labels[::10].clone()
    labels[36:] = (labels[36:] + 1) % 10
    score = digits.score(answering(labels), "test", most=45)  # type: ignore[arg-type]
    assert (score.value, score.samples) == (80.0, 45)
    assert score.correct is not None
    assert score.correct.tolist() == [True] * 36 + [False] * 9
    everything = digits.score(answering(digits.splits.test.labels), "test", most=100_000)  # type: ignore[arg-type]
    assert (everything.value, everything.samples) == (100.0, 450)


def test_paired_interval_by_hand() -> None:
    def score(bits: list[int]) -> Score:
        return Score(100 * sum(bits) / len(bits), (0, 0), len(bits), {}, np.array(bits, dtype=bool))

    # The teacher alone is right on 3 of 100, the student alone on 1, and half a sample more of each of four kinds:
    # 2/102, +- 1.96 sqrt(5 - 4/102) / 102.
    teacher = score([1] * 90 + [1, 1, 1, 0] + [0] * 6)
    student = score([1] * 90 + [0, 0, 0, 1] + [0] * 6)
    assert paired_interval(teacher, student, 2.0) == pytest.approx((1.961 - 4.280, 1.961 + 4.280), abs=1e-3)


def test_two_samples_without_a_difference_say_next_to_nothing() -> None:
    score = Score(100.0, (34.2, 100.0), 2, {}, np.ones(2, dtype=bool))
    assert paired_interval(score, score, 0.0) == pytest.approx((-49.0, 49.0))
    none = Score(0.0, (0.0, 65.8), 2, {}, np.zeros(2, dtype=bool))
    assert paired_interval(score, none, 100.0) == pytest.approx((50 - 49 * np.sqrt(2), 100.0))


def test_scores_without_bits_have_the_interval_of_the_one_that_is_not_exact() -> None:
    exact, student = Score(100.0, (100.0, 100.0), 9), Score(90.0, (85.0, 92.0), 9)
    assert paired_interval(exact, student, 10.0) == (8.0, 15.0)
    assert paired_interval(student, student, 0.0) is None


def test_a_limit_that_is_just_met_is_met() -> None:
    def score(hits: int) -> Score:
        return Score(100 * hits / 10_000, (0, 0), 10_000)

    metric = Metric("accuracy", "%")
    assert all(check_drop(1.5, metric, score(hits), score(hits - 150)).met for hits in range(150, 10_001))
    assert not any(check_drop(1.5, metric, score(hits), score(hits - 151)).met for hits in range(151, 10_001))


def test_metric_drop_has_the_sign_of_harm() -> None:
    assert Metric("accuracy", "%").drop(90, 88) == 2
    assert Metric("error", "%", higher_is_better=False).drop(10, 12) == 2


def test_training_batches_are_the_images_that_are_asked_for(digits: Classification) -> None:
    middle = len(digits.splits.train) // 2
    batches = list(digits.training_batches([np.array([7, 3]), np.array([middle])], Augmentation(), 0))
    assert [batch.targets.tolist() for batch in batches] == [
        digits.splits.train.labels[[7, 3]].tolist(),
        digits.splits.train.labels[[middle]].tolist(),
    ]
    assert [batch.samples.tolist() for batch in batches if batch.samples is not None] == [[7, 3], [middle]]
    # Examples are spread over the images, which may lie in the order of their classes.
    assert torch.equal(batches[1].inputs, digits.example_input(2)[1:])


def test_a_view_depends_on_the_seed_and_the_image_alone(digits: Classification) -> None:
    augmentation = Augmentation(crop_pad=2, flip=True, rand_augment=9)
    together = next(digits.training_batches([np.array([5, 9, 2])], augmentation, 3)).inputs
    alone = next(digits.training_batches([np.array([9])], augmentation, 3)).inputs
    otherwise = next(digits.training_batches([np.array([9])], augmentation, 4)).inputs
    assert torch.equal(together[1], alone[0])
    assert not torch.equal(alone, otherwise)


@pytest.mark.parametrize("mixing", [{"mixup": 0.5}, {"cutmix": 1.0}, {"mixup": 0.5, "cutmix": 1.0}])
def test_mixed_images_have_mixed_labels(digits: Classification, mixing: dict[str, float]) -> None:
    samples = [np.arange(start, start + 20) for start in (0, 20, 40)]
    batches = list(digits.training_batches(samples, Augmentation(**mixing), 0))
    again = list(digits.training_batches(samples, Augmentation(**mixing), 0))
    shares = set()
    for batch, same in zip(batches, again, strict=True):
        assert torch.equal(batch.inputs, same.inputs)
        assert batch.targets.shape == (20, 10)
        assert torch.allclose(batch.targets.sum(1), torch.ones(20))
        own = batch.targets[torch.arange(20), digits.splits.train.labels[batch.samples]]
        shares.add(round(float(own.min()), 4))
    assert len(shares) > 1  # another share a batch
    assert digits.step(Constant(torch.zeros(20, 10)), batches[0], Objective())["loss"].item() == pytest.approx(log(10))


class Constant(nn.Module):
    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.logits


@pytest.mark.parametrize("classes", [2, 3])
def test_two_logits_are_not_standardised(digits: Classification, classes: int) -> None:
    rng = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(4, classes, generator=rng) for _ in range(2))
    batch = TrainingBatch(torch.zeros(4, 1), torch.zeros(4, dtype=torch.int64))
    objective = Objective(hard_weight=0.0, soft_weight=1.0, temperature=2.0, standardise=True)
    loss = digits.step(Constant(student), batch, objective, [teacher])["loss"]
    assert torch.equal(loss, distillation_loss(student, teacher, 2.0, standardise=classes > 2))


def test_several_teachers_pull_like_the_mean_of_their_probabilities(digits: Classification) -> None:
    rng = torch.Generator().manual_seed(0)
    student, one, other = (torch.randn(4, 3, generator=rng) for _ in range(3))
    student.requires_grad_()
    batch = TrainingBatch(torch.zeros(4, 1), torch.zeros(4, dtype=torch.int64))
    objective = Objective(hard_weight=0.0, soft_weight=1.0)
    digits.step(Constant(student), batch, objective, [one, other])["loss"].backward()
    assert student.grad is not None
    mean = (one.softmax(1) + other.softmax(1)) / 2
    assert torch.allclose(student.grad, (student.softmax(1) - mean) / 4, atol=1e-6)


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


@pytest.mark.parametrize(
    ("data", "shape", "classes"),
    [
        ({"source": "digits"}, (1, 8, 8), 10),
        ({"source": "cifar10", "root": "/nowhere"}, (3, 32, 32), 10),
        ({"source": "folder", "root": "/nowhere"}, (3, 224, 224), 1000),
        ({"source": "folder", "root": "set", "image_size": 48}, (3, 48, 48), 3),
        ({"source": "folder", "root": "empty"}, (3, 224, 224), 1000),
    ],
)
def test_random_inputs_look_like_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: dict[str, object], shape: tuple[int, ...], classes: int
) -> None:
    for name in ("set/train/ant", "set/train/bee", "set/train/cat", "empty/train"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    recipe = Recipe.model_validate({"name": "x", "data": data, "teacher": {"network": "digits-resnet"}})
    task = build_classification(recipe)
    assert tuple(task.example_input(2).shape) == (2, *shape)
    assert len(task.class_names) == classes


def test_normalisation_of_another_number_of_channels(digits: Classification) -> None:
    with pytest.raises(DataError, match=r"data\.mean has 3 channels, but the images have 1"):
        Classification(dataclasses.replace(digits.splits, mean=(0.5,) * 3, std=(0.5,) * 3))
    data = {"source": "cifar10", "root": "/nowhere", "mean": [0.5], "std": [0.5]}
    recipe = Recipe.model_validate({"name": "x", "data": data, "teacher": {"network": "digits-resnet"}})
    with pytest.raises(DataError, match=r"data\.mean has 1 channels, but the images have 3"):
        build_classification(recipe)
