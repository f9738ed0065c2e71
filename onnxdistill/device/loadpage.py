"""The part of a benchmark's page about latency under load."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from onnxdistill.device.charts import Curve, ecdf_chart, probes_chart, two_sizes
from onnxdistill.device.load import ClosedLoopResult, OpenLoopResult, RateSearch
from onnxdistill.device.markup import Cell, Row, counted, escape, figure, note, number, percent, section, table
from onnxdistill.device.statistics import NEEDED_TIMINGS


class Load(Protocol):
    """What was measured of a case under load."""

    @property
    def case(self) -> str:
        """Name of the case."""

    @property
    def result(self) -> OpenLoopResult | ClosedLoopResult | RateSearch:
        """One measurement."""


def loads_section(loads: Sequence[Load], colours: Mapping[str, str]) -> str:
    """Latencies at a rate of requests, of clients that call back to back, and the searches for the highest rate.

    Args:
        loads: In the order in which they are shown.
        colours: Class of the colour of each case.
    """
    opened = [(load.case, load.result) for load in loads if isinstance(load.result, OpenLoopResult)]
    closed = [(load.case, load.result) for load in loads if isinstance(load.result, ClosedLoopResult)]
    searches = [(load.case, load.result) for load in loads if isinstance(load.result, RateSearch)]
    return section("Under load", _searches(searches, colours), _open_loops(opened, colours), _closed_loops(closed))


def search_text(search: RateSearch) -> str:
    """What a search came to, as a sentence that goes on after the name of the case."""
    within = f"{_name(search.percent)} within {search.limit_ms:g} ms"
    workers = counted(search.clients, "worker")
    if search.rate_per_s is None and not search.probes:
        return f"cannot keep {within} at any rate: that of a call alone is already {number(search.alone_ms)} ms."
    unresolved = "" if search.resolved else " The time was over before the search came to its end."
    if search.rate_per_s is None:
        return f"kept {within} at no rate that was tried, with {workers}.{unresolved}"
    missed = "" if search.missed_per_s is None else f", and missed it at {number(search.missed_per_s)}"
    share = percent(search.rate_per_s / search.capacity_per_s, 0)
    return (
        f"keeps {within} up to {number(search.rate_per_s)} requests a second with {workers}, {share} of the capacity"
        f"{missed}.{unresolved}"
    )


def _searches(searches: Sequence[tuple[str, RateSearch]], colours: Mapping[str, str]) -> str:
    figures = []
    for case, search in searches:
        text = f"<b>{escape(case)}</b> {escape(search_text(search))}"
        if not search.probes:
            figures.append(figure(text, ""))
            continue
        css = colours.get(case, "s1")
        chart = two_sizes(
            probes_chart(search, css, width=470, height=300), probes_chart(search, css, width=350, height=280)
        )
        figures.append(figure(text, chart + _probes_table(case, search)))
    if not figures:
        return ""
    text = (
        "Every dot is a rate that was tried, with requests that arrive at random. Full: the limit was held; hollow: "
        "missed; a cross: the line grew without bound, so that the latency only says how long the probe was. What "
        "lies higher is at the upper edge. The grey circle on the left is a call without any load."
    )
    return f'<div class="charts two">{"".join(figures)}</div>{note(text if any(one.probes for _, one in searches) else "")}'


def _probes_table(case: str, search: RateSearch) -> str:
    rows = [
        Row(
            number(probe.rate_per_s),
            [
                number(probe.latency_ms),
                percent(probe.load, 0),
                f"{probe.requests:,}",
                '<span class="bad">saturated</span>'
                if probe.saturated
                else '<span class="good">held</span>'
                if probe.held
                else '<span class="bad">missed</span>',
            ],
        )
        for probe in sorted(search.probes, key=lambda probe: probe.rate_per_s)
    ]
    headings = ["requests/s", f"{_name(search.percent)}, ms", "load", "requests", ""]
    return (
        f"<details><summary class=\"small\">{counted(len(rows), 'rate')} tried</summary>"
        f"{table(f'Rates tried of {case}', headings, rows)}</details>"
    )


def _open_loops(loops: Sequence[tuple[str, OpenLoopResult]], colours: Mapping[str, str]) -> str:
    if not loops:
        return ""
    rows = [
        Row(
            escape(case),
            [
                _rate(loop.rate_per_s),
                number(loop.achieved_per_s),
                *(number(loop.percentile(level)) for level in NEEDED_TIMINGS),
                percent(loop.load, 0),
                str(loop.clients),
                Cell('<span class="bad">saturated</span>' if loop.saturated else '<span class="good">steady</span>'),
            ],
        )
        for case, loop in loops
    ]
    headings = [
        "case",
        "asked<br>requests/s",
        "served<br>requests/s",
        *(f"{_name(level)}<br>ms" for level in NEEDED_TIMINGS),
        "load",
        "workers",
        "",
    ]
    text = (
        "Requests arrive at random and wait in one line; a latency runs from the moment at which a request was to "
        "arrive. Where the line grew without bound (saturated), latencies only say how long the run was."
    )
    curves = [
        Curve(f"{case}, {_rate(loop.rate_per_s)}/s", loop.latency_ms, colours.get(case, "s1")) for case, loop in loops
    ]
    label = "latency with waiting, ms"
    chart = two_sizes(
        ecdf_chart(curves, label, width=960, height=320), ecdf_chart(curves, label, width=350, height=280)
    )
    caption = "<b>Latency of requests, waiting included,</b> up to the 99th percentile of the slowest."
    return f"<h3>At a rate of requests</h3>{table('Latency at a rate of requests', headings, rows)}{note(text)}{figure(caption, chart)}"


def _closed_loops(loops: Sequence[tuple[str, ClosedLoopResult]]) -> str:
    if not loops:
        return ""
    rows = [
        Row(
            escape(case),
            [
                str(loop.clients),
                number(loop.throughput_per_s),
                *(number(loop.percentile(level)) for level in NEEDED_TIMINGS),
            ],
        )
        for case, loop in loops
    ]
    headings = ["case", "clients", "calls/s", *(f"{_name(level)}<br>ms" for level in NEEDED_TIMINGS)]
    text = "Clients that call back to back: such a line is never longer than there are clients."
    return f"<h3>Back to back</h3>{table('Latency of calls back to back', headings, rows)}{note(text)}"


def _rate(rate_per_s: float) -> str:
    """As it was asked for: without zeros that say nothing."""
    return f"{rate_per_s:,.10g}"


def _name(level: float) -> str:
    return "median" if level == 50 else f"p{level:g}"
