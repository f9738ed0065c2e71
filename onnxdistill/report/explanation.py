"""Why a student looks as it does: what every stage did, how the latency budget was spent, how int8 was found."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from onnxdistill.report.model import (
    CutRow,
    DecisionRow,
    GroupCut,
    LayerRow,
    PlanLog,
    QuantizationLog,
    Report,
    StageRow,
)
from onnxdistill.report.table import latency, limit_text

_DASH = "–"
_MISSED_NOTHING = "nothing else is faster"


def state_text(kind: str, value: int) -> str:
    """What a choice is: a number of channels, `there` or `gone`, `whole` or a rank."""
    if kind == "block":
        return "there" if value else "gone"
    if kind == "pair":
        return f"rank {value}" if value else "whole"
    return str(value)


def instead_text(row: DecisionRow) -> str:
    """What else a choice could be, and what a call and its damage would differ by."""
    if row.other is None or row.other_ms is None:
        return _MISSED_NOTHING
    damage = "no outputs that are numbers" if row.other_damage is None else f"damage {row.other_damage:+.2g}"
    return f"{state_text(row.kind, row.other)}: {row.other_ms:+.2g} ms, {damage}"


def channels_text(row: LayerRow) -> str:
    """Channels now and before: `16→32`, `16→24, was 16→32`, of a pair `16→8→24, was 16→32`, or `gone, was 16→32`."""
    before = "→".join(map(str, row.channels_before))
    if row.channels_after is None:
        return f"gone, was {before}"
    middle = [] if row.rank is None else [row.rank]
    after = "→".join(map(str, (row.channels_after[0], *middle, row.channels_after[1])))
    return before if after == before else f"{after}, was {before}"


def microseconds(milliseconds: float | None) -> str:
    """The time of a layer, in microseconds, or a dash."""
    return latency(None if milliseconds is None else 1000 * milliseconds)


def render_explanation(report: Report) -> RenderableType:
    """Everything that a report knows of why, as tables for a console."""
    return Group(*_parts(report))


def _parts(report: Report) -> Iterator[RenderableType]:
    yield Text(f"{report.name}: {report.student_precision}, {'shipped' if report.shipped else 'limits missed'}", "bold")
    yield from (Text(limit_text(check)) for check in report.limits)
    yield from _titled("What every stage did", _stages(report.rows))
    if report.plan is not None:
        title = f"How {latency(report.plan.budget_ms)} ms were spent"
        yield from _titled(title, _cuts(report.plan.cuts))
        yield from _titled("What was chosen, and what else could have been", _decisions(report.plan.decisions))
        yield from _titled("Layer by layer, as planned", _layers(report.plan))
    elif report.groups:
        yield from _titled("Channel groups", _groups(report.groups))
    if report.quantization is not None:
        yield from _titled("How int8 was found", _schemes(report.quantization))
        if report.quantization.rungs:
            title = f"For its accuracy: {report.quantization.limit:g} points may be lost"
            yield from _titled(title, _rungs(report.quantization))
    if report.notes:
        yield Text()
        yield Text("Notes", "bold")
        yield from (Text(f"- {note}") for note in report.notes)


def _titled(title: str, table: Table) -> Iterator[RenderableType]:
    yield Text()
    yield Text(title, "bold")
    yield table


def _table(*headings: str, text: Sequence[int] = (0,)) -> Table:
    """Columns of numbers, but for those in `text`."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False, header_style="")
    for place, heading in enumerate(headings):
        words = place in text
        table.add_column(heading, justify="left" if words else "right", overflow="fold")
    return table


def _add(table: Table, *cells: str, style: str = "") -> None:
    """A row of texts as they are: names of layers and files may have brackets."""
    table.add_row(*map(Text, cells), style=style)


def _stages(rows: Sequence[StageRow]) -> Table:
    table = _table("stage", "what it did", "ms", "seconds", text=(0, 1))
    for row in rows:
        median = latency(None if row.latency is None else row.latency.median_ms)
        style = "" if row.applied else "dim"
        _add(table, row.stage, row.summary, median, f"{row.seconds:.1f}", style=style)
    return table


def _cuts(cuts: Sequence[CutRow]) -> Table:
    table = _table("cut", "allowed ms", "predicted ms", "measured ms", "outputs were to move by")
    for number, cut in enumerate(cuts, start=1):
        times = (latency(time_ms) for time_ms in (cut.budget_ms, cut.predicted_ms, cut.measured_ms))
        _add(table, str(number), *times, f"{cut.damage:.2g}")
    return table


def _decisions(decisions: Sequence[DecisionRow]) -> Table:
    table = _table("choice", "before", "after", "damage", "instead", text=(0, 4))
    for row in decisions:
        states = (state_text(row.kind, value) for value in (row.before, row.after))
        name = row.name if row.kind == "width" else f"{row.kind} {row.name}"
        style = "" if row.before != row.after else "dim"
        _add(table, name, *states, f"{row.damage:.2g}", instead_text(row), style=style)
    return table


def _layers(plan: PlanLog) -> Table:
    table = _table("layer", "operation", "channels", "was µs", "predicted", "is", text=(0, 1, 2))
    for row in plan.layers:
        times = (microseconds(time_ms) for time_ms in (row.before_ms, row.predicted_ms, row.after_ms))
        style = "dim" if row.channels_after is None else ""
        _add(table, row.name, row.operation, channels_text(row), *times, style=style)
    return table


def _groups(groups: Sequence[GroupCut]) -> Table:
    table = _table("group", "before", "after", "layers", text=(0, 3))
    for group in groups:
        _add(table, group.name, str(group.channels_before), str(group.channels_after), ", ".join(group.layers))
    return table


def _schemes(found: QuantizationLog) -> Table:
    table = _table("against float32", "speed-up", "95 % interval")
    for row in found.schemes:
        interval = _DASH if row.low is None or row.high is None else f"{row.low:.2f} to {row.high:.2f}"
        _add(table, row.scheme, f"{row.ratio:.2f}×", interval)
    return table


def _rungs(found: QuantizationLog) -> Table:
    table = _table("what was tried", "points lost", "seconds", "", text=(0, 3))
    for row in found.rungs:
        lost = _DASH if row.points is None else f"{row.points:.2f}"
        _add(table, row.name, lost, f"{row.seconds:.1f}", row.note, style="" if row.kept else "dim")
    return table
