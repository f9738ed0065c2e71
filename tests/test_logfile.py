"""The log file: what a run writes, what a full disk does."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from onnxdistill.errors import OutputError
from onnxdistill.logfile import LoggedProgress, check_log_place
from onnxdistill.progress import SilentProgress
from onnxdistill.training import TrainingStatus


class Noting(SilentProgress):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def status(epoch_done: bool) -> TrainingStatus:
    return TrainingStatus(2, 3, 5, 10, 1.25, 88.5, 0.01, 412.04, 33.3, epoch_done)


def test_lines_are_json_and_are_added(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    file.write_text('{"event": "earlier"}\n')
    with LoggedProgress(SilentProgress(), file, "digits") as progress:
        progress.begin("distill", "starting")
        progress.training(status(False), "%")
        progress.training(status(False), "%")  # too soon
        progress.training(status(True), "%")
        progress.note("something")
        progress.noted("a note of the report with ä")
        progress.end("2 epochs", "88.50 %")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["event"] for line in lines] == [
        "earlier", "start", "stage", "step", "epoch", "note", "note", "result", "done"
    ]  # fmt: skip
    assert lines[1]["name"] == "digits"
    assert lines[3] == {
        "time": lines[3]["time"], "event": "step", "stage": "distill", "epoch": 2, "epochs": 3, "step": 5, "steps": 10,
        "loss": 1.25, "learning_rate": 0.01, "samples_per_s": 412.0, "remaining_s": 33.3,
    }  # fmt: skip
    assert (lines[4]["score"], lines[4]["unit"]) == (88.5, "%")
    assert lines[6]["text"] == "a note of the report with ä"
    assert lines[7]["summary"] == "2 epochs"
    assert "stage" not in lines[8]


def test_a_failure_is_written_down(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="broken"), LoggedProgress(SilentProgress(), tmp_path / "log", "digits"):
        raise ValueError("broken")
    last = json.loads((tmp_path / "log").read_text().splitlines()[-1])
    assert (last["event"], last["error"]) == ("failed", "broken")


def test_a_full_disk_does_not_end_the_run() -> None:
    noting = Noting()
    with LoggedProgress(noting, Path("/dev/full"), "digits") as progress:
        progress.begin("distill", "starting")
    assert noting.notes == [
        "the log file could not be written (No space left on device), and the run goes on without it"
    ]


def test_a_place_that_cannot_be_written_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="there is no folder"):
        LoggedProgress(SilentProgress(), tmp_path / "none" / "log", "digits")


def test_a_name_that_is_no_text_can_be_written_down(tmp_path: Path) -> None:
    with LoggedProgress(SilentProgress(), tmp_path / "log", os.fsdecode(b"\xff")):
        pass
    assert json.loads((tmp_path / "log").read_text().splitlines()[0])["name"] == "\udcff"


def test_a_pipe_without_a_reader_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OutputError, match="cannot be written"):
        LoggedProgress(SilentProgress(), tmp_path / "pipe", "digits")


@pytest.mark.parametrize("log", ["run", "run/log.jsonl", "run.missed/log", "link/log"])
def test_a_run_folder_holds_no_log(tmp_path: Path, log: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "run")
    with pytest.raises(OutputError, match="lies in the run folder"):
        check_log_place(tmp_path / log, [], tmp_path / "run")
    check_log_place(tmp_path / "run.jsonl", [], tmp_path / "run")


def test_a_log_is_not_added_to_what_is_read(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text("")
    with pytest.raises(OutputError, match="is read by this run"):
        check_log_place(tmp_path / "recipe.toml", [tmp_path / "none", tmp_path / "recipe.toml"], tmp_path / "run")
