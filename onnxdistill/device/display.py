"""Benchmarks and findings on a console: a terminal of any width, a pipe, or a file."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from onnxdistill.device.doctor import Finding
from onnxdistill.device.result import BenchResult, ModelTiming
from onnxdistill.device.runtime import short_name

_WIDE_COLUMNS = 100
_NAME_WIDTH = 8
_UNBOUNDED = 1000
_STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}
_REFRESH_S = 0.2


def show_bench(result: BenchResult, console: Console) -> None:
    """Prints the conditions, a row per model, and what is doubtful."""
    console.print(Text(_machine(result)))
    console.print(Text(_conditions(result)))
    table = _table(result, console.width >= _WIDE_COLUMNS)
    if console.measure(table, options=console.options.update(width=_UNBOUNDED)).minimum > console.width:
        table = _narrow_table(result)
    console.print()
    console.print(table)
    if notes := result.doubts():
        grid = Table.grid(padding=(0, 2))
        grid.add_column(style="yellow", no_wrap=True)
        grid.add_column(overflow="fold")
        for note in notes:
            grid.add_row("shaky", Text(note))
        console.print()
        console.print(grid)


def _machine(result: BenchResult) -> str:
    host = result.host
    features = f" ({', '.join(host.int8_features)})" if host.int8_features else ""
    return f"{host.cpu}, {host.usable_cpus} usable CPUs{features}; {host.os}; ONNX Runtime {host.onnxruntime}"


def _conditions(result: BenchResult) -> str:
    settings = result.settings
    calls = settings.rounds * settings.calls_per_round
    threads = f"{settings.threads} thread{'s' if settings.threads > 1 else ''}"
    where = f"{short_name(settings.provider)}, {threads}, batch {settings.batch}"
    return f"{where}, {calls:,} timed call{'s' if calls > 1 else ''} of each model"


def _table(result: BenchResult, wide: bool) -> Table:
    table = _empty_table("size", "median\nms", "p90\nms", "p95\nms", "p99\nms", "items/s")
    compared = len(result.models) > 1
    if compared:
        table.add_column("speed-up\n(95 %)", justify="right", no_wrap=True)
    for model in result.models:
        latency_ms = model.latency_ms
        times = (_number(value) for value in (latency_ms.median, latency_ms.p90, latency_ms.p95, latency_ms.p99))
        cells = [size_text(model.size_bytes), *times, _number(model.throughput_per_s)]
        speedup = [_speedup(model, result.settings.baseline, " " if wide else "\n")] if compared else []
        table.add_row(escape(model.name), *cells, *speedup)
    return table


def _narrow_table(result: BenchResult) -> Table:
    """What a comparison is made for; the rest needs a wider terminal, or --json."""
    table = _empty_table("median\nms", "p95\nms", *(["speed-up\n(95 %)"] if len(result.models) > 1 else []))
    for model in result.models:
        cells = [_number(model.latency_ms.median), _number(model.latency_ms.p95)]
        if len(result.models) > 1:
            cells.append(_speedup(model, result.settings.baseline, "\n"))
        table.add_row(escape(model.name), *cells)
    return table


def _empty_table(*headings: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False)
    table.add_column("model", overflow="fold", min_width=_NAME_WIDTH)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _speedup(model: ModelTiming, baseline: str, between: str) -> str:
    if model.name == baseline:
        return "baseline"
    ratio = model.speedup
    interval = f"{ratio.low:.2f}-{ratio.high:.2f}"
    return f"{ratio.value:.2f}x{between}{f'({interval})' if between == ' ' else interval}"


def _number(value: float | None) -> str:
    """Four significant digits without an exponent; a dash where there is no number."""
    if value is None:
        return "-"
    if value >= 1000:
        return f"{value:,.0f}"
    digits = next((digits for limit, digits in ((100, 1), (10, 2), (1, 3)) if value >= limit), 4)
    return f"{value:.{digits}f}"


def size_text(size_bytes: int) -> str:
    """A size with a decimal unit and three digits, as `"27.6 kB"`."""
    size, unit = float(size_bytes), "B"
    for larger in ("kB", "MB", "GB"):
        if size < 999.5:
            break
        size, unit = size / 1000, larger
    digits = 0 if unit == "B" or size >= 99.95 else 1 if size >= 9.995 else 2
    return f"{size:.{digits}f} {unit}"


def show_findings(findings: Sequence[Finding], console: Console) -> None:
    """Prints a line per finding, with the fix beneath, and a last line that counts them."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        text = Text(finding.text)
        if finding.fix:
            text.append(f"\n{finding.fix}", style="dim" if finding.level == "ok" else "bold")
        table.add_row(Text(finding.level, style=_STYLES[finding.level]), Text(finding.subject), text)
    console.print(table)
    counts = [sum(finding.level == level for finding in findings) for level in ("fail", "warn")]
    console.print(f"\n{len(findings)} checks: {counts[0]} failed, {counts[1]} warning{'' if counts[1] == 1 else 's'}.")


class BenchProgress:
    """A progress bar for `bench`, a no-op where the console is not a terminal.

    It draws only when it is called, between timed rounds: a thread that redraws would disturb the timing.
    """

    def __init__(self, console: Console) -> None:
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TimeRemainingColumn(),
            console=console,
            auto_refresh=False,
            transient=True,
            disable=not console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        self._drawn_s = 0.0

    def __enter__(self) -> BenchProgress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()

    def __call__(self, phase: str, done: float, total: float) -> None:
        """Takes note of what is done, and redraws at most five times a second."""
        now = time.monotonic()
        if self._bar.disable or (now - self._drawn_s < _REFRESH_S and done < total):
            return
        self._drawn_s = now
        if phase not in self._tasks:
            for earlier in self._tasks.values():
                self._bar.update(earlier, visible=False)
            self._tasks[phase] = self._bar.add_task(phase, total=total)
        self._bar.update(self._tasks[phase], completed=done)
        self._bar.refresh()
