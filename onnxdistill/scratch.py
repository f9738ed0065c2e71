"""A folder for the files on the way to a result. What a run leaves behind that was killed, a later one takes away."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import stat
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

# Locks may hold on one machine alone, and several may share their temporary files.
_PREFIX, _LOCK = f"onnxdistill-run-{re.sub(r'[^0-9A-Za-z.-]', '-', platform.node())}-", "lock"

# A folder that was just made may not be locked yet.
_NEW_SECONDS = 60.0


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A new folder among the temporary files, which goes at the end of the block.

    It is locked as long as the process lives, however that ends: what nobody has locked is nobody's, and goes first.
    """
    _sweep()
    with tempfile.TemporaryDirectory(prefix=_PREFIX) as name:
        lock = FileLock(Path(name) / _LOCK, timeout=0)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                lock.acquire()
        except (OSError, NotImplementedError):  # without a lock, it stays after a kill, and nobody may take it away
            Path(name, _LOCK).unlink(missing_ok=True)
        try:
            yield Path(name)
        finally:
            lock.release()


def _sweep() -> None:
    """Removes folders of processes that are gone; those of other users, and what cannot be removed, stay."""
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*/{_LOCK}"):
        with contextlib.suppress(OSError, NotImplementedError):  # also a lock that somebody holds
            if _is_ours(path.parent) and time.time() - path.stat().st_mtime > _NEW_SECONDS:
                with warnings.catch_warnings(), FileLock(path, timeout=0):
                    shutil.rmtree(path.parent, ignore_errors=True)


def _is_ours(folder: Path) -> bool:
    """Whether nobody else, nor another machine, can have put it there: among the temporary files, everybody may."""
    found = folder.lstat()
    # The name of another machine may begin with that of this one; what `tempfile` adds has no hyphen.
    return (
        re.fullmatch(r"\w+", folder.name.removeprefix(_PREFIX)) is not None
        and stat.S_ISDIR(found.st_mode)
        and (os.name == "nt" or found.st_uid == os.getuid())
    )
