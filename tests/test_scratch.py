"""Folders for files on the way: gone at the end, and after a kill at the next beginning."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from onnxdistill.scratch import _PREFIX, scratch_folder

CHILD = """
import time
from onnxdistill.scratch import scratch_folder
with scratch_folder() as folder:
    (folder / "student.onnx").write_bytes(b"x" * 1000)
    print(folder, flush=True)
    time.sleep(600)
"""


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)  # looked up anew


@contextmanager
def another() -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A process that has such a folder, which was made an hour ago."""
    with subprocess.Popen([sys.executable, "-c", CHILD], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            folder = Path(process.stdout.readline().strip())
            age(folder)
            yield process, folder
        finally:
            process.kill()


def age(folder: Path) -> None:
    before = time.time() - 3600
    os.utime(folder / "lock", (before, before))


def test_it_goes_at_the_end(tmp_path: Path) -> None:
    with scratch_folder() as folder:
        assert folder.parent == tmp_path
        (folder / "student.onnx").touch()
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_left_is_taken_away_and_what_another_uses_is_not() -> None:
    with another() as (alive, used), another() as (killed, left):
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        assert (left / "student.onnx").exists()
        with scratch_folder():
            assert not left.exists()
            assert (used / "student.onnx").exists()
            assert alive.poll() is None


def test_a_folder_that_was_just_made_and_one_behind_a_link_stay(tmp_path: Path) -> None:
    new, elsewhere = tmp_path / f"{_PREFIX}new", tmp_path / "elsewhere"
    # Its name may begin with that of this one.
    of_other_machines = [tmp_path / "onnxdistill-run-another-old", tmp_path / f"{_PREFIX}2-old"]
    for folder in (new, elsewhere, *of_other_machines):
        folder.mkdir()
        (folder / "lock").write_text("kept")
    age(elsewhere)
    for folder in of_other_machines:
        age(folder)
    (tmp_path / f"{_PREFIX}link").symlink_to(elsewhere)
    with scratch_folder():
        assert (new / "lock").exists()
        assert all((folder / "lock").exists() for folder in of_other_machines)
        assert (elsewhere / "lock").read_text() == "kept"
