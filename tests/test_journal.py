"""What is kept of a run that was ended, and what is not."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from onnxdistill.device.measuring.statistics import Estimate
from onnxdistill.errors import FallbackError, LimitsMissedError, OutputError, ResultError
from onnxdistill.journal import Journal


def remember(journal: Journal) -> None:
    journal.ratio("a", lambda: Estimate(1.0, 0.5, 1.5))


def ended(place: Path, work: Callable[[Journal], None], error: type[BaseException] = KeyboardInterrupt) -> None:
    """A run that does some work and is then ended by an error."""

    def run() -> None:
        with Journal(place) as journal:
            work(journal)
            raise error

    with pytest.raises(error):
        run()


def test_a_lock_that_cannot_be_had_costs_nothing_that_was_kept(tmp_path: Path) -> None:
    folder = tmp_path / ".run.resume"
    folder.mkdir()
    (folder / "lock").symlink_to(folder / "lock")  # no file system gives a lock on that
    (folder / "teacher.pt").write_text("hours of training")
    with Journal(tmp_path / "run") as journal:
        assert journal.checkpoint("teacher") is None
        assert "cannot be locked" in journal.notes[0]
    assert (folder / "teacher.pt").read_text() == "hours of training"
    # Where there was nothing, nothing is left.
    (folder / "teacher.pt").unlink()
    with Journal(tmp_path / "run") as journal:
        assert journal.notes
    assert not folder.exists()


class DiskFullError(OutputError):
    def __init__(self) -> None:
        super().__init__("why")


class DivergedError(ResultError):
    def __init__(self) -> None:
        super().__init__("why")


class OutOfReachError(LimitsMissedError):
    def __init__(self) -> None:
        super().__init__("why")


class DeadProviderError(FallbackError):
    def __init__(self) -> None:
        super().__init__("why")


def measured(value: float, calls: list[float]) -> Estimate:
    calls.append(value)
    return Estimate(value, value - 0.5, value + 0.5)


def test_ratios_are_measured_once(tmp_path: Path) -> None:
    calls: list[float] = []

    def work(journal: Journal) -> None:
        assert not journal.holds_something
        assert journal.ratio("a", lambda: measured(1.0, calls)) == Estimate(1.0, 0.5, 1.5)
        assert journal.ratio("a", lambda: measured(2.0, calls)) == Estimate(1.0, 0.5, 1.5)
        assert journal.holds_something

    ended(tmp_path / "run", work)
    with Journal(tmp_path / "run") as journal:
        assert journal.ratio("a", lambda: measured(3.0, calls)) == Estimate(1.0, 0.5, 1.5)
        assert journal.ratio("b", lambda: measured(4.0, calls)).value == 4.0
    assert calls == [1.0, 4.0]
    assert list(tmp_path.iterdir()) == []  # that run ended by itself


@pytest.mark.parametrize(
    ("error", "stays"),
    [
        (SystemExit, True),
        (RuntimeError, True),
        (DiskFullError, True),
        (DeadProviderError, True),
        (DivergedError, False),
        (OutOfReachError, False),
    ],
)
def test_what_stays_after_an_error(tmp_path: Path, error: type[BaseException], stays: bool) -> None:
    ended(tmp_path / "run", lambda journal: None, error)
    assert list(tmp_path.iterdir()) == []  # nothing stays of nothing
    ended(tmp_path / "run", remember, error)
    assert (tmp_path / ".run.resume").exists() == stays


@pytest.mark.parametrize(
    ("error", "delivered", "left"),
    [
        (DeadProviderError, False, {"lock", "distill.pt", "ratios.json"}),
        # Measured again, what was out of reach may be in reach.
        (OutOfReachError, False, {"lock", "distill.pt"}),
        (DivergedError, False, {"lock", "distill.pt"}),
        (OutOfReachError, True, set()),
    ],
)
def test_a_training_outlives_a_refusal_unless_its_student_was_delivered(
    tmp_path: Path, error: type[BaseException], delivered: bool, left: set[str]
) -> None:
    def work(journal: Journal) -> None:
        remember(journal)
        path = journal.checkpoint("distill")
        assert path is not None
        assert not journal.holds_trainings
        path.write_text("state")
        assert journal.holds_trainings
        journal.delivered = delivered

    ended(tmp_path / "run", work, error)
    assert {path.name for path in tmp_path.glob(".run.resume/*")} == left


def test_a_second_run_at_the_same_time_keeps_nothing_and_disturbs_nothing(tmp_path: Path) -> None:
    kept: list[Path] = []

    def work(journal: Journal) -> None:
        with Journal(tmp_path / "run") as other:
            assert other.checkpoint("distill") is None
            assert other.ratio("a", lambda: measured(5.0, [])).value == 5.0
            assert not other.holds_something
            (note,) = other.notes
            assert note.startswith("If this run is ended, it begins anew: ")
        assert journal.notes == []
        path = journal.checkpoint("distill")
        assert path is not None
        path.write_text("state")
        kept.append(path)

    ended(tmp_path / "run", work)
    with Journal(tmp_path / "run") as journal:
        assert journal.checkpoint("distill") == kept[0]
        assert kept[0].read_text() == "state"


def test_what_was_trained_after_every_cut_is_kept_until_the_end(tmp_path: Path) -> None:
    def work(journal: Journal) -> None:
        for cut in (1, 31):
            place = journal.checkpoint_of_cut(cut)
            assert place is not None
            place.write_text("state")
        assert journal.holds_something

    ended(tmp_path / "run", work)
    assert len(list((tmp_path / ".run.resume").glob("plan-*.pt"))) == 2
    with Journal(tmp_path / "run"):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["", "[]", '{"a": 3}', '{"a": {"value": 1}}'])
def test_a_damaged_journal_is_a_new_one(tmp_path: Path, content: str) -> None:
    (tmp_path / ".run.resume").mkdir()
    (tmp_path / ".run.resume" / "ratios.json").write_text(content)
    with Journal(tmp_path / "run") as journal:
        assert journal.ratio("a", lambda: measured(7.0, [])).value == 7.0


def test_a_place_that_cannot_hold_it_is_explained(tmp_path: Path) -> None:
    (tmp_path / ".run.resume").write_text("a file")
    with pytest.raises(OutputError, match=r"run\.resume cannot be written"):
        Journal(tmp_path / "run")


def test_what_is_not_ours_stays(tmp_path: Path) -> None:
    (tmp_path / ".run.resume").mkdir()
    (tmp_path / ".run.resume" / "thesis.txt").write_text("years of work")
    with Journal(tmp_path / "run") as journal:
        remember(journal)
    assert [path.name for path in (tmp_path / ".run.resume").iterdir()] == ["thesis.txt"]


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / ".run.resume").symlink_to(tmp_path)
    with pytest.raises(OutputError, match="is a symbolic link"):
        Journal(tmp_path / "run")


def test_a_folder_that_is_removed_underway_does_no_harm(tmp_path: Path) -> None:
    def work(journal: Journal) -> None:
        shutil.rmtree(tmp_path / ".run.resume")
        remember(journal)
        assert not journal.holds_something

    ended(tmp_path / "run", work)


@pytest.mark.parametrize("damage", [None, "", "[]", "{"])
def test_decisions_are_made_once(tmp_path: Path, damage: str | None) -> None:
    def work(journal: Journal) -> None:
        assert journal.decision("a", lambda: {"widths": {"x": 8}, "gone": []}) == {"widths": {"x": 8}, "gone": []}
        assert journal.decision("a", lambda: 5) == {"widths": {"x": 8}, "gone": []}
        assert journal.holds_something

    ended(tmp_path / "run", work)
    if damage is not None:
        (tmp_path / ".run.resume" / "decisions.json").write_text(damage)
    with Journal(tmp_path / "run") as journal:
        kept = {"widths": {"x": 8}, "gone": []} if damage is None else 6
        assert journal.decision("a", lambda: 6) == kept
    assert not (tmp_path / ".run.resume").exists()
