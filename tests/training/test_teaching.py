"""What teachers say: stored answers are those that they would give, and cost no step."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from onnxdistill.data.augment import Augmentation
from onnxdistill.recipe import TrainingTable
from onnxdistill.tasks.base import Objective
from onnxdistill.tasks.classification import Classification
from onnxdistill.training import Guidance, TrainingStatus, train
from onnxdistill.training.hardware import Hardware
from onnxdistill.training.teaching import Teaching

SOFT = Objective(hard_weight=0.0, soft_weight=1.0)
AUGMENTATION = Augmentation(crop_pad=1, flip=True)


class Counted(nn.Module):
    """Counts the images that it looks at."""

    seen = 0

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        Counted.seen += len(x)
        result: Tensor = self.linear(x.flatten(1))
        return result


@pytest.fixture
def counted() -> Counted:
    torch.manual_seed(0)
    Counted.seen = 0
    return Counted()


@pytest.fixture
def few(digits: Classification) -> Classification:
    return Classification(dataclasses.replace(digits.splits, train=digits.splits.train.subset(np.arange(300))))


def table(**changes: object) -> TrainingTable:
    values = {"epochs": 5, "batch_size": 64, "learning_rate": 0.05, "precision": "float32", "crop_pad": 1, "flip": True}
    return TrainingTable.model_validate(values | changes)


def test_stored_answers_are_those_to_the_same_views(few: Classification, counted: Counted) -> None:
    teaching = Teaching([counted, nn.Sequential(nn.Flatten(), nn.Linear(64, 3))], few, AUGMENTATION, 2, 7, Hardware())
    for epoch in (1, 2, 3):
        teaching.prepare(epoch)
        seed = teaching.seed(epoch)
        assert seed is not None
        batch = next(few.training_batches([np.array([250, 3, 299])], AUGMENTATION, seed))
        answers = teaching.outputs(epoch, batch)
        assert [answer.shape for answer in answers] == [(3, 10), (3, 3)]
        assert torch.allclose(answers[0], counted(batch.inputs), atol=1e-6)
    assert teaching.seed(1) == teaching.seed(3) != teaching.seed(2)


def test_views_are_those_of_one_seed_alone(few: Classification, counted: Counted) -> None:
    seeds = [
        {Teaching([counted], few, AUGMENTATION, 8, seed, Hardware()).seed(epoch) for epoch in range(1, 17)}
        for seed in (0, 1)
    ]
    assert [len(one) for one in seeds] == [8, 8]
    assert not seeds[0] & seeds[1]
    # Labels alone are learned from the same images.
    alone = Teaching([], few, AUGMENTATION, 8, 0, Hardware())
    assert {alone.seed(epoch) for epoch in range(1, 17)} == seeds[0]
    alone.prepare(1)
    assert (alone.stored_views, alone.looks) == (0, 0)


def test_teachers_look_at_no_more_images_at_once_than_the_student(few: Classification, counted: Counted) -> None:
    sizes = set()
    counted.register_forward_pre_hook(lambda _, inputs: sizes.add(len(inputs[0])))
    teaching = Teaching([counted], few, AUGMENTATION, 1, 0, Hardware(), 32)
    plain = Teaching([counted], few, AUGMENTATION, 1, 0, Hardware())
    teaching.prepare(1)
    answers = teaching.computed(few.example_input(100))[0]
    assert max(sizes) == 32
    plain.prepare(1)
    assert max(sizes) == 256
    assert torch.allclose(answers, plain.computed(few.example_input(100))[0], atol=1e-5)
    seed = teaching.seed(1)
    assert seed is not None
    batch = next(few.training_batches([np.arange(300)], AUGMENTATION, seed))
    assert torch.allclose(teaching.outputs(1, batch)[0], plain.outputs(1, batch)[0], atol=1e-5)


@pytest.mark.parametrize(
    ("views", "changes", "looks"),
    [(2, {}, 2 * 300), (0, {}, 5 * 300), (0, {"crop_pad": 0, "flip": False}, 300)],
    ids=["stored", "every step", "nothing changes"],
)
def test_teachers_look_at_a_stored_view_once(
    few: Classification,
    counted: Counted,
    monkeypatch: pytest.MonkeyPatch,
    views: int,
    changes: dict[str, object],
    looks: int,
) -> None:
    student = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    monkeypatch.setattr("onnxdistill.training.reporting.STATUS_INTERVAL_S", 0.0)
    seen: list[TrainingStatus] = []
    train(student, few, table(**changes), 0, SOFT, Guidance((counted,), views), seen.append)
    assert sum(status.looked == 1 for status in seen) == (looks // 300 if looks < 5 * 300 else 0)
    assert Counted.seen - looks in (0, 1)  # one to see how large an answer is


def test_answers_that_would_not_fit_are_not_stored(
    few: Classification, counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxdistill.training.teaching.STORED_BYTES", 2 * 300 * 40 - 1)
    student = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    result = train(student, few, table(), 0, SOFT, Guidance((counted,), 2))
    assert result.notes[0].startswith("the teacher's outputs for all views would take 0.0 GB")
    assert Counted.seen == 5 * 300 + 1


def test_with_stored_answers_too_a_training_goes_on_to_the_same_weights(
    few: Classification, counted: Counted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxdistill.training.reporting.STATUS_INTERVAL_S", 0.0)
    torch.manual_seed(1)
    student = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    guidance = Guidance((counted,), 3)
    whole = train(student, few, table(), 0, SOFT, guidance).network

    def stop(status: TrainingStatus) -> None:
        if (status.epoch, status.step) == (3, 2):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(student, few, table(), 0, SOFT, guidance, stop, tmp_path / "state.pt")
    resumed = train(student, few, table(), 0, SOFT, guidance, checkpoint=tmp_path / "state.pt").network
    assert all(torch.equal(one, other) for one, other in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_more_views_than_epochs_are_not_counted(
    few: Classification, counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxdistill.training.teaching.STORED_BYTES", 2 * 300 * 40)
    student = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    assert train(student, few, table(epochs=2), 0, SOFT, Guidance((counted,), 10)).notes == ()


def test_teachers_do_not_drop_out(few: Classification) -> None:
    teacher = nn.Sequential(nn.Flatten(), nn.Dropout(0.9), nn.Linear(64, 10)).train()
    inputs = few.example_input(8)
    answers = [Teaching([teacher], few, AUGMENTATION, 0, 0, Hardware()).computed(inputs)[0] for _ in range(2)]
    assert torch.equal(answers[0], answers[1])
    assert teacher.training
