"""Going back after a divergence, and on where a training was ended: the same weights, and nothing foreign."""

from __future__ import annotations

import copy
import dataclasses
import io
import re
from collections.abc import Callable
from math import inf
from pathlib import Path
from time import sleep
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from onnxdistill.errors import TrainingError, UsageError
from onnxdistill.recipe import TrainingTable
from onnxdistill.tasks.base import Objective
from onnxdistill.tasks.classification import Classification
from onnxdistill.tensorfile import load_tensors, save_tensors
from onnxdistill.training import TrainingStatus, train
from tests.training.small import Counting, small_network, table


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

    def __init__(self, inner: nn.Module, most: float, seconds: float = 0.0) -> None:
        super().__init__()
        self.inner, self.most, self.seconds = inner, most, seconds
        self.start = [parameter.detach().clone() for parameter in inner.parameters()]

    def forward(self, x: Tensor) -> Tensor:
        pairs = zip(self.inner.parameters(), self.start, strict=True)
        moved = max(float((now.detach() - before).abs().max()) for now, before in pairs)
        sleep(self.seconds)
        result: Tensor = self.inner(x)
        return result if moved < self.most else result * float("nan")


def test_after_divergence_it_goes_on_from_the_last_good_state_with_half_the_rate(digits: Classification) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    settings = table(optimizer="adam", learning_rate=0.01, schedule="constant", warmup=0.0, epochs=2)
    # Adam moves a weight by at most about the rate in a step, and there are 34: only at 0.01 does one get that far.
    result = train(Fragile(network, 0.27, seconds=0.01).eval(), digits, settings, 0, Objective())
    assert len(result.notes) == 1
    assert "the loss is nan at epoch 2" in result.notes[0]
    assert "a learning rate of 0.01; it went on with half of it" in result.notes[0]
    assert [record.learning_rate for record in result.history] == [0.01, 0.005]
    # The second epoch took what was lost, at least a step, and its 17 steps and more.
    lost = int(re.findall(r"step (\d+)", result.notes[0])[0])
    steps = -(-digits.training_samples // 64)
    assert result.history[1].seconds >= 0.01 * (lost + steps - 1)
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
    monkeypatch.setattr("onnxdistill.training.reporting.STATUS_INTERVAL_S", 0.0)
    monkeypatch.setattr("onnxdistill.training.recovery.CHECKPOINT_INTERVAL_S", 0.0)
    monkeypatch.setattr("onnxdistill.training.recovery.CHECKPOINT_SHARE", inf)
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
    (note,) = train(network, brighter, table(epochs=1), 0, Objective(), checkpoint=file).notes
    assert note.endswith("; it does not fit, and it began anew")
    # Nothing was left to go on with.
    again = train(network, brighter, table(epochs=1), 0, Objective(), checkpoint=file)
    assert again.notes == (note, "a run that was ended later had done it")


def test_checkpoints_within_an_epoch_come_less_often_where_they_take_long(
    digits: Classification, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    written: list[float] = []

    def save(*_: object) -> None:
        clock[0] += 10.0
        written.append(clock[0])

    def step(*_: object) -> float:
        clock[0] += 20.0
        return 0.0

    monkeypatch.setattr("onnxdistill.training.recovery.time.monotonic", lambda: clock[0])
    monkeypatch.setattr("onnxdistill.training.checkpoint.Checkpoint.save", save)
    monkeypatch.setattr("onnxdistill.training.steps.Steps.step", step)
    train(small_network(), digits, table(), 0, Objective(), checkpoint=tmp_path / "state.pt")
    # After 80 s, more than 60; then after 220 s, since ten seconds are to be a twentieth; and after both epochs.
    assert written == [90.0, 320.0, 370.0, 600.0, 730.0]


def test_a_checkpoint_that_cannot_be_written_does_not_end_the_training(digits: Classification, tmp_path: Path) -> None:
    (tmp_path / "state.pt.new").symlink_to("/dev/full")
    result = train(small_network(), digits, table(), 0, Objective(), checkpoint=tmp_path / "state.pt")
    assert len(result.history) == 2
    assert result.notes == (
        "its checkpoint could not be written (No space left on device), and it went on without one",
    )


def test_nor_does_one_that_memory_has_no_room_for(
    digits: Classification, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("onnxdistill.training.checkpoint.Checkpoint.save", save)
    result = train(small_network(), digits, table(), 0, Objective(), checkpoint=tmp_path / "state.pt")
    assert result.notes == ("its checkpoint could not be written (no memory), and it went on without one",)


def test_memory_that_ends_while_a_file_is_made_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch tries to finish what it could not write, and its own error hides the first one."""

    class Small(io.BytesIO):
        def write(self, content: Any) -> int:
            if self.tell() + len(content) > 4096:
                raise MemoryError
            return super().write(content)

    monkeypatch.setattr("onnxdistill.tensorfile.io.BytesIO", Small)
    with pytest.raises(MemoryError):
        save_tensors({"weight": torch.zeros(10_000)}, tmp_path / "state.pt")
    assert not list(tmp_path.iterdir())


def test_damage_of_the_list_of_contents_is_told_as_damage(tmp_path: Path) -> None:
    """Wherever it makes the reader look."""
    file = tmp_path / "state.pt"
    save_tensors({"weight": torch.zeros(3)}, file)
    content = file.read_bytes()
    told = 0
    for place in range(len(content) - 120, len(content)):
        for bit in range(8):
            damaged = bytearray(content)
            damaged[place] ^= 1 << bit
            file.write_bytes(damaged)
            try:
                assert torch.equal(load_tensors(file)["weight"], torch.zeros(3))
            except ValueError:
                told += 1
    assert told > 100


@pytest.mark.parametrize("reader", ["torch.load", "zipfile._EndRecData"])
@pytest.mark.parametrize("error", [MemoryError(), OSError(5, "Input/output error"), PermissionError(13, "Denied")])
def test_a_checkpoint_that_cannot_be_read_now_is_not_replaced(
    digits: Classification, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, reader: str
) -> None:
    """It may hold hours: whoever has memory again, or the disk, goes on from it."""
    file = tmp_path / "state.pt"
    train(small_network(), digits, table(epochs=1), 0, Objective(), checkpoint=file)
    content = file.read_bytes()

    def load(*_: object, **__: object) -> None:
        raise type(error)(*error.args)  # a new one each time: its file is noted on it

    monkeypatch.setattr(reader, load)
    with pytest.raises((OSError, UsageError)) as raised:
        train(small_network(), digits, table(epochs=1), 0, Objective(), checkpoint=file)
    if isinstance(error, OSError):
        assert type(raised.value) is type(error)
        assert isinstance(raised.value, OSError)
        assert raised.value.filename == str(file)
    else:
        assert str(raised.value).startswith(f"{file}, where a training was left, does not fit into memory.")
    assert file.read_bytes() == content


def test_buffers_that_are_not_saved_go_on_too(
    digits: Classification, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxdistill.training.reporting.STATUS_INTERVAL_S", 0.0)
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
        assert [note for note in actual.notes if note not in expected.notes] == [
            "what was kept here is of a training with other settings, data or weights, of another version, or on other "
            "processors; it does not fit, and it began anew"
        ]
    flipped = bytearray(content)
    flipped[len(flipped) // 2] ^= 64
    for damaged in (b"", b"text", content[: len(content) // 2], bytes(flipped)):
        file.write_bytes(damaged)
        (note,) = train(network, digits, table(epochs=1), 0, Objective(), checkpoint=file).notes
        assert re.fullmatch(r"what was kept here is damaged \(.+\), and it began anew", note)


def test_a_resumed_training_has_the_epochs_that_were_measured(
    digits: Classification, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(status: TrainingStatus) -> None:
        if status.epoch == 2:  # the state of the first has been written
            raise _EndedError

    settings, file = table(epochs=50, minutes=1.0), tmp_path / "state.pt"
    monkeypatch.setattr("onnxdistill.training.budget.fitting_epochs", lambda *_: 3)
    with pytest.raises(_EndedError):
        train(small_network(), digits, settings, 0, Objective(), None, stop, file)
    monkeypatch.setattr("onnxdistill.training.budget.fitting_epochs", lambda *_: 5)
    assert len(train(small_network(), digits, settings, 0, Objective(), checkpoint=file).history) == 3
