"""TensorBoard's event files: what a run writes, what a place that cannot be written does."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from onnxdistill.errors import MissingPackageError, OutputError
from onnxdistill.eventfiles import EventFilesProgress
from onnxdistill.progress import SilentProgress
from onnxdistill.training import TrainingStatus

if TYPE_CHECKING:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


class Noting(SilentProgress):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def status(epoch: int, step: int, loss: float, epoch_done: bool = False, looked: float | None = None) -> TrainingStatus:
    return TrainingStatus(epoch, 2, step, 10, loss, 80.0 + epoch, 0.25, 412.0, 33.3, epoch_done, looked)


def read(folder: Path) -> EventAccumulator:
    # Importing it takes seconds, which everybody who collects this file would wait for.
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return events


def curve(folder: Path, tag: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in read(folder).Scalars(tag)]


def test_trainings_are_curves_and_notes_are_text(tmp_path: Path) -> None:
    noting = Noting()
    with EventFilesProgress(noting, tmp_path) as progress:
        progress.begin("distill", "starting")
        progress.update("looking", 0.5)
        progress.training(status(1, 0, 0.0, looked=0.5), "%")
        progress.training(status(1, 5, 2.0), "%")
        progress.training(status(1, 10, 1.5, epoch_done=True), "%")
        progress.training(status(2, 5, 1.0), "%")
        progress.training(status(2, 10, 0.5, epoch_done=True), "%")
        progress.note("something")
        progress.end("2 epochs", "82.00 %")
    assert curve(tmp_path, "distill/loss") == [(5, 2.0), (15, 1.0)]
    assert curve(tmp_path, "distill/learning_rate") == [(5, 0.25), (15, 0.25)]
    assert curve(tmp_path, "distill/samples_per_s") == [(5, 412.0), (15, 412.0)]
    assert curve(tmp_path, "distill/score") == [(10, 81.0), (20, 82.0)]
    texts = read(tmp_path)
    assert [event.tensor_proto.string_val[0] for event in texts.Tensors("notes/text_summary")] == [b"something"]
    assert [event.tensor_proto.string_val[0] for event in texts.Tensors("distill/text_summary")] == [
        b"2 epochs 82.00 %"
    ]
    assert noting.notes == ["something"]


def test_a_run_that_goes_on_adds_to_the_curves(tmp_path: Path) -> None:
    for epoch in (1, 2):
        with EventFilesProgress(SilentProgress(), tmp_path) as progress:
            progress.begin("teacher", "starting")
            progress.training(status(epoch, 10, 1.0, epoch_done=True), "%")
    assert curve(tmp_path, "teacher/score") == [(10, 81.0), (20, 82.0)]


def test_a_place_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match="file cannot be written"):
        EventFilesProgress(SilentProgress(), tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_full_disk_does_not_end_the_run(tmp_path: Path) -> None:
    noting = Noting()
    with EventFilesProgress(noting, tmp_path) as progress, Path("/dev/full").open("wb", buffering=0) as full:
        assert progress._file is not None
        os.dup2(full.fileno(), progress._file.fileno())
        progress.begin("distill", "starting")
        progress.training(status(1, 5, 2.0), "%")
        progress.training(status(1, 6, 2.0), "%")
    assert noting.notes == ["TensorBoard's file could not be written (No space left on device), and the run goes on"]


def test_the_package_may_be_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard.summary.writer.record_writer", None)
    with pytest.raises(MissingPackageError, match="not installed"):
        EventFilesProgress(SilentProgress(), tmp_path)
