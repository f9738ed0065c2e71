"""A file of JSON lines that a running compression writes, for other programs to follow."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from onnxdistill.device.jsonfile import check_place
from onnxdistill.errors import OutputError, cannot_write
from onnxdistill.progress import Progress, RelayedProgress
from onnxdistill.training.records import TrainingStatus

STEP_INTERVAL_S = 5.0


def check_log_place(path: Path, inputs: Iterable[Path], run_folder: Path) -> None:
    """Makes sure, before any work is done, that a log would harm nothing.

    Args:
        path: The log file, or a folder of logs.
        inputs: Files that the run reads.
        run_folder: Where it will ship to, a folder that holds a run and nothing else.

    Raises:
        OutputError: If it is one of the inputs, or lies in the run folder.
    """
    real, folder = Path(os.path.realpath(path)), Path(os.path.realpath(run_folder))
    if any(path.exists() and one.is_file() and path.samefile(one) for one in inputs):
        raise OutputError(f"{path} is read by this run, and the log would be added to it.", "Name another file.")
    if any(real.is_relative_to(place) for place in (folder, folder.with_name(f"{folder.name}.missed"))):
        raise OutputError(
            f"{path} lies in the run folder {run_folder}, which holds a finished run and nothing else.",
            f"Name a place beside it, such as {run_folder}.log.",
        )


class LoggedProgress(RelayedProgress):
    """Passes everything on to another progress, and writes it down. Use it as a context manager.

    Every line has `time` (UTC), `event` and, but for the first and the last, `stage`. Events are `start`, `stage`,
    `step` (at most one in five seconds), `epoch`, `note`, `result`, and at the end `done` or `failed`. Lines are added
    to those that are there. When the file can no longer be written, the run goes on without it.

    Args:
        progress: Gets everything, too.
        path: The file.
        name: Of the run.

    Raises:
        OutputError: If the file cannot be opened.
    """

    def __init__(self, progress: Progress, path: Path, name: str) -> None:
        if not path.is_file():  # one that is there need not be replaced
            check_place(path)
        super().__init__(progress)
        self._name = name
        self._stage = ""
        self._last_step = 0.0
        try:
            # A pipe that nobody reads is an error rather than a run that waits for ever.
            place = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NONBLOCK", 0), 0o644)
            self._file: IO[bytes] | None = os.fdopen(place, "ab", buffering=0)
        except OSError as error:
            raise cannot_write(path, error) from error

    def __enter__(self) -> LoggedProgress:
        self._write("start", name=self._name)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stage = ""
        if error is None:
            self._write("done")
        else:
            ended = isinstance(error, SystemExit | KeyboardInterrupt)
            self._write("failed", error="ended from outside" if ended else str(error) or type(error).__name__)
        if self._file is not None:
            self._file.close()

    def begin(self, stage: str, text: str) -> None:
        """See `Progress.begin`."""
        super().begin(stage, text)
        self._stage, self._started = stage, time.monotonic()
        self._write("stage", text=text)

    def training(self, status: TrainingStatus, metric_unit: str) -> None:
        """See `Progress.training`."""
        super().training(status, metric_unit)
        figures: dict[str, float | str] = {
            **({"part": status.part} if status.part else {}),
            "epoch": status.epoch,
            "epochs": status.epochs,
            "step": status.step,
            "steps": status.steps,
            "loss": status.loss,
            "learning_rate": status.learning_rate,
            "samples_per_s": round(status.samples_per_s, 1),
            "remaining_s": round(status.remaining_s, 1),
        }
        if status.epoch_done:
            self._write("epoch", **figures, score=status.score, unit=metric_unit)
        elif status.looked is None and time.monotonic() - self._last_step > STEP_INTERVAL_S:
            self._last_step = time.monotonic()
            self._write("step", **figures)

    def end(self, summary: str, score: str = "") -> None:
        """See `Progress.end`."""
        super().end(summary, score)
        self._write("result", summary=summary, score=score or None, seconds=round(time.monotonic() - self._started, 1))

    def note(self, text: str) -> None:
        """See `Progress.note`."""
        super().note(text)
        self._write("note", text=text)

    def noted(self, text: str) -> None:
        """See `Progress.noted`."""
        super().noted(text)
        self._write("note", text=text)

    def _write(self, event: str, **figures: Any) -> None:
        if self._file is None:
            return
        stage = {"stage": self._stage} if self._stage else {}
        line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **stage, **figures}
        try:
            self._file.write(json.dumps(line).encode() + b"\n")
        except OSError as error:
            self._file.close()
            self._file = None
            self._progress.note(f"the log file could not be written ({error.strerror}), and the run goes on without it")
