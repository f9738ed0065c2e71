"""Heat maps of a benchmark's page, where cases vary in two settings, or in models and one setting."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import log

from onnxdistill.device.numbertext import DASH, number
from onnxdistill.device.page.markup import Cell, Row, escape, figure, interval, note, ratio, section, table
from onnxdistill.device.page.svg import shorten
from onnxdistill.device.result import CaseTiming
from onnxdistill.device.runtime import short_name

# How strongly a cell is tinted at most: text reads on it on light and on dark paper.
_STRONGEST, _WEAKEST = 0.5, 0.06

Reader = Callable[[CaseTiming], str]

SETTINGS: dict[str, Reader] = {
    "threads": lambda case: str(case.threads),
    "batch": lambda case: str(case.batch),
    "provider": lambda case: short_name(case.provider),
    "optimization": lambda case: case.optimization_level,
}


@dataclass(frozen=True)
class _Grid:
    """Cases by row and column."""

    title: str
    rows: str
    columns: str
    cells: dict[tuple[str, str], CaseTiming]


@dataclass(frozen=True)
class _Metric:
    name: str
    value: Callable[[CaseTiming], float]
    cell: Callable[[CaseTiming], tuple[str, str]]
    """Text and what shows up under the pointer."""
    more_is_better: bool


_MEDIAN = _Metric(
    "median, ms",
    lambda case: case.latency_ms.median.value,
    lambda case: (number(case.latency_ms.median.value), f"{interval(case.latency_ms.median)} ms"),
    more_is_better=False,
)
_RATE = _Metric(
    "items a second",
    lambda case: case.throughput_per_s,
    lambda case: (number(case.throughput_per_s), f"{case.latency_ms.count:,} calls"),
    more_is_better=True,
)


def grids_section(cases: Sequence[CaseTiming]) -> str:
    """A heat map for every model and metric; nothing where the cases form no grid."""
    grids = list(_grids(cases))
    if not grids:
        return ""
    # The same tints in all grids, so that models can be compared.
    shown = [case for grid in grids for case in grid.cells.values()]
    blocks = []
    for grid in grids:
        maps = [_heat_map(grid, metric, shown) for metric in (_MEDIAN, _RATE)]
        if any(not case.is_baseline for case in grid.cells.values()):
            maps.append(_speedup_map(grid, _over(cases)))
        title = f"<h3>{escape(grid.title)}</h3>" if grid.title else ""
        blocks.append(f'{title}<div class="charts thirds">{"".join(maps)}</div>')
    text = (
        "A stronger tint is a larger number, the same in all maps of a kind; the best of each map has a frame. "
        "Speed-ups are green above 1× and orange below, and have no tint where the interval holds 1×."
    )
    return section("Grids", note(text), *blocks)


def _grids(cases: Sequence[CaseTiming]) -> Iterator[_Grid]:
    varying = [name for name, read in SETTINGS.items() if len({read(case) for case in cases}) > 1]
    models = list(dict.fromkeys(case.model for case in cases))
    if len(varying) == 1 and len(models) > 1:
        column = SETTINGS[varying[0]]
        yield _Grid("", "model", varying[0], {(case.model, column(case)): case for case in cases})
    if len(varying) < 2:
        return
    rows, columns, *rest = varying
    others = [list(dict.fromkeys(SETTINGS[name](case) for case in cases)) for name in rest]
    for model, values in product(models, product(*others)):
        wanted = dict(zip(rest, values, strict=True))
        cells = {
            (SETTINGS[rows](case), SETTINGS[columns](case)): case
            for case in cases
            if case.model == model and all(SETTINGS[name](case) == value for name, value in wanted.items())
        }
        title = ", ".join([*([model] if len(models) > 1 else []), *values])
        yield _Grid(title, rows, columns, cells)


def _heat_map(grid: _Grid, metric: _Metric, shown: Sequence[CaseTiming]) -> str:
    logs = [log(metric.value(case)) for case in shown]
    low, high = min(logs), max(logs)
    best = (max if metric.more_is_better else min)(grid.cells.values(), key=metric.value)

    def cell(case: CaseTiming) -> Cell:
        place = (log(metric.value(case)) - low) / (high - low) if high > low else 0.0
        text, title = metric.cell(case)
        return Cell(text, css="best" if case is best else "", style=_tint("--tint", place), title=title)

    return _map(grid, metric.name, cell)


def _over(cases: Sequence[CaseTiming]) -> str:
    """What speed-ups are against: one case, or one in every setting."""
    baselines = [case for case in cases if case.is_baseline]
    if not baselines:
        return "the earlier benchmark"
    one = len(baselines) == 1
    return shorten(baselines[0].name if one else baselines[0].model, 30) + ("" if one else ", same setting")


def _speedup_map(grid: _Grid, over: str) -> str:
    cases = grid.cells.values()
    largest = max(abs(log(case.speedup.value)) for case in cases) or 1.0
    best = max(cases, key=lambda case: case.speedup.low)

    def cell(case: CaseTiming) -> Cell:
        gain = case.speedup
        if case.is_baseline:
            return Cell('<span class="soft">baseline</span>')
        strength = abs(log(gain.value)) / largest
        colour = "--tint-good" if gain.value > 1 else "--tint-bad"
        style = "" if gain.low <= 1 <= gain.high else _tint(colour, strength)
        css = "best" if case is best and gain.low > 1 else ""
        return Cell(ratio(gain), css=css, style=style, title=interval(gain, 2))

    return _map(grid, f"speed-up over {over}", cell)


def _map(grid: _Grid, name: str, cell: Callable[[CaseTiming], Cell]) -> str:
    rows = list(dict.fromkeys(row for row, _ in grid.cells))
    columns = list(dict.fromkeys(column for _, column in grid.cells))
    body = [
        Row(
            escape(row),
            [cell(grid.cells[row, column]) if (row, column) in grid.cells else DASH for column in columns],
        )
        for row in rows
    ]
    corner = f"{grid.rows}&nbsp;↓<br>{grid.columns}&nbsp;→"
    heat = table(f"{name} by {grid.rows} and {grid.columns}", [corner, *map(escape, columns)], body, "heat")
    return figure(f"<b>{escape(name)}</b>", heat)


def _tint(variable: str, strength: float) -> str:
    return f"background:rgb(var({variable}) / {_WEAKEST + (_STRONGEST - _WEAKEST) * strength:.2f})"
