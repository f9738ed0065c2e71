"""Where what was measured or computed on this machine is kept from one run to the next."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

MOST_BYTES = 2**28
"""Of the files of one subject."""


def cache_folder(subject: str) -> Path:
    """The folder for one subject, which may not be there yet.

    It lies in `$ONNXDISTILL_CACHE`, or else in `onnxdistill` in `$XDG_CACHE_HOME`, `%LOCALAPPDATA%` or `~/.cache`.
    """
    if own := os.environ.get("ONNXDISTILL_CACHE"):
        return Path(own) / subject
    given = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA")
    try:
        folder = Path(given) if given else Path("~/.cache").expanduser()
    except RuntimeError:  # a user without a home
        folder = Path(tempfile.gettempdir())
    return folder / "onnxdistill" / subject


def keep(file: Path, content: bytes, most: int) -> None:
    """Writes a file of a cache folder at once, and deletes those that were used longest ago.

    A cache that cannot be written is none: nothing is raised.

    Args:
        file: In a cache folder.
        content: Of the file.
        most: How many files like it stay, if they have no more than `MOST_BYTES`.
    """
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        place, name = tempfile.mkstemp(dir=file.parent, prefix=".")
        try:
            with os.fdopen(place, "wb") as draft:
                draft.write(content)
            Path(name).replace(file)
        except BaseException:  # a user who ends the run leaves no half of a file either
            Path(name).unlink(missing_ok=True)
            raise
        others = sorted(file.parent.glob(f"*{file.suffix}"), key=lambda one: one.stat().st_mtime, reverse=True)
        taken = 0
        for index, other in enumerate(others):
            taken += other.stat().st_size
            if index >= most or (index > 0 and taken > MOST_BYTES):
                other.unlink(missing_ok=True)


def found(file: Path) -> bytes | None:
    """Reads a file of a cache folder, which counts as a use; None if it isn't there or cannot be read."""
    try:
        content = file.read_bytes()
    except OSError:
        return None
    with contextlib.suppress(OSError):
        os.utime(file)
    return content
