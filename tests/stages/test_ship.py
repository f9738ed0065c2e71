"""Run folders: whole or not there, and never at the cost of an earlier run."""

from __future__ import annotations

from pathlib import Path

import pytest

from onnxdistill.errors import OutputError
from onnxdistill.stages.ship import RunFolder


def fill(folder: RunFolder, text: str) -> None:
    (folder.work / "report.json").write_text(text)


def test_shipping_gives_the_name_and_leaves_nothing_else(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "deep" / "run") as folder:
        fill(folder, "new")
        assert not (tmp_path / "deep" / "run").exists()
        assert folder.ship() == tmp_path / "deep" / "run"
    assert (tmp_path / "deep" / "run" / "report.json").read_text() == "new"
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["run"]


def test_a_failed_run_leaves_the_earlier_one_untouched(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run") as folder:
        fill(folder, "old")
        folder.ship()

    def break_half_way() -> None:
        with RunFolder(tmp_path / "run") as folder:
            fill(folder, "new")
            raise ValueError("it broke")

    with pytest.raises(ValueError, match="broke"):
        break_half_way()
    assert (tmp_path / "run" / "report.json").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_a_later_run_replaces_the_earlier_one_as_a_whole(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run") as folder:
        fill(folder, "old")
        (folder.work / "extra").touch()
        folder.ship()
    with RunFolder(tmp_path / "run") as folder:
        fill(folder, "new")
        folder.ship()
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["report.json"]
    assert (tmp_path / "run" / "report.json").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_places_that_are_not_ours_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.txt").write_text("mine")
    with pytest.raises(OutputError, match="is a file, not a folder"):
        RunFolder(tmp_path / "file")
    with pytest.raises(OutputError, match="not the folder of an earlier run"):
        RunFolder(tmp_path / "folder")
    with pytest.raises(OutputError, match="cannot be written"):
        RunFolder(tmp_path / "file" / "run")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


def test_an_empty_folder_may_be_used(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with RunFolder(tmp_path / "run") as folder:
        fill(folder, "new")
        folder.ship()
    assert (tmp_path / "run" / "report.json").is_file()
