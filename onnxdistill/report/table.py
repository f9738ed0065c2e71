"""The report on the console: one table, the limits, and what to know beside them."""

from __future__ import annotations

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from onnxdistill.report.model import LimitCheck, Report, StageRow, TargetRow

_HEADINGS = ("stage", "params", "MACs", "size kB", "{metric}", "median ms", "p95 ms", "speed-up")
_NARROW_HEADINGS = {0: "stage", 4: "{metric}", 5: "median\nms", 7: "speed-up"}
_LIMIT_STYLES = {True: "green", False: "bold red", None: "yellow"}
_NOT_MEASURED = "not measured"
_UNBOUNDED = 1000
_MORE_DIGITS = 8


def count(number: float | None) -> str:
    """A count in three digits with a decimal prefix: 270896 is `271 k`; or a dash."""
    if number is None:
        return "–"
    for size, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            scaled = number / size
            return f"{scaled:.{0 if scaled >= 100 else 1 if scaled >= 10 else 2}f} {prefix}"
    return f"{number:.0f}"


def latency(milliseconds: float | None) -> str:
    """Milliseconds in three significant digits, or a dash."""
    if milliseconds is None:
        return "–"
    digits = 0 if milliseconds >= 100 else 1 if milliseconds >= 10 else 2 if milliseconds >= 1 else 3
    return f"{milliseconds:.{digits}f}"


def score_text(row: StageRow | TargetRow, unit: str) -> str:
    """The score with its unit; accuracy that was not measured says so."""
    return _NOT_MEASURED if row.score is None else f"{row.score.value:.2f} {unit}"


def limit_text(check: LimitCheck) -> str:
    """One sentence on a limit, with the measured number and its interval."""
    if check.measured is None:
        return f"{check.name} = {check.limit:g}: not measured"
    digits = ".3g" if check.unit == "ms" else ".2f"
    interval = "" if check.low is None else f" (95 % interval {check.low:{digits}} to {check.high:{digits}})"
    measured = f"{check.measured:{digits}}" if check.met else _beside(check.limit, check.measured, digits)
    verdict = "met" if check.met else "MISSED"
    return f"{check.name} = {check.limit:g}: measured {measured} {check.unit}{interval}, {verdict}"


def _beside(limit: float, measured: float, digits: str) -> str:
    """A figure with more digits where it would read as if it kept the limit that it misses."""
    fewest, kind = int(digits[1]), digits[2]
    texts = [f"{measured:.{count}{kind}}" for count in range(fewest, fewest + _MORE_DIGITS)]
    return next((text for text in texts if (float(text) - limit) * (measured - limit) > 0), texts[-1])


def render_report(report: Report) -> RenderableType:
    """The table with a row a stage, the limits beneath it, and the notes."""
    below = [Text(limit_text(check), style=_LIMIT_STYLES[check.met]) for check in report.limits]
    notes = [Text(f"· {note}", style="dim") for note in report.notes]
    return Group(_StageTable(report), Text(), *below, *notes)


class _StageTable:
    """All columns, or those that matter most where the terminal is too narrow for all."""

    def __init__(self, report: Report) -> None:
        self._report = report

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        whole = self._table(dict(enumerate(_HEADINGS)))
        fits = console.measure(whole, options=options.update(width=_UNBOUNDED)).minimum <= options.max_width
        yield whole if fits else self._table(_NARROW_HEADINGS)

    def _table(self, headings: dict[int, str]) -> Table:
        table = Table(title=None, box=None, pad_edge=False, header_style="bold")
        metric = self._report.metric.split()[-1]
        for column, heading in headings.items():
            table.add_column(heading.format(metric=metric), justify="right" if column else "left", no_wrap=True)
        between = " " if len(headings) == len(_HEADINGS) else "\n"
        for row in self._report.rows:
            cells = [
                cell.replace(_NOT_MEASURED, _NOT_MEASURED.replace(" ", between)) for cell in _cells(self._report, row)
            ]
            table.add_row(*(cells[column] for column in headings), style=_style(self._report, row))
        return table


def _cells(report: Report, row: StageRow) -> tuple[str, ...]:
    name = row.stage if row.applied else f"({row.stage})"
    return (
        name,
        count(row.parameters),
        count(row.macs),
        f"{row.size_bytes / 1000:.0f}",
        score_text(row, report.metric_unit),
        latency(None if row.latency is None else row.latency.median_ms),
        latency(None if row.latency is None else row.latency.p95_ms),
        "–" if row.speedup is None else f"{row.speedup.ratio:.2f}×",
    )


def _style(report: Report, row: StageRow) -> str:
    if row is report.student:
        return "bold"
    return "" if row.applied else "dim"
