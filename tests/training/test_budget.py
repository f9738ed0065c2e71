"""A budget of time: what is measured, how many epochs fit, and what does not change."""

from __future__ import annotations

import dataclasses
from time import sleep
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from onnxdistill.tasks.base import Objective, Score
from onnxdistill.tasks.classification import Classification
from onnxdistill.training import Guidance, TrainingStatus, train
from onnxdistill.training.budget import fitting_epochs
from tests.training.small import small_network, table


@pytest.fixture
def few(digits: Classification) -> Classification:
    """With 128 training images, four batches of 32."""
    return Classification(dataclasses.replace(digits.splits, train=digits.splits.train.subset(np.arange(128))))


def test_a_budget_measures_parts_of_batches_and_changes_nothing_else(digits: Classification) -> None:
    sizes = set()

    class Sized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(64, 10)

        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                sizes.add(len(x))
            result: Tensor = self.linear(x.flatten(1))
            return result

    torch.manual_seed(0)
    network, settings = Sized().eval(), {"batch_size": 100, "micro_batch": 10, "optimizer": "adamw", "average": 0.9}
    budget = train(network, digits, table(minutes=1000.0, **settings), 0, Objective()).network
    assert max(sizes) <= 10
    plain = train(network, digits, table(**settings), 0, Objective()).network
    assert all(torch.equal(a, b) for a, b in zip(budget.parameters(), plain.parameters(), strict=True))


def test_a_budget_that_does_not_suffice_for_an_epoch_says_so(digits: Classification) -> None:
    result = train(small_network(), digits, table(epochs=1, minutes=1e-6), 0, Objective())
    assert len(result.history) == 1
    assert result.notes[0].startswith("1e-06 minutes do not suffice for an epoch of some ")


class Slow(nn.Module):
    """Takes a fixed time for a batch, forwards."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 10)
        self.seconds = seconds

    def forward(self, x: Tensor) -> Tensor:
        sleep(self.seconds)
        result: Tensor = self.linear(x.flatten(1))
        return result


@pytest.mark.parametrize(
    ("budget_s", "looks", "epochs"),
    # 10 s an epoch, and 5 s for the teacher to look: 15, 30, 45, ... if it looks every time, 15, 25, 35, ... if once.
    [(14.9, 9, 0), (29.9, 9, 1), (30, 9, 2), (59, 9, 3), (34.9, 1, 2), (35, 1, 3), (1000, 9, 7)],
)
def test_epochs_that_fit_by_hand(budget_s: float, looks: int, epochs: int) -> None:
    assert fitting_epochs(7, budget_s, 10.0, 5.0, looks) == epochs


@pytest.mark.parametrize("views", [0, 1])
def test_a_budget_of_time_is_measured_and_the_schedule_ends(few: Classification, views: int) -> None:
    settings = table(epochs=50, batch_size=32, learning_rate=0.01, minutes=2.5 / 60, crop_pad=1)
    seen: list[TrainingStatus] = []
    guidance = Guidance((Slow(0.1),), views)
    # An epoch is 4 steps and 4 batches of validation, 0.16 s at least, and with the teacher 0.56 s.
    result = train(Slow(0.02).eval(), few, settings, 0, Objective(soft_weight=1.0), guidance, seen.append)
    assert len(result.history) <= (15 if views else 4)
    assert seen[-1].learning_rate == pytest.approx(0.0, abs=1e-9)
    assert result.notes[0].startswith("0.0417 minutes were measured to suffice for ")


def test_a_budget_that_suffices_changes_nothing(digits: Classification) -> None:
    budget = train(small_network(), digits, table(minutes=1000.0), 0, Objective())
    plain = train(small_network(), digits, table(), 0, Objective())
    assert budget.notes == ()
    assert all(torch.equal(a, b) for a, b in zip(budget.network.parameters(), plain.network.parameters(), strict=True))


class Clock:
    """Time that passes only while a student learns, or is validated."""

    STEP_S, VALIDATION_S = 1.0, 10.0

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def student(self) -> nn.Module:
        clock = self

        class Timed(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.linear = nn.Linear(64, 10)

            def forward(self, x: Tensor) -> Tensor:
                clock.now += clock.STEP_S * self.training
                result: Tensor = self.linear(x.flatten(1))
                return result

        return Timed().eval()

    def task(self, images: Classification) -> Classification:
        clock = self

        class Timed(Classification):
            def score(self, *arguments: Any, **named: Any) -> Score:
                clock.now += clock.VALIDATION_S
                return super().score(*arguments, **named)

        return Timed(images.splits)


def test_a_budget_counts_every_validation_and_what_measuring_takes(
    few: Classification, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr("time.monotonic", clock)
    monkeypatch.setattr("time.perf_counter", clock)
    result = train(clock.student(), clock.task(few), table(epochs=50, batch_size=32, minutes=124 / 60), 0, Objective())
    # The first validation and the four steps that are measured leave 110 of 124 s. An epoch of four steps takes 14,
    # validation included: 7 fit. It would be 8 if the first validation were forgotten, or the measuring; and 27 if
    # those after the epochs were.
    assert len(result.history) == 7
    assert [record.seconds for record in result.history] == [14.0] * 7
    assert clock.now == 112.0
    assert result.notes == ("2.07 minutes were measured to suffice for 7 of 50 epochs",)
