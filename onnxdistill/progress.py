"""What a running compression tells the world, and how a console shows it."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Protocol

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from onnxdistill.training.records import TrainingStatus

NAME_WIDTH = 10
_WIDE_COLUMNS = 100


class Progress(Protocol):
    """Listens to a running compression."""

    def begin(self, stage: str, text: str) -> None:
        """A stage starts."""
        ...

    def update(self, text: str, share: float | None = None, remaining_s: float | None = None) -> None:
        """The stage goes on: what it does, which share is done, how long it will take."""
        ...

    def training(self, status: TrainingStatus, metric_unit: str) -> None:
        """The stage trains a network, and this is where it stands."""
        ...

    def end(self, summary: str, score: str = "") -> None:
        """The stage is done."""
        ...

    def note(self, text: str) -> None:
        """Something that the user should know now."""
        ...

    def noted(self, text: str) -> None:
        """Something that the report will say."""
        ...


class SilentProgress:
    """Says nothing."""

    def begin(self, stage: str, text: str) -> None:
        """See `Progress.begin`."""

    def update(self, text: str, share: float | None = None, remaining_s: float | None = None) -> None:
        """See `Progress.update`."""

    def training(self, status: TrainingStatus, metric_unit: str) -> None:
        """See `Progress.training`."""

    def end(self, summary: str, score: str = "") -> None:
        """See `Progress.end`."""

    def note(self, text: str) -> None:
        """See `Progress.note`."""

    def noted(self, text: str) -> None:
        """See `Progress.noted`."""

    def __enter__(self) -> SilentProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


class RelayedProgress:
    """Passes everything on to another progress; what listens as well extends it."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def begin(self, stage: str, text: str) -> None:
        """See `Progress.begin`."""
        self._progress.begin(stage, text)

    def update(self, text: str, share: float | None = None, remaining_s: float | None = None) -> None:
        """See `Progress.update`."""
        self._progress.update(text, share, remaining_s)

    def training(self, status: TrainingStatus, metric_unit: str) -> None:
        """See `Progress.training`."""
        self._progress.training(status, metric_unit)

    def end(self, summary: str, score: str = "") -> None:
        """See `Progress.end`."""
        self._progress.end(summary, score)

    def note(self, text: str) -> None:
        """See `Progress.note`."""
        self._progress.note(text)

    def noted(self, text: str) -> None:
        """See `Progress.noted`."""
        self._progress.noted(text)


class ConsoleProgress:
    """A line a finished stage, and beneath them the running one; without a terminal, only finished lines.

    Args:
        console: Where the lines go.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, refresh_per_second=8, transient=True)
        self._stage = ""
        self._started = 0.0
        self._spinner = Spinner("dots")
        self._last_plain = 0.0

    def __enter__(self) -> ConsoleProgress:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.update(Text())
        self._live.stop()

    def begin(self, stage: str, text: str) -> None:
        """See `Progress.begin`."""
        self._stage, self._started = stage, time.monotonic()
        self._last_plain = self._started
        self.update(text)

    def update(self, text: str, share: float | None = None, remaining_s: float | None = None) -> None:
        """See `Progress.update`; without a terminal, a line every half minute."""
        if self._console.is_terminal:
            self._live.update(self._running(text, share, remaining_s))
        elif time.monotonic() - self._last_plain > 30:
            self._last_plain = time.monotonic()
            left = "" if remaining_s is None else f", {clock(remaining_s)} left"
            line = Text(f"{self._stage:{NAME_WIDTH}} … {text}{left}")  # names may have brackets
            self._console.print(line, highlight=False, soft_wrap=True)

    def training(self, status: TrainingStatus, metric_unit: str) -> None:
        """See `Progress.training`."""
        part = f"{status.part}, " if status.part else ""
        if status.looked is not None:
            text = f"{part}epoch {status.epoch}/{status.epochs}, the teacher looks at its images"
            self.update(text, status.looked)
            return
        # The most telling first: a narrow terminal cuts the rest.
        text = (
            f"{part}epoch {status.epoch}/{status.epochs}, validation {status.score:.2f} {metric_unit}, "
            f"loss {status.loss:.3f}, rate {status.learning_rate:.2g}, {status.samples_per_s:.0f}/s"
        )
        self.update(text, (status.epoch - 1 + status.step / status.steps) / status.epochs, status.remaining_s)

    def end(self, summary: str, score: str = "") -> None:
        """See `Progress.end`."""
        seconds = time.monotonic() - self._started
        line = Text.assemble(
            (f"{self._stage:{NAME_WIDTH}} ", "bold"),
            ("✓ ", "green"),
            summary,
            (f"  {score}" if score else "", "cyan"),
            (f"  {seconds:.1f} s", "dim"),
        )
        self._console.print(line, highlight=False, soft_wrap=True)

    def note(self, text: str) -> None:
        """See `Progress.note`."""
        self._console.print(Text(f"{'':{NAME_WIDTH}} · {text}", style="yellow"), highlight=False, soft_wrap=True)

    def noted(self, text: str) -> None:
        """See `Progress.noted`; it is shown with the report."""

    def _running(self, text: str, share: float | None, remaining_s: float | None) -> Table:
        grid = Table.grid(padding=(0, 1))
        cells: list[RenderableType] = [Text(f"{self._stage:{NAME_WIDTH}}", style="bold"), self._spinner]
        if share is not None and self._console.width >= _WIDE_COLUMNS:
            cells.append(ProgressBar(total=1.0, completed=share, width=20))
        if share is not None:
            cells.append(Text(f"{share:4.0%}"))
        cells.append(Text(text, no_wrap=True, overflow="ellipsis"))
        if remaining_s is not None:
            cells.append(Text(f"{clock(remaining_s)} left", style="dim", no_wrap=True))
        grid.add_row(*cells)
        return grid


def clock(seconds: float) -> str:
    """Seconds as `m:ss` or `h:mm:ss`."""
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    minutes, left = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{left:02}" if hours else f"{minutes}:{left:02}"
