"""Benchmarks and findings on a console: a terminal of any width, a pipe, or a file."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from types import TracebackType

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from onnxdistill.device.doctor import Finding
from onnxdistill.device.loading.openloop import OpenLoopResult
from onnxdistill.device.loading.search import RateSearch
from onnxdistill.device.measuring.statistics import Estimate
from onnxdistill.device.numbertext import DASH, number, size_text
from onnxdistill.device.profiling.profiles import CaseProfile
from onnxdistill.device.profiling.roofline import OP_TYPE_COLUMNS
from onnxdistill.device.result import BenchResult, CaseTiming
from onnxdistill.device.runtime import short_name

_NAME_WIDTH = 8
_UNBOUNDED = 1000
_OUTCOMES = {"met": "green", "missed": "bold red", "unclear": "yellow"}
_STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}
_REFRESH_S = 0.2


def show_bench(result: BenchResult, console: Console) -> None:
    """Prints the conditions, a row per case, what was compared with what, and what is doubtful."""
    console.print(Text(_machine(result)))
    console.print(Text(_conditions(result)))
    console.print()
    console.print(_fitting(console, [_wide_table(result), _table(result), _narrow_table(result)]))
    if result.loads:
        console.print()
        console.print(_fitting(console, [_loads(result, narrow=False), _loads(result, narrow=True)]))
    for profile in result.profiles:
        console.print()
        console.print(Text(f"{profile.case}: where the time goes", style="bold"))
        console.print(_op_types(profile))
        for finding in profile.audit.findings:
            console.print(Text(f"· {finding.text} {finding.fix}"))
    lines: list[tuple[str, str, str]] = [("", "outputs", str(agreement)) for agreement in result.agreements]
    lines += [(_OUTCOMES[verdict.outcome], verdict.outcome, str(verdict)) for verdict in result.verdicts]
    lines += [("yellow", "shaky", note) for note in result.doubts()]
    lines += [("yellow", "shaky", f"{one.case}: {note}") for one in result.profiles for note in one.profile.doubts]
    if lines:
        grid = Table.grid(padding=(0, 2))
        grid.add_column(no_wrap=True)
        grid.add_column(overflow="fold")
        for style, kind, text in lines:
            grid.add_row(Text(kind, style=style), Text(text))
        console.print()
        console.print(grid)


def _fitting(console: Console, tables: Sequence[Table]) -> Table:
    """The first table that the console is wide enough for; the last in any case."""
    unbounded = console.options.update(width=_UNBOUNDED)
    fits = (table for table in tables if console.measure(table, options=unbounded).minimum <= console.width)
    return next(fits, tables[-1])


def _machine(result: BenchResult) -> str:
    host = result.host
    features = f" ({', '.join(host.int8_features)})" if host.int8_features else ""
    parts = [f"{host.cpu}, {host.usable_cpus} usable CPUs{features}", *host.gpus, host.os]
    return "; ".join([*parts, f"ONNX Runtime {host.onnxruntime}"])


def _conditions(result: BenchResult) -> str:
    """What all cases have in common."""
    first = result.cases[0]
    parts = []
    if len({case.provider for case in result.cases}) == 1:
        parts.append(short_name(first.provider))
    if len({case.threads for case in result.cases}) == 1:
        parts.append(f"{first.threads} thread{'s' if first.threads > 1 else ''}")
    if len({case.batch for case in result.cases}) == 1:
        parts.append(f"batch {first.batch}")
    calls, openings = first.latency_ms.count, len(first.times_ms)
    each = "each" if len(result.cases) > 1 else "it"
    opened = f", in {openings} openings" if openings > 1 else ""
    parts.append(f"{calls:,} timed call{'s' if calls > 1 else ''} of {each}{opened}")
    return ", ".join(parts)


def _wide_table(result: BenchResult) -> Table:
    table = _empty_table(
        "size", "memory", "load\nms", "median\nms", "±\n%", "p90\nms", "p95\nms", "p99\nms", "p99.9\nms", "items/s"
    )
    _add_speedups(
        table,
        result,
        " ",
        lambda case: [
            size_text(case.size_bytes),
            DASH if case.memory is None else size_text(case.memory.process_bytes),
            number(case.load_ms),
            *_latencies(case, spread=True),
            number(case.throughput_per_s),
        ],
    )
    return table


def _table(result: BenchResult) -> Table:
    table = _empty_table("size", "median\nms", "p90\nms", "p95\nms", "p99\nms", "items/s")
    _add_speedups(
        table,
        result,
        "\n",
        lambda case: [size_text(case.size_bytes), *_latencies(case, spread=False), number(case.throughput_per_s)],
    )
    return table


def _narrow_table(result: BenchResult) -> Table:
    """What a comparison is made for; the rest needs a wider terminal, or --json."""
    table = _empty_table("median\nms", "p95\nms")
    _add_speedups(
        table, result, "\n", lambda case: [number(case.latency_ms.median.value), _figure(case.latency_ms.p95)]
    )
    return table


def _empty_table(*headings: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False)
    table.add_column("model", overflow="fold", min_width=_NAME_WIDTH)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _add_speedups(
    table: Table, result: BenchResult, between: str, cells: Callable[[CaseTiming], Sequence[str]]
) -> None:
    """Adds a row a case, with a last column if there is something to compare."""
    compared = any(not case.is_baseline for case in result.cases)
    if compared:
        table.add_column("speed-up\n(95 %)", justify="right", no_wrap=True)
    for case in result.cases:
        table.add_row(escape(case.name), *cells(case), *([_speedup(case, between)] if compared else []))


def _latencies(case: CaseTiming, *, spread: bool) -> list[str]:
    latency_ms = case.latency_ms
    middle = [number(latency_ms.median.value)]
    tail = [latency_ms.p90, latency_ms.p95, latency_ms.p99]
    if spread:
        middle.append(f"{100 * latency_ms.median.uncertainty:.1f}")
        tail.append(latency_ms.p999)
    return [*middle, *map(_figure, tail)]


def _speedup(case: CaseTiming, between: str) -> str:
    if case.is_baseline:
        return "baseline"
    ratio = case.speedup
    interval = f"{ratio.low:.2f}-{ratio.high:.2f}"
    return f"{ratio.value:.2f}x{between}{f'({interval})' if between == ' ' else interval}"


def _loads(result: BenchResult, *, narrow: bool) -> Table:
    """The cases under load; of a search, the highest rate that was measured to hold."""
    wide = [] if narrow else ["clients", "busy"]
    table = _empty_table("asked\n/s", "done\n/s", *wide, "median\nms", "p99\nms", *([] if narrow else ["p99.9\nms"]))
    for load in result.loads:
        one = load.result
        if isinstance(one, RateSearch):
            at_p99 = next((probe.latency_ms for probe in one.probes if probe.rate_per_s == one.rate_per_s), None)
            found = "none" if one.rate_per_s is None else number(one.rate_per_s)
            limited = [DASH, number(at_p99)] if one.percent == 99 else [DASH, DASH]
            cells = ["max", found, *([] if narrow else [str(one.clients), DASH]), *limited, *([] if narrow else [DASH])]
        else:
            latency_ms = load.latency_ms()
            assert latency_ms is not None
            if isinstance(one, OpenLoopResult):
                asked, done, busy = number(one.rate_per_s), one.achieved_per_s, f"{one.utilization:.0%}"
            else:
                asked, done, busy = DASH, one.throughput_per_s, DASH
            tail = [number(latency_ms.median.value), _figure(latency_ms.p99)]
            cells = [asked, number(done), *([] if narrow else [str(one.clients), busy]), *tail]
            cells += [] if narrow else [_figure(latency_ms.p999)]
        table.add_row(escape(load.case), *cells)
    return table


def _op_types(profile: CaseProfile) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False)
    for index, heading in enumerate(OP_TYPE_COLUMNS):
        table.add_column(heading, justify="right" if index else "left", no_wrap=bool(index), overflow="fold")
    for row in profile.profile.op_type_rows():
        table.add_row(*map(escape, row))
    return table


def _figure(estimate: Estimate | None) -> str:
    return number(None if estimate is None else estimate.value)


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
