"""Layers that follow the teacher's: adapters, convergence, and what cannot be compared."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from onnxdistill.errors import RecipeError
from onnxdistill.recipe import FeaturesTable, TrainingTable
from onnxdistill.tasks.base import Objective
from onnxdistill.tasks.classification import Classification
from onnxdistill.training import Guidance, TrainingStatus, train
from onnxdistill.training.features import Follower

SILENT = Objective(hard_weight=0.0)  # only the features speak


def network(width: int, seed: int, stride: int = 2) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, width, 3, stride, 1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(16 * width, 10),
    ).eval()


def features(**changes: object) -> FeaturesTable:
    return FeaturesTable.model_validate({"layers": ["2"], "loss": "hint"} | changes)


def table(**changes: object) -> TrainingTable:
    values = {"epochs": 3, "batch_size": 64, "learning_rate": 0.05, "precision": "float32"}
    return TrainingTable.model_validate(values | changes)


def test_layers_of_small_parts_are_those_of_the_same_samples(digits: Classification) -> None:
    """A part of a batch may be larger than was asked for, and the teacher sees all of it at once."""
    sizes = set()
    teacher = network(8, 0)
    teacher.register_forward_pre_hook(lambda _, inputs: sizes.add(len(inputs[0])))
    few = Classification(dataclasses.replace(digits.splits, train=digits.splits.train.subset(np.arange(10))))
    settings = table(epochs=1, batch_size=5, micro_batch=2)
    guidance = Guidance((teacher,), features=features())
    result = train(network(8, 1), few, settings, 0, Objective(soft_weight=1.0), guidance)
    assert len(result.history) == 1
    assert {2, 3} <= sizes


@pytest.mark.parametrize("loss", ["hint", "attention"])
def test_a_narrower_student_gets_nearer_to_the_teacher(digits: Classification, loss: str) -> None:
    teacher, student = network(8, 0), network(4, 1)
    wanted = features(loss=loss)
    guidance = Guidance((teacher,), features=wanted)
    result = train(student, digits, table(schedule="constant"), 0, SILENT, guidance)
    assert result.history[-1].loss < 0.7 * result.history[0].loss
    assert not result.network[2]._forward_hooks  # type: ignore[index]  # it is a Sequential
    assert result.network.state_dict().keys() == student.state_dict().keys()  # no adapter stays


def test_only_a_narrower_layer_gets_an_adapter(digits: Classification) -> None:
    wanted = features(layers=["0", "5"])
    follower = Follower(network(4, 1), network(8, 0), wanted, digits.example_input(2))
    assert {key: tuple(adapter.weight.shape) for key, adapter in follower.adapters.items()} == {"at 0": (8, 4, 1, 1)}
    same = Follower(network(8, 1), network(8, 0), wanted, digits.example_input(2))
    assert len(same.adapters) == 0


def test_adapters_go_on_too(digits: Classification, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxdistill.training.reporting.STATUS_INTERVAL_S", 0.0)
    student, guidance = network(4, 1), Guidance((network(8, 0),), features=features())

    def stop(status: TrainingStatus) -> None:
        if (status.epoch, status.step) == (2, 5):
            raise KeyboardInterrupt

    whole = train(student, digits, table(), 0, Objective(), guidance).network
    with pytest.raises(KeyboardInterrupt):
        train(student, digits, table(), 0, Objective(), guidance, stop, tmp_path / "state.pt")
    resumed = train(student, digits, table(), 0, Objective(), guidance, checkpoint=tmp_path / "state.pt").network
    assert all(torch.equal(one, other) for one, other in zip(whole.parameters(), resumed.parameters(), strict=True))


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = network(8, 0)
        self.unused = nn.Linear(1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.inner(x)
        return result


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (
            features(layers=["inner.2", "layer9"]),
            "the student has no layer 'layer9'. Its outer layers are inner,",
        ),
        (features(layers=["unused"]), "'unused' of the student is not called in every pass, or returns"),
        (
            features(layers=["inner.5"], loss="attention"),
            r"'inner.5' returns \[2, 10\], and attention maps are",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused(digits: Classification, wanted: FeaturesTable, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Follower(Unused().eval(), Unused().eval(), wanted, digits.example_input(2))


def test_images_of_other_sizes_are_refused(digits: Classification) -> None:
    with pytest.raises(RecipeError, match=r"\[2, 4, 4, 4\] in the student and \[2, 8, 8, 8\] in the teacher"):
        Follower(network(4, 1), network(8, 0, stride=1), features(), digits.example_input(2))


class Sometimes(nn.Module):
    """Runs its second layer in evaluation only."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3)
        self.keys = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        y = x if self.training else self.second(x)
        result: torch.Tensor = self.keys(nn.functional.adaptive_avg_pool2d(y, 4).flatten(1))
        return result


def test_a_layer_that_is_not_always_called_is_refused(digits: Classification) -> None:
    guidance = Guidance((Sometimes().eval(),), features=features(layers=["second"]))
    with pytest.raises(RecipeError, match="'second' of the student is not called in every pass"):
        train(Sometimes().eval(), digits, table(), 0, Objective(), guidance)


def test_a_layer_may_have_the_name_of_a_method(digits: Classification) -> None:
    wide = Sometimes()
    wide.keys = nn.Linear(64, 12)
    follower = Follower(Sometimes().eval(), wide.eval(), features(layers=["keys"]), digits.example_input(2))
    assert len(follower.adapters) == 1


def test_what_is_written_over_is_refused(digits: Classification) -> None:
    student, teacher = network(4, 1), network(8, 0)
    for net in (student, teacher):
        net[2] = nn.ReLU(inplace=True)
    with pytest.raises(RecipeError, match="what follows '1' writes into what it returns"):
        Follower(student, teacher, features(layers=["1"]), digits.example_input(2))


def test_the_weight_of_features_counts(digits: Classification) -> None:
    losses = []
    for weight in (1.0, 3.0):
        guidance = Guidance((network(8, 0),), features=features(weight=weight))
        losses.append(
            train(network(8, 1), digits, table(epochs=1, learning_rate=1e-9), 0, SILENT, guidance).history[0].loss
        )
    assert losses[1] == pytest.approx(3 * losses[0], rel=1e-4)


def test_layers_follow_the_first_teacher_and_other_settings_are_another_training(
    digits: Classification, tmp_path: Path
) -> None:
    first, second = network(8, 0), network(8, 2)
    one, both, other = (
        train(network(8, 1), digits, table(epochs=1), 0, SILENT, Guidance(teachers, features=features()))
        .history[0]
        .loss
        for teachers in ((first,), (first, second), (second,))
    )
    assert one == both != other
    file = tmp_path / "state.pt"
    for guidance in (Guidance((first,)), Guidance((first,), 2), Guidance((first,), features=features())):
        result = train(network(8, 1), digits, table(epochs=1, crop_pad=1), 0, Objective(), guidance, checkpoint=file)
        assert not any("had done it" in note for note in result.notes)
