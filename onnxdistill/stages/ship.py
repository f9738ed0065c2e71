"""Stage `ship`: a run folder that is either whole or not there."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from types import TracebackType

from onnxdistill.errors import OutputError


class RunFolder:
    """A folder that is filled under a temporary name and takes its own name only when it is complete.

    Use it as a context manager: leaving the block without `ship` removes what was written, and an earlier run
    under the same name stays as it was.

    Args:
        path: The name that the finished folder gets. If it exists, it has to be an earlier run's folder.

    Raises:
        OutputError: If the place cannot be written, or holds something else than a run.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        _refuse_foreign(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.work = Path(tempfile.mkdtemp(prefix=f".{path.name}.partial-", dir=path.parent))
        except OSError as error:
            raise OutputError(
                f"The run folder {path} cannot be written: {error.strerror}.",
                "Give a place that can be written with --out.",
            ) from error
        self.work.chmod(0o777 & ~_umask())  # mkdtemp lets nobody else read

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self.work, ignore_errors=True)

    def ship(self, path: Path | None = None) -> Path:
        """Gives the folder its name; an earlier run of that name is replaced in the same moment.

        Args:
            path: Another name than the one planned.
        """
        target = path or self.path
        _refuse_foreign(target)
        retired = self.work.with_name(self.work.name.replace(".partial-", ".retired-"))
        try:
            if target.exists():
                target.rename(retired)
            self.work.rename(target)
        except OSError as error:
            if retired.exists() and not target.exists():
                retired.rename(target)
            raise OutputError(
                f"The run folder {target} cannot be written: {error.strerror}.",
                "Give another place with --out.",
            ) from error
        shutil.rmtree(retired, ignore_errors=True)
        return target


def _refuse_foreign(path: Path) -> None:
    """A folder of the user's own that happens to have this name is not ours to replace."""
    if path.exists() and not path.is_dir():
        raise OutputError(f"{path} is a file, not a folder.", "Give another place with --out.")
    if path.is_dir() and any(path.iterdir()) and not (path / "report.json").is_file():
        raise OutputError(
            f"{path} exists and is not the folder of an earlier run (it has no report.json).",
            "Give an empty or new folder with --out.",
        )


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
