"""Several students beside each other on a console."""

from __future__ import annotations

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from onnxdistill.report.front import FrontPoint, StudentFront
from onnxdistill.report.model import StageRow
from onnxdistill.report.table import latency, score_text

_NONE = "–"
_UNBOUNDED = 1000
# Columns of a narrow terminal.
_MOST_IMPORTANT = (0, 1, 4, 6)


def render_front(front: StudentFront) -> RenderableType:
    """A row a student, the teacher first; and why some are missing."""
    notes = [
        Text(f"· {point.asked_speedup:g}x: {point.note}", "dim") for point in front.points if point.student is None
    ]
    title = Text(f"{front.name}: {front.made} of {len(front.points)} students", "bold")
    return Group(title, Text(), _FrontTable(front), *([Text(), *notes] if notes else []))


class _FrontTable:
    """All columns, or those that matter most where the terminal is too narrow for all."""

    def __init__(self, front: StudentFront) -> None:
        self._front = front

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        whole = self._table(range(7))
        fits = console.measure(whole, options=options.update(width=_UNBOUNDED)).maximum <= options.max_width
        yield whole if fits else self._table(_MOST_IMPORTANT)

    def _table(self, columns: range | tuple[int, ...]) -> Table:
        front = self._front
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 2, 0, 0), show_edge=False, pad_edge=False, header_style="")
        headings = ("student", "speed-up", "ms", front.metric.split()[-1], "points\nbelow", "size kB", "limits")
        for column in columns:
            table.add_column(headings[column], justify="left" if column in (0, 6) else "right", no_wrap=True)
        rows: list[list[Text]] = [[Text("teacher"), *map(Text, _cells(front, front.teacher, None)), Text()]]
        rows += [_row(front, point) for point in front.points]
        for cells in rows:
            table.add_row(*(cells[column] for column in columns))
        return table


def _row(front: StudentFront, point: FrontPoint) -> list[Text]:
    name = Text(f"{point.asked_speedup:g}x")
    if point.student is None:
        return [name, *(Text(_NONE) for _ in range(5)), Text("none", "yellow")]
    verdict = Text("met", "green") if point.shipped else Text("missed", "bold red")
    return [name, *map(Text, _cells(front, point.student, point.drop)), verdict]


def _cells(front: StudentFront, row: StageRow, drop: float | None) -> tuple[str, ...]:
    return (
        _NONE if row.speedup is None else f"{row.speedup.ratio:.2f}×",
        latency(None if row.latency is None else row.latency.median_ms),
        score_text(row, front.metric_unit),
        _NONE if drop is None else f"{drop:.2f}",
        f"{row.size_bytes / 1000:,.0f}",
    )
