"""The plot of a search for a rate on a benchmark's page, as an SVG element with the classes of `style`."""

from __future__ import annotations

from onnxdistill.device.loading.search import Probe, RateSearch
from onnxdistill.device.numbertext import number
from onnxdistill.device.page.svg import Axes, Drawing, Scale, is_wide

# A rate that misses its limit by more than this factor is drawn at the upper edge.
_MISSES_SHOWN = 3.0


def probes_chart(search: RateSearch, css: str, *, width: float, height: float) -> str:
    """The rates that were tried, with the percentile that each had, and the limit; what saturated is a cross."""
    known = [probe.latency_ms for probe in search.probes if probe.latency_ms is not None and not probe.saturated]
    least = min([search.alone_ms, search.limit_ms, *known])
    most = min(max([1.25 * search.limit_ms, search.alone_ms, *known]), _MISSES_SHOWN * max(search.limit_ms, least))
    logarithmic = is_wide(least, most)
    low, high = (0.8 * least, 1.1 * most) if logarithmic else (0.0, 1.08 * most)
    rates = [search.capacity_per_s, *(probe.rate_per_s for probe in search.probes)]
    name = f"p{search.percent:g}" if search.percent != 50 else "median"
    drawing = Drawing(width, height, f"{name} of the latency against the rate of requests")
    axes = Axes(drawing, Scale(0, 1.04 * max(rates), 48, width - 12), Scale(low, high, height - 42, 28, logarithmic))
    axes.draw("requests a second", f"{name} of the latency, ms", most_x=9)
    _draw_reference(axes, search)
    for probe in search.probes:
        _draw_probe(axes, probe, css)
    drawing.circle(axes.x(0), axes.y(search.alone_ms), 4, "hollow s0", f"without load: {number(search.alone_ms)} ms")
    return str(drawing)


def _draw_reference(axes: Axes, search: RateSearch) -> None:
    """The limit, what the workers could do at best, and the rate that was found."""
    area, drawing = axes.area, axes.drawing
    y = axes.y(search.limit_ms)
    drawing.line(area.left, y, area.right, y, "limit")
    above = y - 18 > area.top
    drawing.text(area.left + 6, y - 6 if above else y + 15, f"limit {search.limit_ms:g} ms", "name limit-name")
    x = axes.x(search.capacity_per_s)
    drawing.line(x, area.top, x, area.bottom, "reference")
    drawing.text(x - 5, area.bottom - 8, "capacity", "tick end halo")
    if search.rate_per_s is not None:
        x = axes.x(search.rate_per_s)
        drawing.line(x, area.top, x, area.bottom, "found")
        side = "end" if x > (area.left + area.right) / 2 else ""
        drawing.text(x + (-6 if side else 6), area.bottom - 26, number(search.rate_per_s), f"name {side} found-name")


def _draw_probe(axes: Axes, probe: Probe, css: str) -> None:
    latency = "too few requests" if probe.latency_ms is None else f"{number(probe.latency_ms)} ms"
    state = "saturated" if probe.saturated else "held" if probe.held else "missed"
    title = f"{number(probe.rate_per_s)} a second: {latency}, {state}"
    x = axes.x(probe.rate_per_s)
    off = probe.latency_ms is None or probe.latency_ms > axes.y.high
    y = axes.area.top if off or probe.latency_ms is None else axes.y(max(probe.latency_ms, axes.y.low))
    if probe.saturated:
        axes.drawing.path(f"M{x - 4:.1f} {y - 4:.1f}l8 8m0-8l-8 8", "cross", title)
    else:
        axes.drawing.circle(x, y, 5, f"dot {css}" if probe.held else "hollow bad-mark", title)
