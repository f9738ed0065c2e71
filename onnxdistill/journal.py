"""What a run that was ended need not do again: trainings up to their last checkpoint, and measured ratios.

Everything else is computed again, to the same result. An entry holds only for what it was made from: a training for
its networks, data and settings, a ratio for the bytes of its two files. A journal of another recipe does no harm.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from filelock import FileLock, Timeout

from onnxdistill.device.statistics import Ratio
from onnxdistill.errors import OnnxDistillError, cannot_write

_LOCK, _RATIOS = "lock", "ratios.json"


class Journal:
    """A folder beside the run folder. Use it as a context manager.

    It goes when the run ends by itself, well or with an error that is explained; it stays when the run is ended. If
    another process works on the same run folder, nothing is kept.

    Args:
        target: The run folder; the journal is `.NAME.resume` beside it.

    Raises:
        OutputError: If the folder cannot be made.
    """

    def __init__(self, target: Path) -> None:
        real = Path(os.path.realpath(target))
        self._folder = real.parent / f".{real.name}.resume"
        try:
            self._folder.mkdir(exist_ok=True)
            self._lock = FileLock(self._folder / _LOCK, timeout=0)
        except OSError as error:
            raise cannot_write(self._folder, error) from error
        self._ours = False
        self._ratios: dict[str, dict[str, float]] = {}

    def __enter__(self) -> Journal:
        try:
            self._lock.acquire()
            self._ours = True
            self._ratios = _read(self._folder / _RATIOS)
        except (Timeout, OSError):  # OSError: a file system without locks
            pass
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._ours:
            return
        done = kind is None or issubclass(kind, OnnxDistillError)
        if done or not self.holds_something:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._lock.release()

    @property
    def holds_something(self) -> bool:
        """Whether a run that starts now would save time."""
        return self._ours and any(entry.name != _LOCK for entry in self._folder.iterdir())

    def checkpoint(self, stage: str) -> Path | None:
        """Where the training of a stage keeps its state; None if nothing is kept."""
        return self._folder / f"{stage}.pt" if self._ours else None

    def ratio(self, key: str, measure: Callable[[], Ratio]) -> Ratio:
        """What was measured under that key, or else what `measure` gives.

        Decisions hang on it: measured again, a close one might go the other way, and the training would not fit.
        """
        if key not in self._ratios:
            self._ratios[key] = measure().to_json()
            if self._ours:
                fresh = self._folder / f"{_RATIOS}.new"
                fresh.write_text(json.dumps(self._ratios), encoding="utf-8")
                fresh.replace(self._folder / _RATIOS)
        return Ratio(**self._ratios[key])


def _read(path: Path) -> dict[str, dict[str, float]]:
    try:
        ratios = json.loads(path.read_text(encoding="utf-8"))
        return {key: Ratio(**value).to_json() for key, value in ratios.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
