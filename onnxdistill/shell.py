"""What is around a run, whatever its stages: folders, the console and the log file, and whether the student ships."""

from __future__ import annotations

import tempfile
import traceback
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import rich.console
from rich.console import Console

from onnxdistill.errors import FallbackError, LimitsMissedError, ResultError, UsageError, explained, memory_error
from onnxdistill.eventfiles import EventFilesProgress
from onnxdistill.journal import Journal
from onnxdistill.logfile import LoggedProgress, check_log_place
from onnxdistill.progress import ConsoleProgress, Progress, SilentProgress
from onnxdistill.report import Report
from onnxdistill.report.table import limit_text, render_report
from onnxdistill.scratch import scratch_folder
from onnxdistill.stages.ship import RunFolder


@dataclass(frozen=True)
class Shell:
    """The surroundings of one run; `opened` makes them.

    Attributes:
        name: Of the run.
        folder: The run folder.
        scratch: A folder for the files on the way.
        journal: What the run need not do again if it is ended.
        progress: Tells the console and the log file.
        screen: The part of `progress` that the console shows.
        console: None to be silent.
        memory_keys: Of the recipe, that a smaller value may help of if memory does not suffice.
    """

    name: str
    folder: RunFolder
    scratch: Path
    journal: Journal
    progress: Progress
    screen: ConsoleProgress | SilentProgress
    console: Console | None
    memory_keys: str

    @contextmanager
    def running(self) -> Iterator[None]:
        """Around the stages: progress is shown, and how to go on is told where they end on the way."""
        try:
            with self.screen:
                yield
        except (KeyboardInterrupt, SystemExit, UsageError, FallbackError):
            self._tell_how_to_go_on()
            raise
        except OSError as error:
            if not _is_of_console(error):
                self._tell_how_to_go_on()
            raise
        except ResultError:
            if self.console is not None and self.journal.holds_trainings:
                self.console.print("What was trained is kept for another try with the same --out.")
            raise
        except Exception as error:  # what a user's code raises may come from a lack of memory
            if (known := memory_error(error, self.memory_keys)) is None:
                raise
            self._tell_how_to_go_on()
            raise known from error

    def _tell_how_to_go_on(self) -> None:
        if self.console is not None and self.journal.holds_something:
            self.console.print("Ended on the way. The same command goes on from here.")

    def deliver(self, report: Report, advice: str) -> None:
        """Gives the run folder its name, shows the closing table, and says where the student is.

        Args:
            report: Of the run.
            advice: What to do if a limit was missed.

        Raises:
            LimitsMissedError: If the student misses a limit; the folder has another name then.
        """
        # First of all: a console that cannot be written any more must not cost hours of training.
        shipped = self.folder.ship(missed=not report.shipped)
        self.journal.delivered = True
        if self.console is not None:
            self.console.print()
            self.console.print(render_report(report))
        if not report.shipped:
            missed = "; ".join(limit_text(check) for check in report.limits if check.met is False)
            raise LimitsMissedError(
                f"The student of {self.name} does not ship: {missed}.",
                f"What was made lies in {shipped}. {advice}",
            )
        if self.console is not None:
            files = (shipped / "student.onnx", shipped / "report.html")
            self.console.print("", *files, sep="\n", highlight=False, soft_wrap=True)


@contextmanager
def opened(
    name: str,
    sources: Iterable[Path],
    target: Path,
    console: Console | None,
    log_file: Path | None,
    tensorboard: Path | None = None,
    *,
    memory_keys: str,
) -> Iterator[Shell]:
    """Opens what a run needs around it; at the end of the block, nothing is left but what was delivered.

    Args:
        name: Of the run.
        sources: Files that it reads.
        target: The run folder.
        console: Shows progress; None is silent.
        log_file: Gets a line of JSON for everything that happens; see `LoggedProgress`.
        tensorboard: Folder that gets the trainings' curves; see `EventFilesProgress`.
        memory_keys: See `Shell`.

    Raises:
        OutputError: If a place cannot be written, or holds something else.
    """
    screen = SilentProgress() if console is None else ConsoleProgress(console)
    with ExitStack() as stack:
        progress: Progress = screen
        if log_file is not None:
            check_log_place(log_file, sources, target)
            progress = stack.enter_context(LoggedProgress(progress, log_file, name))
        if tensorboard is not None:
            check_log_place(tensorboard, sources, target)
            progress = stack.enter_context(EventFilesProgress(progress, tensorboard))
        folder = stack.enter_context(RunFolder(target))
        scratch = stack.enter_context(_scratch())
        journal = stack.enter_context(Journal(target))
        yield Shell(name, folder, scratch, journal, progress, screen, console, memory_keys)


@contextmanager
def _scratch() -> Iterator[Path]:
    """A folder for the files on the way; a disk that is full is explained."""
    try:
        with scratch_folder() as folder:
            yield folder
    except OSError as error:
        if _is_of_console(error):
            raise
        raise explained(error, f"A file in {tempfile.gettempdir()}") from error


def _is_of_console(error: OSError) -> bool:
    """Whether it came up where the console is written."""
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    return any(frame.f_code.co_filename == rich.console.__file__ for frame in frames)
