"""Run folders: whole or not there, and never at the cost of an earlier run or of anything else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from onnxdistill.errors import OutputError
from onnxdistill.stages import ship
from onnxdistill.stages.ship import FILES, RunFolder


def fill(folder: RunFolder, text: str) -> None:
    write_run(folder.work, text)


def write_run(folder: Path, text: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    report = {"schema_version": 1, "onnxdistill_version": "0", "rows": [], "recipe": {}, "name": text}
    (folder / "report.json").write_text(json.dumps(report))


def read(folder: Path) -> str:
    return str(json.loads((folder / "report.json").read_text())["name"])


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_shipping_gives_the_name_and_leaves_nothing_else(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "deep" / "run") as folder:
        fill(folder, "new")
        assert not (tmp_path / "deep" / "run").exists()
        assert folder.ship() == tmp_path / "deep" / "run"
    assert read(tmp_path / "deep" / "run") == "new"
    assert names(tmp_path / "deep") == ["run"]


def test_a_failed_run_leaves_the_earlier_one_untouched(tmp_path: Path) -> None:
    write_run(tmp_path / "run", "old")

    def break_half_way() -> None:
        with RunFolder(tmp_path / "run") as folder:
            fill(folder, "new")
            raise ValueError("it broke")

    with pytest.raises(ValueError, match="broke"):
        break_half_way()
    assert read(tmp_path / "run") == "old"
    assert names(tmp_path) == ["run"]


def test_a_later_run_replaces_the_earlier_one_as_a_whole(tmp_path: Path) -> None:
    write_run(tmp_path / "run", "old")
    for name in FILES:
        (tmp_path / "run" / name).touch()
    with RunFolder(tmp_path / "run") as folder:
        fill(folder, "new")
        folder.ship()
    assert names(tmp_path / "run") == ["report.json"]
    assert read(tmp_path / "run") == "new"
    assert names(tmp_path) == ["run"]


def test_one_that_misses_its_limits_goes_beside(tmp_path: Path) -> None:
    write_run(tmp_path / "run", "old")
    write_run(tmp_path / "run.missed", "missed before")
    with RunFolder(tmp_path / "run") as folder:
        fill(folder, "new")
        assert folder.ship(missed=True) == tmp_path / "run.missed"
    assert read(tmp_path / "run") == "old"
    assert read(tmp_path / "run.missed") == "new"
    assert names(tmp_path) == ["run", "run.missed"]


def test_places_that_are_not_ours_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.txt").write_text("mine")
    with pytest.raises(OutputError, match="is a file, not a folder"):
        RunFolder(tmp_path / "file")
    with pytest.raises(OutputError, match=r"not the folder of an earlier run: it holds thesis\.txt"):
        RunFolder(tmp_path / "folder")
    with pytest.raises(OutputError, match="cannot be written"):
        RunFolder(tmp_path / "file" / "run")
    assert names(tmp_path) == ["file", "folder"]


def test_a_run_with_something_of_the_users_beside_it_is_not_replaced(tmp_path: Path) -> None:
    write_run(tmp_path / "run", "old")
    (tmp_path / "run" / "thesis.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"it holds thesis\.txt\. It would be deleted"):
        RunFolder(tmp_path / "run")
    (tmp_path / "run" / "thesis.txt").unlink()
    (tmp_path / "run" / "student.onnx").symlink_to(tmp_path)
    with pytest.raises(OutputError, match=r"it holds student\.onnx"):
        RunFolder(tmp_path / "run")


@pytest.mark.parametrize("text", ["mine", "[]", '{"rows": []}', '{"schema_version": 1, "settings": {}, "models": []}'])
def test_a_report_of_another_program_is_not_replaced(tmp_path: Path, text: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "report.json").write_text(text)
    with pytest.raises(OutputError, match=r"its report\.json is not one of onnxdistill"):
        RunFolder(tmp_path / "run")
    assert (tmp_path / "run" / "report.json").read_text() == text


def test_what_comes_into_the_folder_meanwhile_stays(tmp_path: Path) -> None:
    write_run(tmp_path / "run", "old")
    with RunFolder(tmp_path / "run") as folder:
        fill(folder, "new")
        (tmp_path / "run" / "thesis.txt").write_text("mine")
        with pytest.raises(OutputError, match=r"thesis\.txt"):
            folder.ship()
    assert (tmp_path / "run" / "thesis.txt").read_text() == "mine"
    assert read(tmp_path / "run") == "old"


def test_the_place_of_a_missed_run_is_checked_at_the_start(tmp_path: Path) -> None:
    place = tmp_path / "run.missed"
    place.write_text("mine")
    with pytest.raises(OutputError, match=r"run\.missed is a file"):
        RunFolder(tmp_path / "run")
    place.unlink()
    place.mkdir()
    (place / "thesis.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"run\.missed exists .* it holds thesis\.txt"):
        RunFolder(tmp_path / "run")
    assert names(tmp_path) == ["run.missed"]


def test_an_empty_folder_may_be_used(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with RunFolder(tmp_path / "run") as folder:
        fill(folder, "new")
        folder.ship()
    assert (tmp_path / "run" / "report.json").is_file()


@pytest.mark.parametrize("out", [".", "..", "/", "nowhere/.."])
def test_the_working_folder_itself_is_refused_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    (tmp_path / "above" / "here").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "above" / "here")
    with pytest.raises(OutputError, match=r"is the working folder or above it.*--out run"):
        RunFolder(Path(out))
    assert names(tmp_path / "above") == ["here"]
    assert names(tmp_path / "above" / "here") == []


@pytest.mark.skipif(not Path("/dev/shm").is_mount(), reason="needs a mounted disk")
def test_the_top_of_another_disk_is_refused_at_the_start() -> None:
    with pytest.raises(OutputError, match=r"another disk is mounted.*--out /dev/shm/run"):
        RunFolder(Path("/dev/shm"))


def test_a_change_of_the_working_folder_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with RunFolder(Path("run")) as folder:
        fill(folder, "new")
        (tmp_path / "other").mkdir()
        monkeypatch.chdir(tmp_path / "other")
        folder.ship()
    assert names(tmp_path) == ["other", "run"]


def test_links(tmp_path: Path) -> None:
    write_run(tmp_path / "deep" / "real", "old")
    link = tmp_path / "run"
    link.symlink_to(tmp_path / "deep" / "real")
    with RunFolder(link) as folder:
        fill(folder, "new")
        assert folder.ship() == link
    assert link.is_symlink()
    assert read(link) == read(tmp_path / "deep" / "real") == "new"
    assert names(tmp_path / "deep") == ["real"]
    for dangling in ("nowhere", "loop"):
        (tmp_path / "loop").unlink(missing_ok=True)
        (tmp_path / "loop").symlink_to(tmp_path / dangling)
        with pytest.raises(OutputError, match="a symbolic link that leads to no folder"):
            RunFolder(tmp_path / "loop")
    assert names(tmp_path) == ["deep", "loop", "run"]


def test_a_null_byte_and_a_name_that_is_too_long(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"a.b cannot be written: embedded null byte"):
        RunFolder(Path("a\0b"))
    with pytest.raises(OutputError, match="cannot be written: File name too long"):
        RunFolder(tmp_path / "new" / ("x" * 300))
    with pytest.raises(OutputError, match="cannot be written: File name too long"):
        RunFolder(tmp_path / "new" / ("x" * 250))
    assert names(tmp_path) == []


def test_folders_made_on_the_way_go_if_the_run_fails(tmp_path: Path) -> None:
    def break_half_way() -> None:
        with RunFolder(tmp_path / "p" / "q" / "r") as folder:
            fill(folder, "new")
            raise ValueError("it broke")

    with pytest.raises(ValueError, match="broke"):
        break_half_way()
    assert names(tmp_path) == []


KILLED = """
import os, signal, sys
from pathlib import Path
from onnxdistill.stages.ship import RunFolder
folder = RunFolder(Path(sys.argv[1]))
(folder.work / "teacher.onnx").touch()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_run_left_is_removed(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", KILLED, tmp_path / "run"], check=False)
    subprocess.run([sys.executable, "-c", KILLED, tmp_path / "other"], check=False)
    left = names(tmp_path)
    assert len(left) == 2
    others = [name for name in left if name.startswith(".other")]
    (tmp_path / ".run.partial-notes").mkdir()  # not one of ours
    with RunFolder(tmp_path / "run") as folder:
        fill(folder, "new")
        folder.ship()
    assert names(tmp_path) == sorted([*others, ".run.partial-notes", "run"])


def test_the_folder_of_a_live_run_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with RunFolder(tmp_path / "run") as first:
        fill(first, "first")
        with RunFolder(tmp_path / "run") as second:
            assert first.work.is_dir()
            fill(second, "second")
        # As seen from another container, where the number of the process means nothing.
        monkeypatch.setattr(ship, "_is_running", lambda _: False)
        with RunFolder(tmp_path / "run"):
            assert first.work.is_dir()
        first.ship()
    assert read(tmp_path / "run") == "first"


def test_an_earlier_run_comes_back_if_the_later_one_was_killed_between_two_renames(tmp_path: Path) -> None:
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    write_run(tmp_path / f".run.retired-{int(dead.stdout)}-abcd1234", "old")
    with RunFolder(tmp_path / "run"):
        assert read(tmp_path / "run") == "old"
    assert names(tmp_path) == ["run"]


def test_a_missed_run_comes_back_as_one(tmp_path: Path) -> None:
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    write_run(tmp_path / f".run.missed.retired-{int(dead.stdout)}-abcd1234", "old")
    with RunFolder(tmp_path / "run"):
        assert read(tmp_path / "run.missed") == "old"
    assert names(tmp_path) == ["run.missed"]


@pytest.mark.parametrize("missed", [False, True])
@pytest.mark.parametrize(
    ("raised", "met"), [(OSError(28, os.strerror(28)), OutputError), (KeyboardInterrupt(), KeyboardInterrupt)]
)
def test_what_comes_up_at_the_last_moment_keeps_the_earlier_run(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    raised: BaseException,
    met: type[BaseException],
    missed: bool,
) -> None:
    """A full disk, or a user who ends it."""
    name = "run.missed" if missed else "run"
    write_run(tmp_path / name, "old")
    rename, retired = Path.rename, list[str]()

    def broken(path: Path, target: Path) -> Path:
        if ".partial-" in path.name:
            raise raised
        retired.append(target.name)
        return rename(path, target)

    with RunFolder(tmp_path / "run") as folder:
        fill(folder, "new")
        monkeypatch.setattr(Path, "rename", broken)
        with pytest.raises(met):
            folder.ship(missed)
    assert retired[0].startswith(f".{name}.retired-")
    assert read(tmp_path / name) == "old"
    assert names(tmp_path) == [name]
