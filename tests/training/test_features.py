"""Layers that follow the teacher's: adapters, convergence, and what cannot be compared."""

from __future__ import annotations

from pathlib import Path

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


@pytest.mark.parametrize("loss", ["hint", "attention"])
def test_a_narrower_student_gets_nearer_to_the_teacher(digits: Classification, loss: str) -> None:
    teacher, student = network(8, 0), network(4, 1)
    wanted = features(loss=loss)
    guidance = Guidance((teacher,), features=wanted)
    result = train(student, digits, table(schedule="constant"), 0, SILENT, guidance)
    assert result.history[-1].loss < 0.7 * result.history[0].loss
    assert not student._forward_hooks
    assert not teacher[2]._forward_hooks
    assert not result.network[2]._forward_hooks  # type: ignore[index]  # it is a Sequential
    assert result.network.state_dict().keys() == student.state_dict().keys()  # no adapter stays


def test_only_a_narrower_layer_gets_an_adapter(digits: Classification) -> None:
    wanted = features(layers=["0", "5"])
    follower = Follower(network(4, 1), network(8, 0), wanted, digits.example_input(2))
    assert {key: tuple(adapter.weight.shape) for key, adapter in follower.adapters.items()} == {"0": (8, 4, 1, 1)}
    same = Follower(network(8, 1), network(8, 0), wanted, digits.example_input(2))
    assert len(same.adapters) == 0


def test_adapters_go_on_too(digits: Classification, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxdistill.training.loop.STATUS_INTERVAL_S", 0.0)
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
        (features(layers=["unused"]), "'unused' of the student is never called, or returns no tensor"),
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
