"""Event files of a running compression, which TensorBoard draws."""

from __future__ import annotations

import importlib
import os
import socket
import time
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from onnxdistill.errors import MissingPackageError, cannot_write
from onnxdistill.progress import Progress, RelayedProgress
from onnxdistill.training.records import TrainingStatus


class EventFilesProgress(RelayedProgress):
    """Passes everything on to another progress, and writes the trainings' curves. Use it as a context manager.

    Each stage that trains has `loss`, `learning_rate` and `samples_per_s` by steps, and `score` by epochs; what is
    noted, and what every stage came to, is text. A run that goes on adds a file, and TensorBoard joins the curves. When
    nothing can be written any more, the run goes on without.

    Args:
        progress: Gets everything, too.
        folder: Of the event files; made if it isn't there.

    Raises:
        MissingPackageError: If tensorboard is not installed.
        OutputError: If the folder cannot be written.
    """

    def __init__(self, progress: Progress, folder: Path) -> None:
        super().__init__(progress)
        self._stage = ""
        self._notes = 0
        try:
            self._records: Any = importlib.import_module("tensorboard.summary.writer.record_writer")
            self._events: Any = importlib.import_module("tensorboard.compat.proto.event_pb2")
            self._summaries: Any = importlib.import_module("torch.utils.tensorboard.summary")
        except ImportError as error:
            raise MissingPackageError(
                "--tensorboard needs the package tensorboard, which is not installed.",
                "pip install tensorboard, or leave --tensorboard out.",
            ) from error
        path = folder / f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # Unbuffered, and in this thread: a full disk says so to who writes.
            self._file: IO[bytes] | None = path.open("wb", buffering=0)
            self._write(file_version="brain.Event:2")
        except OSError as error:
            raise cannot_write(folder, error) from error

    def __enter__(self) -> EventFilesProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def begin(self, stage: str, text: str) -> None:
        """See `Progress.begin`."""
        super().begin(stage, text)
        self._stage = stage

    def training(self, status: TrainingStatus, metric_unit: str) -> None:
        """See `Progress.training`."""
        super().training(status, metric_unit)
        if status.looked is not None:
            return
        training = f"{self._stage}, {status.part}" if status.part else self._stage
        step = (status.epoch - 1) * status.steps + status.step
        figures = {"loss": status.loss, "learning_rate": status.learning_rate, "samples_per_s": status.samples_per_s}
        for tag, value in ({"score": status.score} if status.epoch_done else figures).items():
            self._add(self._summaries.scalar(f"{training}/{tag}", value), step)

    def end(self, summary: str, score: str = "") -> None:
        """See `Progress.end`."""
        super().end(summary, score)
        self._add(self._summaries.text(self._stage, f"{summary} {score}".strip()), 0)

    def note(self, text: str) -> None:
        """See `Progress.note`."""
        super().note(text)
        self._add_note(text)

    def noted(self, text: str) -> None:
        """See `Progress.noted`."""
        super().noted(text)
        self._add_note(text)

    def _add_note(self, text: str) -> None:
        self._add(self._summaries.text("notes", text), self._notes)
        self._notes += 1

    def _add(self, summary: Any, step: int) -> None:
        if self._file is None:
            return
        try:
            self._write(summary=summary, step=step)
        except OSError as error:
            self._file.close()
            self._file = None
            self._progress.note(f"TensorBoard's file could not be written ({error.strerror}), and the run goes on")

    def _write(self, **fields: Any) -> None:
        event = self._events.Event(wall_time=time.time(), **fields)
        self._records.RecordWriter(self._file).write(event.SerializeToString())
