"""The trainings of a student: what they may take, what they begin with, and what becomes of those that diverge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from onnxdistill.device.places import Here
from onnxdistill.device.session import SessionSettings
from onnxdistill.finetuning import Finetuning
from onnxdistill.gate import Gate
from onnxdistill.journal import Journal
from onnxdistill.networks import build_network
from onnxdistill.progress import SilentProgress
from onnxdistill.recipe import Recipe
from onnxdistill.record import Record
from onnxdistill.tasks.classification import Classification
from tests.training.small import small_network


class Trainings:
    """Fine-tuning of digits as a recipe says, with what it notes."""

    def __init__(self, task: Classification, folder: Path, journal: Journal, **distill: Any) -> None:
        recipe = Recipe.model_validate(
            {
                "name": "x",
                "data": {"source": "digits"},
                "teacher": {"network": "digits-resnet"},
                "quantize": {},
                "plan": {"speedup": 2.0, "epochs": 1},
                "distill": {"epochs": 2, "batch_size": 64, "learning_rate": 0.05, "soft_weight": 0.0} | distill,
            }
        )
        gate = Gate(recipe, Here(), task, folder, journal)
        self.record = Record(recipe, task, SessionSettings(), Here(), gate, folder, SilentProgress())
        self.table = recipe.distill
        self.teacher = build_network("digits-resnet", 10, 1)
        self.finetuning = Finetuning(recipe, task, [self.teacher], self.record, journal)


def test_short_trainings_see_other_images_and_are_logged(digits: Classification, tmp_path: Path) -> None:
    network = small_network()
    with Journal(tmp_path / "run") as journal:
        trainings = Trainings(digits, tmp_path, journal)
        first, second = (trainings.finetuning.after_cut(network, cut) for cut in (1, 2))
    assert not torch.equal(*(next(iter(trained.parameters())) for trained in (first, second)))
    assert [(log.stage, len(log.epochs)) for log in trainings.record.trainings] == [
        ("plan, cut 1", 1),
        ("plan, cut 2", 1),
    ]
    assert trainings.record.notes == []


@pytest.mark.parametrize(("device", "precision"), [("cpu", "bfloat16"), ("cuda", "auto")])
def test_int8_is_trained_on_the_processor(digits: Classification, tmp_path: Path, device: str, precision: str) -> None:
    """In a type that it is fast in, whatever the GPU has."""
    with Journal(tmp_path / "run") as journal:
        trainings = Trainings(digits, tmp_path, journal, device=device, precision="bfloat16", layer_decay=0.5)
        table = trainings.finetuning._int8_table()
    assert (table.device, table.precision, table.optimizer, table.layer_decay) == ("cpu", precision, "adamw", 1.0)


def test_short_trainings_count_for_the_budget(digits: Classification, tmp_path: Path) -> None:
    """A budget that the first one uses up: the second is left out, and the long one does an epoch."""
    network = build_network("digits-resnet", 10, 0)  # small ones do two epochs in the shortest time
    with Journal(tmp_path / "run") as journal:
        trainings = Trainings(digits, tmp_path, journal, minutes=1e-5)
        assert trainings.table is not None
        tuned = trainings.finetuning.after_cut(network, 1)
        assert tuned is not network
        assert trainings.finetuning.after_cut(tuned, 2) is tuned
        result = trainings.finetuning.whole(tuned, trainings.table)
    assert len(result.history) == 1
    notes = trainings.record.notes
    assert "plan, cut 2: no time was left to train." in notes
    assert any(note.endswith("of 1e-05 minutes went into trainings between cuts.") for note in notes)


def test_a_long_training_alone_has_all_of_the_budget(digits: Classification, tmp_path: Path) -> None:
    with Journal(tmp_path / "run") as journal:
        trainings = Trainings(digits, tmp_path, journal, minutes=1e-5)
        assert trainings.table is not None
        trainings.finetuning.whole(small_network(), trainings.table)
    assert ["1e-05 minutes do not suffice" in note for note in trainings.record.notes] == [True]


def test_a_short_training_that_diverges_leaves_what_was_cut(digits: Classification, tmp_path: Path) -> None:
    network = small_network()
    nn.init.constant_(network.get_parameter("5.weight"), torch.inf)
    with Journal(tmp_path / "run") as journal:
        trainings = Trainings(digits, tmp_path, journal)
        assert trainings.finetuning.after_cut(network, 1) is network
        assert len(trainings.record.notes) == 1
        assert trainings.record.notes[0].startswith("plan, cut 1: ")


def test_a_short_training_that_diverges_counts_for_the_time(digits: Classification, tmp_path: Path) -> None:
    """After an interruption it counts as much, however long it takes then."""
    network = small_network()
    nn.init.constant_(network.get_parameter("5.weight"), torch.inf)
    spent: list[str] = []
    with Journal(tmp_path / "run") as journal:
        for _ in range(2):
            trainings = Trainings(digits, tmp_path, journal, minutes=30.0)
            assert trainings.table is not None
            trainings.finetuning.after_cut(network, 1)
            trainings.finetuning.whole(small_network(), trainings.table)
            spent += [note for note in trainings.record.notes if "went into trainings between cuts" in note]
    assert len(spent) == 2
    assert spent[0] == spent[1]


@pytest.mark.parametrize("minutes", [None, 30.0])
def test_what_was_trained_is_not_trained_again(digits: Classification, tmp_path: Path, minutes: float | None) -> None:
    """A run that is ended in the long training goes on with it, although it knows the time that was left no more."""
    network = small_network()

    def states() -> list[dict[str, torch.Tensor]]:
        trainings = Trainings(digits, tmp_path, journal, minutes=minutes)
        assert trainings.table is not None
        tuned = trainings.finetuning.after_cut(network, 1)
        whole = trainings.finetuning.whole(tuned, trainings.table)
        notes.append([note for note in trainings.record.notes if "had done it" in note])
        return [tuned.state_dict(), whole.network.state_dict()]

    notes: list[list[str]] = []
    with Journal(tmp_path / "run") as journal:
        first, second = states(), states()
    for before, after in zip(first, second, strict=True):
        assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert notes[0] == []
    assert [note.split(":")[0] for note in notes[1]] == ["plan, cut 1", "distill"]
