"""What a run that was ended need not do again: trainings up to their last checkpoint, ratios, and what hung on times.

Everything else is computed again, to the same result. An entry holds only for what it was made from: a training for
its networks, data and settings, a ratio for the bytes of its two files. A journal of another recipe does no harm.
"""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from filelock import FileLock, Timeout

from onnxdistill.device.measuring.statistics import Estimate
from onnxdistill.errors import FallbackError, OutputError, ResultError, cannot_write

_LOCK, _RATIOS, _DECISIONS = "lock", "ratios.json", "decisions.json"
_NAMES = (_LOCK, _RATIOS, _DECISIONS, "teacher.pt", "distill.pt", "quantize.pt")
_AFTER_CUTS = "plan-*.pt"


class Journal:
    """A folder beside the run folder. Use it as a context manager.

    It goes when the run has come to its end, or has delivered a student that misses its limits; it stays when the run
    is ended, or stopped by something that can be put right, such as a full disk. Of a result that is refused without a
    student, such as limits that are out of reach, only trainings stay: measured again, they may be in reach. If another
    process works on the same run folder, nothing is kept.

    Args:
        target: The run folder; the journal is `.NAME.resume` beside it.

    Attributes:
        delivered: To be set when what was made is at its place.

    Raises:
        OutputError: If the folder cannot be made, or its name leads elsewhere.
    """

    def __init__(self, target: Path) -> None:
        real = Path(os.path.realpath(target))
        self._folder = real.parent / f".{real.name}.resume"
        if self._folder.is_symlink():
            raise OutputError(f"{self._folder} is a symbolic link.", "Remove it, or give another --out.")
        try:
            self._folder.mkdir(exist_ok=True)
            self._lock = FileLock(self._folder / _LOCK, timeout=0)
        except OSError as error:
            raise cannot_write(self._folder, error) from error
        self.delivered = False
        self._ours = False
        self._ratios: dict[str, dict[str, float | None]] = {}
        self._decisions: dict[str, Any] = {}

    def __enter__(self) -> Journal:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self._lock.acquire()
            self._ours = True
            self._ratios = _read(self._folder / _RATIOS)
            self._decisions = _read_decisions(self._folder / _DECISIONS)
        except Timeout:
            pass
        except (OSError, NotImplementedError):  # no locks there, or none now: what an earlier run has kept stays
            with contextlib.suppress(OSError):
                if {path.name for path in self._folder.iterdir()} <= {_LOCK}:
                    self._remove()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._ours:
            return
        # A provider that has failed may be mended, and what was timed until then is as good.
        if kind is not None and issubclass(kind, ResultError) and not issubclass(kind, FallbackError):
            for name in (_RATIOS, _DECISIONS):
                with contextlib.suppress(OSError):
                    (self._folder / name).unlink()
        if kind is None or self.delivered or not self.holds_something:
            self._remove()
        self._lock.release()

    def _remove(self) -> None:
        """Takes away what is ours; what somebody else put there stays, with the folder."""
        fixed = [self._folder / file for name in _NAMES for file in (name, f"{name}.new")]
        for file in (*fixed, *self._folder.glob(_AFTER_CUTS), *self._folder.glob(f"{_AFTER_CUTS}.new")):
            with contextlib.suppress(OSError):
                file.unlink()
        with contextlib.suppress(OSError):
            self._folder.rmdir()

    @property
    def notes(self) -> list[str]:
        """What the user shall know of it."""
        if self._ours:
            return []
        return [f"If this run is ended, it begins anew: {self._folder.name} is another run's, or cannot be locked."]

    @property
    def holds_something(self) -> bool:
        """Whether a run that starts now would save time."""
        found = [*(self._folder / name for name in _NAMES if name != _LOCK), *self._folder.glob(_AFTER_CUTS)]
        return self._ours and any(path.exists() for path in found)

    @property
    def holds_trainings(self) -> bool:
        """Whether there is one that a run which starts now could go on from."""
        return self._ours and any(self._folder.glob("*.pt"))

    def checkpoint(self, stage: Literal["teacher", "distill", "quantize"]) -> Path | None:
        """Where the training of a stage keeps its state; None if nothing is kept."""
        return self._folder / f"{stage}.pt" if self._ours else None

    def checkpoint_of_cut(self, cut: int) -> Path | None:
        """Where the training after a cut of a plan, from 1, keeps its state; None if nothing is kept."""
        return self._folder / _AFTER_CUTS.replace("*", str(cut)) if self._ours else None

    def ratio(self, key: str, measure: Callable[[], Estimate]) -> Estimate:
        """What was measured under that key, or else what `measure` gives.

        Decisions hang on it: measured again, a close one might go the other way, and the training would not fit.
        """
        if key not in self._ratios:
            self._ratios[key] = measure().to_json()
            self._keep(_RATIOS, self._ratios)
        return Estimate.from_json(self._ratios[key])

    def decision(self, key: str, decide: Callable[[], Any]) -> Any:
        """What was decided under that key, or else what `decide` gives; plain values for `json.dump`.

        For what hangs on times, and would come out otherwise if it were measured again.
        """
        if key not in self._decisions:
            self._decisions[key] = decide()
            self._keep(_DECISIONS, self._decisions)
        return self._decisions[key]

    def _keep(self, name: str, values: Mapping[str, Any]) -> None:
        if self._ours:
            fresh = self._folder / f"{name}.new"
            with contextlib.suppress(OSError):  # a help that is missed only if the run is ended
                fresh.write_text(json.dumps(values), encoding="utf-8")
                fresh.replace(self._folder / name)


def _read(path: Path) -> dict[str, dict[str, float | None]]:
    try:
        ratios = json.loads(path.read_text(encoding="utf-8"))
        return {key: Estimate.from_json(value).to_json() for key, value in ratios.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _read_decisions(path: Path) -> dict[str, Any]:
    try:
        decisions = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return decisions if isinstance(decisions, dict) else {}
