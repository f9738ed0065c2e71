"""The training loop: it learns, repeats itself exactly, keeps the best weights, and stops at nonsense."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from math import log
from pathlib import Path
from time import sleep
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from onnxdistill.errors import TrainingError
from onnxdistill.recipe import TrainingTable
from onnxdistill.tasks.base import Objective, SoftLoss, TrainingBatch
from onnxdistill.tasks.classification import Classification
from onnxdistill.training import Guidance, TrainingStatus, module_runner, train
from onnxdistill.training.budget import fitting_epochs
from onnxdistill.training.loop import parts_of
from onnxdistill.training.optimizers import build_optimizer, build_schedule


def small_network(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, 2, 1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(0.1),
            nn.Linear(128, 10),
        ).eval()


def table(**changes: object) -> TrainingTable:
    values = {"epochs": 2, "batch_size": 64, "learning_rate": 0.1, "precision": "float32", "crop_pad": 0}
    return TrainingTable.model_validate(values | changes)


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


class Exploding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(float("nan")))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :10] * self.weight


def test_divergence_is_an_error_that_names_the_place(digits: Classification) -> None:
    wanted = r"loss is nan at epoch 1, step 1, with a learning rate of 0.00.*halved 2 times. Lower learning_rate"
    with pytest.raises(TrainingError, match=wanted):
        train(Exploding(), digits, table(), 0, Objective())


class Fragile(nn.Module):
    """Gives NaN, for good, from the first step on that changes its weights too much."""

    def __init__(self, inner: nn.Module, most: float) -> None:
        super().__init__()
        self.inner, self.most = inner, most
        self.start = [parameter.detach().clone() for parameter in inner.parameters()]

    def forward(self, x: Tensor) -> Tensor:
        pairs = zip(self.inner.parameters(), self.start, strict=True)
        moved = max(float((now.detach() - before).abs().max()) for now, before in pairs)
        result: Tensor = self.inner(x)
        return result if moved < self.most else result * float("nan")


def test_after_divergence_it_goes_on_from_the_last_good_state_with_half_the_rate(digits: Classification) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    settings = table(optimizer="adam", learning_rate=0.01, schedule="constant", warmup=0.0, epochs=2)
    # Adam moves a weight by at most about the rate in a step, and there are 34: only at 0.01 does one get that far.
    result = train(Fragile(network, 0.27).eval(), digits, settings, 0, Objective())
    assert len(result.notes) == 1
    assert "the loss is nan at epoch 2" in result.notes[0]
    assert "a learning rate of 0.01; it went on with half of it" in result.notes[0]
    assert [record.learning_rate for record in result.history] == [0.01, 0.005]
    assert result.best_score > result.start_score


class _EndedError(Exception):
    pass


def ended_at(step: int) -> Callable[[TrainingStatus], None]:
    def on_status(status: TrainingStatus) -> None:
        if (status.epoch - 1) * status.steps + status.step == step:
            raise _EndedError

    return on_status


@pytest.mark.parametrize(("optimizer", "average"), [("sgd", 0.0), ("adamw", 0.9)])
def test_a_training_that_was_ended_goes_on_to_the_same_weights(
    digits: Classification, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str, average: float
) -> None:
    monkeypatch.setattr("onnxdistill.training.loop.STATUS_INTERVAL_S", 0.0)
    monkeypatch.setattr("onnxdistill.training.loop.CHECKPOINT_INTERVAL_S", 0.0)
    network = small_network()
    settings = table(epochs=3, optimizer=optimizer, average=average, learning_rate=0.02, crop_pad=1, flip=True)
    whole = train(network, digits, settings, 3, Objective())
    file = tmp_path / "new" / "state.pt"
    for step in (1, 10, 17, 18, 40, 51):  # 17 steps an epoch
        with pytest.raises(_EndedError):
            train(network, digits, settings, 3, Objective(), on_status=ended_at(step), checkpoint=file)
    seen: list[TrainingStatus] = []
    resumed = train(network, digits, settings, 3, Objective(), on_status=seen.append, checkpoint=file)
    assert [(status.epoch, status.step) for status in seen if not status.epoch_done] == [(3, 17)]  # not written yet
    for name, tensor in whole.network.state_dict().items():
        assert torch.equal(tensor, resumed.network.state_dict()[name]), name
    strip = [dataclasses.replace(record, seconds=0.0) for record in resumed.history]
    assert strip == [dataclasses.replace(record, seconds=0.0) for record in whole.history]
    assert (resumed.best_epoch, resumed.start_score) == (whole.best_epoch, whole.start_score)
    assert resumed.notes[-1] == "it went on at epoch 3, step 17, where a run had been ended"


def same_weights(network: nn.Module, activation: nn.Module) -> nn.Module:
    changed = copy.deepcopy(network)
    changed.set_submodule("2", activation)
    return changed


def frozen(network: nn.Module) -> nn.Module:
    changed = copy.deepcopy(network)
    changed.get_parameter("0.weight").requires_grad_(False)
    return changed


def test_images_that_are_prepared_otherwise_are_another_training(digits: Classification, tmp_path: Path) -> None:
    network, file = small_network(), tmp_path / "state.pt"
    train(network, digits, table(epochs=1), 0, Objective(), checkpoint=file)
    brighter = Classification(dataclasses.replace(digits.splits, mean=(0.0,)))
    assert train(network, brighter, table(epochs=1), 0, Objective(), checkpoint=file).notes == ()
    assert len(train(network, brighter, table(epochs=1), 0, Objective(), checkpoint=file).notes) == 1


def test_a_checkpoint_that_cannot_be_written_does_not_end_the_training(digits: Classification, tmp_path: Path) -> None:
    (tmp_path / "state.pt.new").symlink_to("/dev/full")
    result = train(small_network(), digits, table(), 0, Objective(), checkpoint=tmp_path / "state.pt")
    assert len(result.history) == 2
    assert result.notes == (
        "its checkpoint could not be written (No space left on device), and it went on without one",
    )


class Counting(nn.Module):
    """Has an index, and a mean that no state dict has."""

    def __init__(self) -> None:
        super().__init__()
        self.index = nn.Buffer(torch.arange(200))
        self.mean = nn.Buffer(torch.zeros(10), persistent=False)
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.linear(x.flatten(1))
        if self.training:
            self.mean.lerp_(result.detach().mean(0), 0.1)
        return result - self.mean


def test_an_average_leaves_whole_numbers_alone(digits: Classification) -> None:
    result = train(Counting().eval(), digits, table(average=0.9), 0, Objective())
    assert torch.equal(result.network.get_buffer("index"), torch.arange(200))


def test_buffers_that_are_not_saved_go_on_too(
    digits: Classification, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxdistill.training.loop.STATUS_INTERVAL_S", 0.0)
    torch.manual_seed(0)
    network = Counting().eval()
    whole = train(network, digits, table(), 0, Objective())
    with pytest.raises(_EndedError):
        train(network, digits, table(), 0, Objective(), on_status=ended_at(25), checkpoint=tmp_path / "state.pt")
    resumed = train(network, digits, table(), 0, Objective(), checkpoint=tmp_path / "state.pt")
    assert len(resumed.notes) == 1
    assert torch.equal(resumed.network.get_parameter("linear.weight"), whole.network.get_parameter("linear.weight"))


def test_the_state_of_another_training_or_a_damaged_one_is_not_taken(digits: Classification, tmp_path: Path) -> None:
    file = tmp_path / "state.pt"
    network = small_network()
    train(network, digits, table(epochs=1), 0, Objective(), checkpoint=file)
    content = file.read_bytes()
    changes: list[tuple[nn.Module, TrainingTable, int, Objective]] = [
        (small_network(1), table(epochs=1), 0, Objective()),
        (network, table(epochs=1, learning_rate=0.2), 0, Objective()),
        (network, table(epochs=1), 1, Objective()),
        (network, table(epochs=1), 0, Objective(hard_weight=2.0)),
        (same_weights(network, nn.Tanh()), table(epochs=1), 0, Objective()),
        (frozen(network), table(epochs=1), 0, Objective()),
    ]
    for change in changes:
        file.write_bytes(content)
        expected = train(*(change[0], digits, *change[1:]))
        actual = train(*(change[0], digits, *change[1:]), checkpoint=file)
        for one, other in zip(expected.network.parameters(), actual.network.parameters(), strict=True):
            assert torch.equal(one, other)
    flipped = bytearray(content)
    flipped[len(flipped) // 2] ^= 64
    for damaged in (b"", b"text", content[: len(content) // 2], bytes(flipped)):
        file.write_bytes(damaged)
        assert train(network, digits, table(epochs=1), 0, Objective(), checkpoint=file).notes == ()


def test_status_counts_to_the_end(digits: Classification, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxdistill.training.loop.STATUS_INTERVAL_S", 0.0)
    seen: list[TrainingStatus] = []
    train(small_network(), digits, table(), 0, Objective(), on_status=seen.append)
    assert (seen[-1].epoch, seen[-1].epochs, seen[-1].step) == (2, 2, seen[-1].steps)
    assert seen[-1].remaining_s == 0
    assert all(status.samples_per_s > 0 for status in seen)


def test_schedule_by_hand() -> None:
    network = nn.Linear(1, 1)
    settings = table(learning_rate=1.0, warmup=0.25, epochs=1)
    optimizer = build_optimizer(network, settings)
    schedule = build_schedule(optimizer, settings, steps=8)
    rates = []
    for _ in range(8):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    # Two warm-up steps of thirds, then cosine over six steps: 1, (1+cos 30°)/2, (1+cos 60°)/2 = 0.75, ...
    assert rates == pytest.approx([1 / 3, 2 / 3, 1, 0.9330, 0.75, 0.5, 0.25, 0.0670], abs=1e-4)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("linear", [0.5, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]),
        ("step", [0.5, 1, 1, 1, 0.1, 0.1, 0.01]),
        ("constant", [0.5, 1, 1, 1, 1, 1, 1]),
        # Half a cosine up, at its middle in the only step of warm-up; then down as `cosine`.
        ("one_cycle", [0.5, 1, 0.93301, 0.75, 0.5, 0.25, 0.06699]),
    ],
)
def test_other_schedules_by_hand(schedule: str, expected: list[float]) -> None:
    settings = table(learning_rate=1.0, warmup=1 / 7, schedule=schedule, epochs=1)
    optimizer = build_optimizer(nn.Linear(1, 1), settings)
    wanted = build_schedule(optimizer, settings, steps=7)
    rates = []
    for _ in range(7):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        wanted.step()
    assert rates == pytest.approx(expected, abs=1e-5)


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
    # The first step's weights start the average.
    expected = 0.75 * (0.75 * weights[0] + 0.25 * weights[1]) + 0.25 * weights[2]
    assert torch.allclose(next(averaged.parameters()), expected, atol=1e-6)


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


def test_only_matrices_decay() -> None:
    network = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    groups = build_optimizer(network, table(weight_decay=0.1)).param_groups
    assert [(group["weight_decay"], len(group["params"])) for group in groups] == [(0.1, 1), (0.0, 3)]


def test_a_last_single_image_does_not_end_the_training(digits: Classification) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.BatchNorm1d(10)).eval()
    images = digits.splits.train.subset(np.arange(65))
    task = Classification(dataclasses.replace(digits.splits, train=images))
    assert len(train(network, task, table(epochs=1), 0, Objective()).history) == 1


def test_parts_of_a_batch_add_up_to_it(digits: Classification) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    guidance = Guidance((nn.Sequential(nn.Flatten(), nn.Linear(64, 10)),), views=1)
    objective = Objective(soft_weight=1.0)
    whole, parts = (
        train(network, digits, table(batch_size=100, micro_batch=size, clip_norm=0.5), 0, objective, guidance)
        for size in (None, 30)  # 100 in four parts, and a last batch of 83 in three
    )
    for one, other in zip(whole.network.parameters(), parts.network.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-5)
    assert [record.loss for record in whole.history] == pytest.approx([record.loss for record in parts.history])


@settings(max_examples=200)
@given(whole=st.integers(4, 200), processes=st.integers(1, 4), most=st.integers(2, 64))
def test_all_processes_have_as_many_parts(whole: int, processes: int, most: int) -> None:
    assume(whole >= 2 * processes)
    sizes = []
    for rank in range(processes):
        samples = torch.arange(rank, whole, processes)
        parts = parts_of(TrainingBatch(samples, samples, samples), most, whole, processes)
        assert torch.equal(torch.cat([part.inputs for part in parts]), samples)
        sizes.append([len(part.targets) for part in parts])
    assert len({len(parts) for parts in sizes}) == 1
    assert all(size >= 2 for parts in sizes for size in parts)
    assert all(size <= max(most, 3) for parts in sizes for size in parts)


def test_no_part_of_a_batch_is_a_single_image(digits: Classification) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.BatchNorm1d(10)).eval()
    task = Classification(dataclasses.replace(digits.splits, train=digits.splits.train.subset(np.arange(67))))
    assert len(train(network, task, table(epochs=1, batch_size=64, micro_batch=2), 0, Objective()).history) == 1


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
def test_a_budget_of_time_is_measured_and_the_schedule_ends(digits: Classification, views: int) -> None:
    few = Classification(dataclasses.replace(digits.splits, train=digits.splits.train.subset(np.arange(128))))
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


def test_a_resumed_training_has_the_epochs_that_were_measured(
    digits: Classification, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(status: TrainingStatus) -> None:
        if status.epoch == 2:  # the state of the first has been written
            raise _EndedError

    settings, file = table(epochs=50, minutes=1.0), tmp_path / "state.pt"
    monkeypatch.setattr("onnxdistill.training.loop.fitting_epochs", lambda *_: 3)
    with pytest.raises(_EndedError):
        train(small_network(), digits, settings, 0, Objective(), None, stop, file)
    monkeypatch.setattr("onnxdistill.training.loop.fitting_epochs", lambda *_: 5)
    assert len(train(small_network(), digits, settings, 0, Objective(), checkpoint=file).history) == 3


def test_outer_layers_learn_at_rates_of_their_own() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token = nn.Parameter(torch.zeros(3))
            self.body = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
            self.head = nn.Linear(3, 2)
            self.tied = self.head

    network = Tokens()
    extra = nn.Parameter(torch.zeros(2, 2))
    optimizer = build_optimizer(network, table(learning_rate=1.0, layer_decay=0.5, weight_decay=0.1), [extra])
    found = [(g["lr"], g["weight_decay"], [tuple(p.shape) for p in g["params"]]) for g in optimizer.param_groups]
    assert found == [
        (0.5, 0.1, [(3, 3), (3, 3)]),
        (0.5, 0.0, [(3,), (3,), (3,)]),
        (1.0, 0.1, [(2, 3)]),
        (1.0, 0.0, [(2,)]),
        (1.0, 0.1, [(2, 2)]),
    ]
    schedule = build_schedule(optimizer, table(schedule="constant", warmup=0.0), 10)
    assert schedule.get_last_lr() == [0.5, 0.5, 1.0, 1.0, 1.0]
