"""Stage `ship`: a run folder that is either whole or not there."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import shutil
import tempfile
from pathlib import Path
from types import TracebackType
from typing import get_args

from onnxdistill.errors import OutputError, UsageError, cannot_write
from onnxdistill.recipe import Target

FILES = (
    *("teacher.onnx", "teacher.pt", "student.onnx", "student.pt", "report.json", "report.html", "recipe.toml"),
    "samples.npz",
    *(f"student-{target}.onnx" for target in get_args(Target)),
)
"""What a run writes."""

_REPORT_KEYS = {"schema_version", "onnxdistill_version", "rows", "recipe"}
_ELSEWHERE = "Give an empty or new folder with --out."


class RunFolder:
    """A folder that is filled under a temporary name and takes its own name only when it is complete.

    Use it as a context manager: leaving the block without `ship` removes what was written, and an earlier run
    under the same name stays as it was.

    Args:
        path: The name that the finished folder gets. If it exists, it has to be empty or an earlier run's folder; a
            symbolic link stays, and the folder that it points to is meant.

    Attributes:
        path: As it was given.
        missed: The name that the folder gets instead if its student misses its limits.
        work: Where the files go until then.

    Raises:
        OutputError: If a place cannot be written, or holds something else than a run.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            # Absolute from now on: a network of the user's own may change the working folder.
            self._target = Path(os.path.realpath(path))
            self.missed = self._target.parent / f"{self._target.name}.missed"
            _refuse_foreign(path, self._target)
            _refuse_foreign(self.missed, self.missed)
            self._made = _make_folders(self._target.parent)
        except (OSError, ValueError) as error:  # ValueError: a null byte
            raise cannot_write(f"The run folder {path}", error) from error
        try:
            with contextlib.suppress(OSError):  # what others left is no reason not to run
                _clear_up(self._target)
                _clear_up(self.missed)
            self.work, self._lock = _work_folder(self._target)
        except OSError as error:
            _remove_folders(self._made)
            raise cannot_write(f"The run folder {path}", error) from error

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self.work, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
        _remove_folders(self._made)

    def holds(self, path: Path, name: str = "") -> bool:
        """Whether a file lies in a folder that this run may replace; with a name, whether it is that one.

        Args:
            path: The file, which need not be there.
            name: Of a file that a run writes.
        """
        place = Path(os.path.realpath(path))
        folders = (self._target, self.missed)
        return any(place == folder / name if name else place.is_relative_to(folder) for folder in folders)

    def check_reading(self, what: str, path: Path) -> None:
        """Makes sure that what a run reads does not go with a folder that it replaces.

        Args:
            what: Names it, for the message.
            path: The file or folder, if it is one.

        Raises:
            UsageError: If it would.
        """
        if path.exists() and self.holds(path):
            raise UsageError(
                f"{what} = {path} lies in a folder that this run replaces.",
                "Copy it to another place, or give another --out.",
            )

    def ship(self, missed: bool = False) -> Path:
        """Gives the folder its name; an earlier run of that name is replaced in the same moment.

        Args:
            missed: Give it the name `missed`.
        """
        shown, target = (self.missed, self.missed) if missed else (self.path, self._target)
        before, _, number = self.work.name.rpartition(".partial-")
        retired = self.work.with_name(f"{before}{'.missed' if missed else ''}.retired-{number}")
        try:
            _refuse_foreign(shown, target)  # once more: the training took a while
            if target.exists():
                target.rename(retired)
            self.work.rename(target)
        except BaseException as error:  # it may be ended between the two
            if retired.exists() and not target.exists():
                retired.rename(target)
            if isinstance(error, OSError):
                raise cannot_write(f"The run folder {shown}", error) from error
            raise
        shutil.rmtree(retired, ignore_errors=True)
        return shown


def _refuse_foreign(shown: Path, target: Path) -> None:
    """What is not an earlier run's folder is not ours to replace.

    Args:
        shown: The path as the user knows it.
        target: What it comes to.
    """
    if target.is_symlink() or (shown.is_symlink() and not shown.exists()):
        raise OutputError(f"{shown} is a symbolic link that leads to no folder.", "Remove it, or give another --out.")
    if not target.exists():
        return
    if not target.is_dir():
        raise OutputError(f"{shown} is a file, not a folder.", "Give another place with --out.")
    if Path.cwd().is_relative_to(target):
        raise OutputError(
            f"{shown} is the working folder or above it, and a run folder is replaced as a whole.",
            "Name a folder in it, such as --out run.",
        )
    if target.is_mount():
        raise OutputError(
            f"{shown} is where another disk is mounted, and a run folder is replaced as a whole.",
            f"Name a folder in it, such as --out {shown / 'run'}.",
        )
    if foreign := _foreign_entry(target):
        raise OutputError(
            f"{shown} exists and is not the folder of an earlier run: {foreign}. It would be deleted with the folder.",
            _ELSEWHERE,
        )


def _foreign_entry(folder: Path) -> str:
    """What a run did not write, in words; empty if the folder is empty or holds a run and nothing else."""
    entries = sorted(folder.iterdir())
    for entry in entries:
        if entry.name not in FILES or entry.is_symlink() or not entry.is_file():
            return f"it holds {entry.name}"
    if entries and folder / "report.json" not in entries:
        return f"it holds {entries[0].name} and no report.json"
    return "its report.json is not one of onnxdistill" if entries and not _is_report(folder / "report.json") else ""


def _is_report(path: Path) -> bool:
    try:
        tables = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return isinstance(tables, dict) and tables.keys() >= _REPORT_KEYS


def _make_folders(folder: Path) -> list[Path]:
    """Makes a folder and those above it; returns those that are new, the deepest first."""
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        _remove_folders(missing)
        raise
    return missing


def _remove_folders(folders: list[Path]) -> None:
    """Removes those that are empty, and so were made for nothing."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def _work_folder(target: Path) -> tuple[Path, int | None]:
    """A new folder beside the target, and a lock on it that ends with this process."""
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}.partial-{os.getpid()}-", dir=target.parent))
    work.chmod(0o777 & ~_umask())  # mkdtemp lets nobody else read
    return work, _lock(work)


def _clear_up(target: Path) -> None:
    """Removes what runs into the same place left behind that were killed; one that still runs keeps its folder."""
    name = re.compile(rf"\.{re.escape(target.name)}\.(partial|retired)-(\d+)-\w+")
    for folder in list(target.parent.iterdir()):
        match = name.fullmatch(folder.name)
        if match is None or folder.is_symlink() or not folder.is_dir() or _is_running(int(match[2])):
            continue
        lock = _lock(folder)
        if lock is None:
            continue
        if match[1] == "retired" and not target.exists():
            folder.rename(target)  # killed between two renames: this is the earlier run itself
        else:
            shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _is_running(process: int) -> bool:
    """Whether there is a process of that number; yes where the system does not tell."""
    if os.name != "posix":
        return True  # there, asking with signal 0 would end it
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def _lock(folder: Path) -> int | None:
    """Locks a folder until this process ends, however it ends; None if another one holds it or there are no locks.

    The number of a process means nothing in another container, which may share the folder; the lock does.
    """
    try:
        fcntl = importlib.import_module("fcntl")
        handle = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
