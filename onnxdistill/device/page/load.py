"""The part of a benchmark's page about latency under load."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onnxdistill.device.loading.closedloop import ClosedLoopResult
from onnxdistill.device.loading.openloop import OpenLoopResult
from onnxdistill.device.loading.search import Probe, RateSearch
from onnxdistill.device.loading.traffic import CaseLoad
from onnxdistill.device.numbertext import number
from onnxdistill.device.page.latencycharts import Curve, ecdf_chart
from onnxdistill.device.page.markup import (
    LATENCY_HEADINGS,
    Cell,
    Row,
    counted,
    escape,
    figure,
    latency_cells,
    note,
    percent,
    section,
    table,
    two_sizes,
)
from onnxdistill.device.page.probeschart import probes_chart


def loads_section(loads: Sequence[CaseLoad], colours: Mapping[str, str]) -> str:
    """The searches for the highest rate, the latencies at a rate of requests, and those of calls back to back.

    Args:
        loads: In the order in which they are shown.
        colours: Class of the colour of each case, by name.
    """
    opened = [(load, load.result) for load in loads if isinstance(load.result, OpenLoopResult)]
    closed = [(load, load.result) for load in loads if isinstance(load.result, ClosedLoopResult)]
    searches = [(load.case, load.result) for load in loads if isinstance(load.result, RateSearch)]
    return section(
        "Under load",
        _searches(searches, colours) if searches else "",
        _open_loops(opened, colours) if opened else "",
        _closed_loops(closed) if closed else "",
    )


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
    figures = [_search(case, search, colours.get(case, "s1")) for case, search in searches]
    text = (
        "Every dot is a rate that was tried, with requests that arrive at random. Full: the limit was held; hollow: "
        "missed; a cross: the line grew without bound, so that the latency only says how long the probe was. What "
        "lies higher is at the upper edge. The grey circle on the left is a call without any load, and the capacity "
        "is what one worker does back to back, times their number, as if they were not in each other's way."
    )
    explained = note(text) if any(search.probes for _, search in searches) else ""
    return f'<div class="charts halves">{"".join(figures)}</div>{explained}'


def _search(case: str, search: RateSearch, css: str) -> str:
    text = f"<b>{escape(case)}</b> {escape(search_text(search))}"
    if not search.probes:
        return figure(text, "")
    wide, narrow = (probes_chart(search, css, width=width, height=290) for width in (470, 350))
    return figure(text, two_sizes(wide, narrow) + _probes_table(case, search))


def _probes_table(case: str, search: RateSearch) -> str:
    rows = [
        Row(
            number(probe.rate_per_s),
            [number(probe.latency_ms), percent(probe.load, 0), f"{probe.requests:,}", _outcome(probe)],
        )
        for probe in sorted(search.probes, key=lambda probe: probe.rate_per_s)
    ]
    headings = ["requests/s", f"{_name(search.percent)}, ms", "load", "requests", ""]
    return (
        f'<details><summary class="small">{counted(len(rows), "rate")} tried</summary>'
        f"{table(f'Rates tried of {case}', headings, rows)}</details>"
    )


def _outcome(probe: Probe) -> str:
    if probe.held:
        return '<span class="good">held</span>'
    return f'<span class="bad">{"saturated" if probe.saturated else "missed"}</span>'


def _open_loops(loops: Sequence[tuple[CaseLoad, OpenLoopResult]], colours: Mapping[str, str]) -> str:
    rows = []
    curves = []
    for load, loop in loops:
        # As it was asked for, without zeros that say nothing.
        asked = f"{loop.rate_per_s:,.10g}"
        state = '<span class="bad">saturated</span>' if loop.saturated else '<span class="good">steady</span>'
        latencies = latency_cells(load.latency_ms())
        cells: list[Cell | str] = [
            asked,
            number(loop.achieved_per_s),
            *latencies,
            percent(loop.load, 0),
            escape(str(loop.clients)),
            state,
        ]
        rows.append(Row(escape(load.case), cells))
        curves.append(Curve(f"{load.case}, {asked}/s", loop.latency_ms, colours.get(load.case, "s1")))
    headings = ["case", "asked<br>req./s", "served<br>req./s", *LATENCY_HEADINGS, "load", "workers", ""]
    text = (
        "Requests arrive at random and wait in one line; a latency runs from the moment at which a request was to "
        "arrive. The load is the share of their time that the workers would be busy in an endless run. Where the line "
        "grew without bound (saturated), latencies only say how long the run was."
    )
    wide, narrow = (
        ecdf_chart(curves, "latency, ms", "requests at least as fast, %", width=width, height=height)
        for width, height in ((960, 320), (350, 280))
    )
    caption = "<b>Latency of requests, waiting included,</b> up to the 99th percentile of the slowest case."
    return "\n".join(
        (
            "<h3>At a rate of requests</h3>",
            table("Latency at a rate of requests", headings, rows, "cases"),
            note(text),
            figure(caption, two_sizes(wide, narrow)),
        )
    )


def _closed_loops(loops: Sequence[tuple[CaseLoad, ClosedLoopResult]]) -> str:
    rows = [
        Row(
            escape(load.case),
            [escape(str(loop.clients)), number(loop.throughput_per_s), *latency_cells(load.latency_ms())],
        )
        for load, loop in loops
    ]
    headings = ["case", "clients", "calls/s", *LATENCY_HEADINGS]
    text = "Clients that call back to back, so that never more calls wait than there are clients."
    return f"<h3>Back to back</h3>\n{table('Latency of calls back to back', headings, rows, 'cases')}\n{note(text)}"


def _name(level: float) -> str:
    return "median" if level == 50 else f"p{level:g}"
