"""The training loop: it learns, repeats itself exactly, and keeps the best weights."""

from __future__ import annotations

import dataclasses
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from onnxdistill.tasks.base import Objective, SoftLoss, TrainingBatch
from onnxdistill.tasks.classification import Classification
from onnxdistill.training import Guidance, TrainingStatus, module_runner, train
from tests import tiny
from tests.training.small import Counting, small_network, table


@pytest.mark.parametrize(("optimizer", "rate"), [("sgd", 0.1), ("adam", 0.01), ("adamw", 0.01)])
def test_every_optimizer_learns_the_digits(digits: Classification, optimizer: str, rate: float) -> None:
    settings = table(optimizer=optimizer, learning_rate=rate, epochs=4)
    result = train(small_network(), digits, settings, 0, Objective())
    assert result.start_score < 25
    assert result.best_score > 85


def test_bfloat16_learns_too(digits: Classification) -> None:
    result = train(small_network(), digits, table(precision="bfloat16"), 0, Objective())
    assert result.best_score > 85
    assert next(result.network.parameters()).dtype == torch.float32


def test_same_seed_same_weights_and_the_given_network_is_untouched(digits: Classification) -> None:
    network = small_network()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state = torch.random.get_rng_state()
    one = train(network, digits, table(), 3, Objective())
    assert torch.equal(torch.random.get_rng_state(), state)
    two = train(network, digits, table(), 3, Objective())
    other = train(network, digits, table(), 4, Objective())
    assert all(torch.equal(a, b) for a, b in zip(one.network.parameters(), two.network.parameters(), strict=True))
    assert not torch.equal(next(one.network.parameters()), next(other.network.parameters()))
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert not network.training


def test_never_worse_than_the_start(digits: Classification) -> None:
    trained = train(small_network(), digits, table(epochs=3), 0, Objective()).network
    ruined = train(trained, digits, table(epochs=1, learning_rate=50.0, schedule="constant"), 0, Objective())
    assert ruined.best_epoch == 0
    assert ruined.best_score == ruined.start_score
    assert ruined.history[0].score < ruined.start_score
    assert digits.score(module_runner(ruined.network, digits), "validation").value == ruined.start_score


def test_distillation_brings_the_student_near_the_teacher(digits: Classification) -> None:
    teacher = train(small_network(), digits, table(epochs=3), 0, Objective()).network
    objective = Objective(hard_weight=0.0, soft_weight=9.0, temperature=2.0, standardise=True)
    student = train(small_network(1), digits, table(epochs=10), 0, objective, Guidance((teacher,))).network
    answers = [
        torch.from_numpy(module_runner(n, digits)({"image": digits.example_input(256).numpy()})["logits"]).argmax(1)
        for n in (teacher, student)
    ]
    assert (answers[0] == answers[1]).float().mean() > 0.9  # no label was shown to the student


def test_an_average_leaves_whole_numbers_alone(digits: Classification) -> None:
    result = train(Counting().eval(), digits, table(average=0.9), 0, Objective())
    assert torch.equal(result.network.get_buffer("index"), torch.arange(200))


def test_an_average_leaves_infinities_alone(digits: Classification) -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(64, 10)
            self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.linear(x.flatten(1))
            return logits + self.get_buffer("mask").exp().sum() - 1

    torch.manual_seed(0)
    result = train(Masked().eval(), digits, table(average=0.5), 0, Objective())
    assert result.best_epoch > 0
    assert torch.equal(result.network.get_buffer("mask"), torch.tensor([0.0, -torch.inf]))


def test_status_counts_to_the_end(digits: Classification, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxdistill.training.reporting.STATUS_INTERVAL_S", 0.0)
    seen: list[TrainingStatus] = []
    train(small_network(), digits, table(), 0, Objective(), on_status=seen.append)
    assert (seen[-1].epoch, seen[-1].epochs, seen[-1].step) == (2, 2, seen[-1].steps)
    assert seen[-1].remaining_s == 0
    assert all(status.samples_per_s > 0 for status in seen)


def test_the_average_by_hand(digits: Classification) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    task = Classification(dataclasses.replace(digits.splits, train=digits.splits.train.subset(np.arange(192))))
    settings = {"schedule": "constant", "warmup": 0.0, "epochs": 1, "learning_rate": 0.01}
    seen: list[Tensor] = []

    class Watched(Classification):
        def step(self, student: nn.Module, *others: Any) -> Any:
            seen.append(next(student.parameters()).detach().clone())
            return super().step(student, *others)

    plain = train(network, Watched(task.splits), table(**settings), 0, Objective()).network
    weights = [*seen[1:], next(plain.parameters())]  # after each of the three steps
    averaged = train(network, task, table(**settings, average=0.75), 0, Objective()).network
    # The first step's weights start the average, which decays by 2/11, and then by 3/12, as long as that is less.
    expected = 3 / 12 * (2 / 11 * weights[0] + 9 / 11 * weights[1]) + 9 / 12 * weights[2]
    assert torch.allclose(next(averaged.parameters()), expected, atol=1e-6)
    faster = train(network, task, table(**settings, average=0.2), 0, Objective()).network
    expected = 0.2 * (2 / 11 * weights[0] + 9 / 11 * weights[1]) + 0.8 * weights[2]
    assert torch.allclose(next(faster.parameters()), expected, atol=1e-6)


def test_a_network_that_is_frozen_as_a_whole_is_trained(digits: Classification) -> None:
    result = train(small_network().requires_grad_(False), digits, table(), 0, Objective())
    assert result.best_score > 85
    assert result.notes == ()


def test_what_is_frozen_in_a_network_stays_as_it_is(digits: Classification) -> None:
    network = small_network()
    network.get_parameter("0.weight").requires_grad_(False)
    result = train(network, digits, table(), 0, Objective())
    assert result.notes == ("72 of its 1,386 parameters were frozen in the network, and stayed as they were",)
    assert torch.equal(result.network.get_parameter("0.weight"), network.get_parameter("0.weight"))
    assert result.best_score > 80


def test_statistics_of_frozen_normalisation_stay_as_they_are(digits: Classification) -> None:
    network = small_network()
    network.get_submodule("1").requires_grad_(False)
    for average in (0.0, 0.9):
        result = train(network, digits, table(average=average), 0, Objective()).network
        assert torch.equal(result.get_buffer("1.running_mean"), network.get_buffer("1.running_mean"))
    network.get_parameter("1.weight").requires_grad_(True)
    result = train(network, digits, table(), 0, Objective()).network
    assert not torch.equal(result.get_buffer("1.running_mean"), network.get_buffer("1.running_mean"))


def test_tensors_of_five_dimensions_are_trained(digits: Classification) -> None:
    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution = nn.Conv3d(1, 4, (1, 3, 3))
            self.linear = nn.Linear(144, 10)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.linear(self.convolution(x[:, :, None]).relu().flatten(1))
            return result

    torch.manual_seed(0)
    teacher = Deep().eval()
    result = train(Deep().eval(), digits, table(), 0, Objective(soft_weight=0.1), Guidance((teacher,)))
    assert result.best_score > 80


def test_versions_of_modules_are_kept(digits: Classification, tmp_path: Path) -> None:
    """Some refuse weights that say nothing of theirs, or bring them from an old form into that of today."""

    class _EndedError(Exception):
        pass

    def stop(status: TrainingStatus) -> None:
        if status.epoch == 2:
            raise _EndedError

    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), tiny.Versioned(64, 10)).eval()
    for average in (0.0, 0.9):
        file = tmp_path / f"{average}.pt"
        with pytest.raises(_EndedError):
            train(network, digits, table(average=average), 0, Objective(), None, stop, file)
        result = train(network, digits, table(average=average), 0, Objective(), checkpoint=file)
        assert result.notes[0].startswith("it went on at epoch 2")
        resumed = result.network
        whole = train(network, digits, table(average=average), 0, Objective()).network
        assert all(torch.equal(a, b) for a, b in zip(resumed.parameters(), whole.parameters(), strict=True))


def test_a_training_that_helps_nothing_says_so(digits: Classification) -> None:
    trained = train(small_network(), digits, table(epochs=3), 0, Objective()).network
    worse = table(epochs=1, optimizer="adam", learning_rate=1.0, schedule="constant", warmup=0.0)
    result = train(trained, digits, worse, 0, Objective())
    assert result.best_epoch == 0
    assert result.notes == (
        "no epoch came up to the score before it, and those weights are kept; learning_rate may be too high",
    )
    assert all(torch.equal(a, b) for a, b in zip(trained.parameters(), result.network.parameters(), strict=True))


@pytest.mark.parametrize("average", [0.0, 0.9])
@pytest.mark.parametrize("first", [torch.zeros(1), None], ids=["another size", "none"])
def test_a_buffer_may_be_made_anew_in_every_call(digits: Classification, first: Tensor | None, average: float) -> None:
    class Grid(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("grid", first, persistent=False)
            self.linear = nn.Linear(64, 10)

        def forward(self, x: Tensor) -> Tensor:
            self.grid = torch.arange(float(len(x)))
            result: Tensor = self.linear(x.flatten(1)) + 0 * self.grid[:, None]
            return result

    assert train(Grid().eval(), digits, table(average=average), 0, Objective()).best_score > 80


def test_buffers_are_those_of_the_weights_that_are_kept(digits: Classification) -> None:
    class Worse(Classification):
        """Scores lower every time."""

        def score(self, *parts: Any, **others: Any) -> Any:
            found = super().score(*parts, **others)
            self.asked = getattr(self, "asked", 0) + 1
            return dataclasses.replace(found, value=100.0 - self.asked if self.asked > 1 else 0.0)

    network, settings = Counting().eval(), {"schedule": "constant", "warmup": 0.0}
    once = train(network, digits, table(epochs=1, **settings), 0, Objective()).network
    twice = train(network, Worse(digits.splits), table(epochs=2, **settings), 0, Objective())
    assert twice.best_epoch == 1
    assert torch.equal(twice.network.get_buffer("mean"), once.get_buffer("mean"))
    assert torch.equal(twice.network.get_parameter("linear.weight"), once.get_parameter("linear.weight"))


@pytest.mark.parametrize("loss", ["kd", "dkd", "dist"])
def test_every_loss_brings_the_student_near_the_teacher(digits: Classification, loss: SoftLoss) -> None:
    teacher = train(small_network(), digits, table(epochs=3), 0, Objective()).network
    objective = Objective(hard_weight=0.0, soft_weight=2.0, soft_loss=loss, temperature=2.0, others_weight=2.0)
    student = train(small_network(1), digits, table(epochs=8), 0, objective, Guidance((teacher,))).network
    answers = [
        torch.from_numpy(module_runner(n, digits)({"image": digits.example_input(256).numpy()})["logits"]).argmax(1)
        for n in (teacher, student)
    ]
    assert (answers[0] == answers[1]).float().mean() > 0.85  # one in ten by chance


def test_smoothed_labels_by_hand(digits: Classification) -> None:
    # Logits (log 3, 0, ..., 0) of ten classes, the first right: probabilities 1/4 and 1/12 each. With 0.1 spread over
    # ten, the loss is -(0.91 log(1/4) + 0.09 log(1/12)).
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tensor([[log(3.0), *[0.0] * 9]])

    batch = TrainingBatch(torch.zeros(1, 1, 8, 8), torch.tensor([0]))
    loss = digits.step(Fixed(), batch, Objective(label_smoothing=0.1))["loss"]
    assert loss.item() == pytest.approx(0.91 * log(4) + 0.09 * log(12), abs=1e-5)
