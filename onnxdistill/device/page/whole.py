"""A benchmark as one HTML page that needs nothing else: no network, no script, no font, no picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

import onnxdistill
from onnxdistill.device.measuring.agreement import Agreement
from onnxdistill.device.numbertext import DASH, number, size_text
from onnxdistill.device.page.grids import grids_section
from onnxdistill.device.page.head import has_earlier_baseline, heading, title
from onnxdistill.device.page.latencycharts import Curve, common_span, drawn_end, ecdf_chart, median_mark, time_panel
from onnxdistill.device.page.load import loads_section
from onnxdistill.device.page.markup import (
    LATENCY_HEADINGS,
    Cell,
    Row,
    counted,
    escape,
    figure,
    interval,
    latency_cells,
    note,
    percent,
    ratio,
    section,
    table,
    two_sizes,
)
from onnxdistill.device.page.profile import profiles_section
from onnxdistill.device.page.style import HUES, STYLE
from onnxdistill.device.result import BenchResult, CaseTiming

# Panels of latency over time that are open at once.
_PANELS_OPEN = 6


def render_bench_page(result: BenchResult) -> str:
    """The whole page; of a size that does not grow with the number of timings."""
    colours = _colours(result)
    parts = [
        heading(result),
        _cases_section(result, colours),
        _distributions_section(result, colours),
        grids_section(result.cases),
        _agreements_section(result.agreements),
        loads_section(result.loads, colours),
        profiles_section(result.profiles),
        _footer(result),
    ]
    content = "\n\n".join(part for part in parts if part)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title(result))} · onnxdistill bench</title>
<style>{STYLE}</style>
</head>
<body><main>
{content}
</main></body>
</html>
"""


def _colours(result: BenchResult) -> dict[str, str]:
    """A class by case: a colour for each model, or for each setting of a single one."""
    models = list(dict.fromkeys(case.model for case in result.cases))
    if len(models) == 1:
        return {case.name: f"s{1 + index % HUES}" for index, case in enumerate(result.cases)}
    others = [model for model in models if model != result.settings.baseline]
    by_model = {model: f"s{1 + index % HUES}" for index, model in enumerate(others)}
    return {case.name: by_model.get(case.model, "s0") for case in result.cases}


def _own_memory(case: CaseTiming) -> int | None:
    return None if case.memory is None else max(0, case.memory.process_bytes - case.memory.runtime_bytes)


def _cases_section(result: BenchResult, colours: dict[str, str]) -> str:
    cases = result.cases
    compared = any(not case.is_baseline for case in cases)
    headings = ["case", "", *LATENCY_HEADINGS, "items/s"]
    headings += [*(["speed-up"] if compared else []), "size", "peak<br>memory", "load<br>ms"]
    highest = max(drawn_end(case.latency_ms.median) for case in cases)
    lowest = min(case.latency_ms.median.value for case in cases)
    rows = [
        Row(
            f'<span class="swatch {colours[case.name]}"></span>&nbsp;{escape(case.name)}',
            [
                Cell(median_mark(case.latency_ms.median, highest, lowest, colours[case.name])),
                *latency_cells(case.latency_ms),
                number(case.throughput_per_s),
                *([_speedup_cell(case)] if compared else []),
                size_text(case.size_bytes),
                _memory_cell(case),
                number(case.load_ms),
            ],
        )
        for case in cases
    ]
    return section(
        "Cases", table("Cases with their latencies", headings, rows, "cases"), note(escape(_reading(result)))
    )


def _speedup_cell(case: CaseTiming) -> Cell:
    if case.is_baseline:
        return Cell('<span class="soft">baseline</span>')
    return Cell(ratio(case.speedup), interval(case.speedup, 2), "strong", title=f"over {case.compared_with}")


def _memory_cell(case: CaseTiming) -> Cell:
    if case.memory is None:
        return Cell(DASH)
    return Cell(size_text(case.memory.process_bytes), f"+{size_text(_own_memory(case) or 0)}")


def _reading(result: BenchResult) -> str:
    """What the columns mean."""
    cases = result.cases
    sentences = ["Small figures, on wide screens, are 95 % intervals."]
    if any(case.latency_ms.p999 is None for case in cases):
        sentences.append(f"{DASH}: too few calls for that percentile.")
    highest, lowest = (
        max(drawn_end(case.latency_ms.median) for case in cases),
        min(case.latency_ms.median.value for case in cases),
    )
    if highest > 5 * lowest:
        sentences.append("Medians are drawn on a logarithmic scale.")
    if has_earlier_baseline(result):
        sentences.append("Speed-ups are per item, over the same setting of the earlier benchmark.")
    elif any(not case.is_baseline for case in cases):
        baselines = [case for case in cases if case.is_baseline]
        over = baselines[0].name if len(baselines) == 1 else f"{result.settings.baseline} in the same setting"
        sentences.append(f"Speed-ups are per item, over {over}.")
    if any(case.memory is not None for case in cases):
        sentences.append(
            "Peak memory is that of a process that only runs the model; below, what the model adds to Python and ONNX "
            "Runtime."
        )
    return " ".join(sentences)


def _distributions_section(result: BenchResult, colours: dict[str, str]) -> str:
    curves = [Curve(case.name, case.every_ms(), colours[case.name]) for case in result.cases]
    wide, narrow = (
        ecdf_chart(curves, "latency of one call, ms", "calls at least as fast, %", width=width, height=height)
        for width, height in ((960, 360), (350, 300))
    )
    caption = (
        "<b>Cumulative distribution of all timed calls.</b> A curve further left is faster, a steeper one steadier. "
        "The axis ends at the 99th percentile of the slowest case; the rest of the calls lies to the right of it."
    )
    return section("Distributions", figure(caption, two_sizes(wide, narrow)), _over_time(result, colours))


def _over_time(result: BenchResult, colours: dict[str, str]) -> str:
    openings = {case.name: [np.asarray(times) for times in case.times_ms] for case in result.cases}
    span = common_span(openings.values())
    # One or two panels have the room of three.
    width = {1: 1000.0, 2: 500.0}.get(len(result.cases), 330.0)
    panels = []
    for case in result.cases:
        wide, narrow = (
            time_panel(case.name, openings[case.name], colours[case.name], span, width=one) for one in (width, 330.0)
        )
        panels.append(figure(f"<b>{escape(case.name)}</b> · ms", wide if wide == narrow else two_sizes(wide, narrow)))
    several = any(len(times) > 1 for times in openings.values())
    text = (
        "Calls in the order of time. "
        + ("Every block is an opening: the model loaded anew. " if several else "")
        + "The thick line is the median, the band holds the middle 80 % of neighbouring calls, ticks at the upper edge "
        "are slower calls. All panels span the same ratios around their medians, so that equal heights are equal "
        "per cents."
    )
    shown = f'<div class="charts">{"".join(panels[:_PANELS_OPEN])}</div>'
    hidden = panels[_PANELS_OPEN:]
    more = (
        f'<details><summary>{counted(len(hidden), "more case")}</summary><div class="charts">{"".join(hidden)}</div>'
        "</details>"
        if hidden
        else ""
    )
    return f"<h3>Over time</h3>{note(text)}{shown}{more}"


def _agreements_section(agreements: Sequence[Agreement]) -> str:
    if not agreements:
        return ""
    rows = [
        Row(
            escape(one.model),
            [
                Cell(escape(one.output), css="text"),
                f"{one.samples:,}",
                f"{one.max_absolute:.3g}",
                f"{100 * one.max_relative:.3g} %",
                DASH if one.argmax_percent is None else f"{one.argmax_percent:.4g} %",
            ],
        )
        for one in agreements
    ]
    headings: list[Cell | str] = [
        "model",
        Cell("output", css="text"),
        "items",
        "largest<br>difference",
        "of the<br>largest value",
        "same<br>argmax",
    ]
    text = f"Every output beside that of {escape(agreements[0].baseline)}, on the same inputs."
    return section("Agreement of outputs", table("Agreement of outputs", headings, rows), note(text))


def _footer(result: BenchResult) -> str:
    files = {case.model: case for case in reversed(result.cases)}
    rows = [
        Row(
            escape(case.model),
            [Cell(escape(case.path), css="text"), f"{case.size_bytes:,}", f"<code>{escape(case.sha256)}</code>"],
        )
        for case in reversed(files.values())
    ]
    return (
        "<footer>\n"
        + section(
            "To repeat it",
            table(
                "Settings",
                ["setting", Cell("value", css="text")],
                [Row(name, [Cell(escape(text), css="text")]) for name, text in _facts(result)],
            ),
            "<h3>Files</h3>",
            table("Model files", ["model", Cell("path", css="text"), "bytes", "SHA-256"], rows),
        )
        + f'\n<p class="soft small">Made by onnxdistill {escape(onnxdistill.__version__)}.</p>\n</footer>'
    )


def _facts(result: BenchResult) -> Iterator[tuple[str, str]]:
    """`(name, value)` of everything that a repetition needs; names are HTML."""
    settings, host, first = result.settings, result.host, result.cases[0]
    amount = (
        f"{settings.runs:,} calls of each case"
        if settings.runs is not None
        else f"{settings.seconds:g} s for all cases"
    )
    if settings.precision is not None:
        amount = f"until all intervals are within ± {percent(settings.precision, 2)}, at most {amount}"
    yield "measured", f"{result.measured_at}"
    yield "timing", amount
    yield "openings", str(len(first.times_ms))
    yield "calls in a round", ", ".join(map(str, dict.fromkeys(settings.calls_per_round)))
    warmups = sorted({case.warmup_calls for case in result.cases})
    until = "until the time was steady" if settings.warmup is None else "as asked for"
    calls = f"{warmups[0]}" if len(warmups) == 1 else f"{warmups[0]} to {warmups[-1]}"
    yield "warm-up", f"{calls} calls, {until}"
    yield "seed", str(settings.seed)
    yield "optimization level", ", ".join(dict.fromkeys(case.optimization_level for case in result.cases))
    yield "execution provider", ", ".join(dict.fromkeys(case.provider for case in result.cases))
    yield from _inputs(result)
    yield "processor", f"{host.cpu}, {host.architecture}"
    cores = "" if host.physical_cores is None else f"{counted(host.physical_cores, 'core')}, "
    limit = "" if host.cpu_limit is None else f", limited to {host.cpu_limit:g}"
    yield "CPUs", f"{cores}{host.logical_cpus} logical, {host.usable_cpus} usable{limit}"
    if host.int8_features is not None:
        yield "int8 instructions", ", ".join(host.int8_features) or "none"
    if host.gpus:
        yield "GPUs", ", ".join(host.gpus)
    if host.memory_bytes is not None:
        yield "memory", size_text(host.memory_bytes)
    if host.load_average is not None:
        yield "load average before", f"{host.load_average:g}"
    yield "system", host.os
    yield "versions", f"ONNX Runtime {host.onnxruntime} ({host.onnxruntime_package}), Python {host.python}"


def _inputs(result: BenchResult) -> Iterator[tuple[str, str]]:
    """Shapes that occur, of every model."""
    for model in dict.fromkeys(case.model for case in result.cases):
        shapes = dict.fromkeys(
            ", ".join(f"{name} [{', '.join(map(str, shape))}]" for name, shape in case.inputs.items())
            for case in result.cases
            if case.model == model
        )
        yield f"inputs of {escape(model)}", "; ".join(shapes)
