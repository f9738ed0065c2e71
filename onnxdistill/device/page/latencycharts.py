"""The plots of latencies on a benchmark's page: distributions, latency over time, and medians.

Each is an SVG element as text, with the classes of `style`. None gets larger with the number of timings: lines are
thinned to what a screen shows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import isfinite

import numpy as np

from onnxdistill.device.measuring.statistics import Estimate, Series
from onnxdistill.device.numbertext import number
from onnxdistill.device.page.markup import key
from onnxdistill.device.page.svg import (
    Axes,
    Box,
    Drawing,
    Floats,
    Scale,
    first_free,
    is_wide,
    line_path,
    step_path,
    text_width,
)

# The slowest per cent of calls would squeeze all others to the left.
_SHOWN_PERCENT = 99.0

# More curves than this, or longer names, get numbers and a key.
_NAMED_CURVES, _NAME_LETTERS = 4, 24
_BADGE = 8.0
_LEVELS = (50, 40, 60, 30, 70, 20, 80, 10, 90)

# A panel of latency over time shows this much around its median, as ratios; and fewer calls than this one by one.
_LEAST_SPAN, _MOST_SPAN, _DOTS = (0.95, 1.05), (0.4, 2.0), 150


@dataclass(frozen=True)
class Curve:
    """A distribution to be drawn.

    Attributes:
        name: What it is called.
        values: Of shape `(values,)`.
        css: Class of its colour.
    """

    name: str
    values: Series
    css: str


def drawn_end(estimate: Estimate) -> float:
    """How far an interval is drawn; one that is open, to half as much again as its figure."""
    return estimate.high if isfinite(estimate.high) else 1.5 * estimate.value


def ecdf_points(values: Series) -> tuple[Floats, Floats]:
    """The empirical distribution function: values in order, and how many per cent are not above each of them.

    The first point is the smallest value with 0 %, so that a line of steps begins at the bottom.

    Args:
        values: Of shape `(values,)`.

    Returns:
        Two arrays of shape `(values + 1,)`.
    """
    ordered = np.sort(values)
    return np.concatenate((ordered[:1], ordered)), np.linspace(0.0, 100.0, len(ordered) + 1)


def ecdf_chart(curves: Sequence[Curve], x_label: str, y_label: str, *, width: float, height: float) -> str:
    """Cumulative distributions up to about the 99th percentile of the slowest, labelled at their curves.

    Where names are too many or too long for that, there are numbers and a key.
    """
    low = min(float(curve.values.min()) for curve in curves)
    high = max(float(np.percentile(curve.values, _SHOWN_PERCENT)) for curve in curves)
    low, high = _apart(low, high)
    names = ", ".join(curve.name for curve in curves)
    drawing = Drawing(width, height, f"Cumulative distribution of {x_label}: {names}")
    axes = Axes(
        drawing,
        Scale(low, high, 40, width - 12, logarithmic=is_wide(low, high)),
        Scale(0, 100, height - 42, 28),
    )
    axes.draw(x_label, y_label, most_x=12)
    for curve in curves:
        drawing.path(_ecdf_path(curve, axes), f"curve {curve.css}", curve.name)
    traces = [_trace(curve, axes) for curve in curves]
    boxes = _name_boxes(curves, axes, traces)
    if boxes is not None:
        for curve, box in zip(curves, boxes, strict=True):
            drawing.text(box.left, box.bottom - 4, curve.name, f"name {curve.css}")
        return str(drawing)
    places = _badge_places(axes, traces)
    for index, (curve, (x, y)) in enumerate(zip(curves, places, strict=True), 1):
        _badge(drawing, x, y, str(index), curve.css, curve.name)
    return str(drawing) + key([(curve.name, curve.css) for curve in curves])


def common_span(cases: Iterable[Sequence[Series]]) -> tuple[float, float]:
    """From which to which ratio to the median the panels reach, so that nearly all calls of all cases lie in them."""
    low, high = _LEAST_SPAN
    for openings in cases:
        every = np.concatenate(openings)
        ends = np.percentile(every, (0.5, 95)) / np.median(every)
        low, high = min(low, float(ends[0])), max(high, float(ends[1]))
    return max(low, _MOST_SPAN[0]), min(high, _MOST_SPAN[1])


def time_panel(name: str, openings: Sequence[Series], css: str, span: tuple[float, float], *, width: float) -> str:
    """Latency in the order of the calls, opening by opening: the median of each, and where most calls lie.

    Args:
        name: Of the case.
        openings: Milliseconds, each of shape `(calls,)`.
        css: Class of its colour.
        span: From `common_span`.
        width: Of the panel.
    """
    height = 138.0
    calls = sum(map(len, openings))
    median = float(np.median(np.concatenate(openings)))
    drawing = Drawing(width, height, f"Latency of {name} over time, by opening")
    axes = Axes(drawing, Scale(0, 1, 44, width - 4), Scale(span[0] * median, span[1] * median, height - 20, 6))
    axes.draw_levels(5)
    gap = min(6.0, 0.25 * (axes.x.end - axes.x.begin) / len(openings))
    room = axes.x.end - axes.x.begin - gap * (len(openings) - 1)
    left = axes.x.begin
    step = -(-len(openings) // 12)
    for index, times in enumerate(openings):
        place = Scale(-0.5, len(times) - 0.5, left, left + room * len(times) / calls)
        if calls <= _DOTS:
            _draw_dots(axes, place, times, css)
        else:
            _draw_band(axes, place, times, css)
        _draw_opening(axes, place, times, css)
        if index % step == 0 and len(openings) > 1:
            drawing.text((place.begin + place.end) / 2, height - 5, str(index + 1), "tick middle")
        left = place.end + gap
    return str(drawing)


def median_mark(median: Estimate, highest: float, lowest: float, css: str) -> str:
    """A bar from 0 to the median with its interval; a dot on a logarithmic scale, if medians differ too much for bars.

    Args:
        median: Of the case.
        highest: End of the longest interval of all cases.
        lowest: Smallest median of all cases.
        css: Class of its colour.
    """
    width, middle = 110.0, 8.0
    drawing = Drawing(width, 2 * middle, f"{number(median.value)} ms, {number(median.low)} to {number(median.high)}")
    logarithmic = is_wide(lowest, highest)
    scale = Scale(0.8 * lowest if logarithmic else 0.0, highest, 1, width - 5, logarithmic)
    low, high = scale(max(median.low, 0.8 * lowest if logarithmic else 0.0)), scale(drawn_end(median))
    end = scale(median.value)
    if logarithmic:
        drawing.line(scale.begin, middle, scale.end, middle, "grid")
    else:
        drawing.rect(Box(scale.begin, middle - 5, end, middle + 5), f"area {css}")
    drawing.line(low, middle, high, middle, "whisker")
    for x in (low, high):
        drawing.line(x, middle - 4, x, middle + 4, "whisker")
    if logarithmic:
        drawing.circle(end, middle, 4.5, f"dot {css}")
    return f'<span class="mark">{drawing}</span>'


def _apart(low: float, high: float) -> tuple[float, float]:
    """A range that is no point."""
    if high > low:
        return low, high
    return (0.9 * low, 1.1 * low) if low > 0 else (low - 1, low + 1)


def _ecdf_path(curve: Curve, axes: Axes) -> str:
    values, shares = ecdf_points(curve.values)
    shown = values <= axes.x.high
    xs = np.append(axes.x.of(values[shown]), axes.x.end)
    return step_path(xs, axes.y.of(np.append(shares[shown], shares[shown][-1])))


def _trace(curve: Curve, axes: Axes) -> Floats:
    """Points along a curve, near enough to each other for none to jump over a label; of shape `(points, 2)`."""
    levels = np.linspace(0, 100, 201)
    xs = np.minimum(axes.x.of(np.percentile(curve.values, levels)), axes.x.end)
    ys = axes.y.of(levels)
    # As the line goes: sideways first.
    corners = np.column_stack((np.repeat(xs, 2)[1:], np.repeat(ys, 2)[:-1]))
    along = np.concatenate(([0.0], np.cumsum(np.hypot(*np.diff(corners, axis=0).T))))
    every = np.arange(0, along[-1], 3.0)
    return np.column_stack([np.interp(every, along, corners[:, axis]) for axis in range(2)])


def _name_boxes(curves: Sequence[Curve], axes: Axes, traces: Sequence[Floats]) -> list[Box] | None:
    """A place for every name, to the right of its curve or to the left; None if they do not all have one."""
    if len(curves) > _NAMED_CURVES or any(len(curve.name) > _NAME_LETTERS for curve in curves):
        return None
    boxes: list[Box] = []
    for curve in curves:
        width = text_width(curve.name) * 1.1  # bold
        box = first_free(_sides(curve, width, axes), axes.area, boxes, traces)
        if box is None:
            return None
        boxes.append(box)
    return boxes


def _sides(curve: Curve, width: float, axes: Axes) -> Iterator[Box]:
    """Places beside a curve that rises to the right: to its right and beneath, or to its left and above."""
    for level in _LEVELS:
        x, y = axes.x(float(np.percentile(curve.values, level))), axes.y(level)
        yield Box(x + 7, y, x + 7 + width, y + 16)
        yield Box(x - 7 - width, y - 16, x - 7, y)


def _badge_places(axes: Axes, traces: Sequence[Floats]) -> list[tuple[float, float]]:
    """A place on every curve, away from other badges and, if possible, from other curves."""
    taken: list[Box] = []
    for index, trace in enumerate(traces):
        others = [other for position, other in enumerate(traces) if position != index]
        points = [trace[int(share * (len(trace) - 1))] for share in np.linspace(0.04, 0.96, 24)]
        points.sort(key=lambda point: abs(float(point[1]) - axes.y(50)))
        boxes = [Box(x - _BADGE, y - _BADGE, x + _BADGE, y + _BADGE) for x, y in points]
        roomy = Box(axes.area.left, axes.area.top, axes.drawing.width, axes.area.bottom)
        free = first_free(boxes, roomy, taken, others) or first_free(boxes, roomy, taken, []) or boxes[0]
        taken.append(free)
    return [((box.left + box.right) / 2, (box.top + box.bottom) / 2) for box in taken]


def _badge(drawing: Drawing, x: float, y: float, text: str, css: str, title: str) -> None:
    drawing.circle(x, y, _BADGE, f"badge-disc {css}", title)
    drawing.text(x, y + 3.8, text, f"middle badge-text {css}", title)


def _draw_dots(axes: Axes, place: Scale, times: Series, css: str) -> None:
    for index, value in enumerate(np.clip(times, axes.y.low, axes.y.high).tolist()):
        axes.drawing.circle(place(index), axes.y(value), 1.8, f"dot faint {css}")


def _draw_band(axes: Axes, place: Scale, times: Series, css: str) -> None:
    """Bins of neighbouring calls: the median of each as a line, and the middle 80 % as a band."""
    bins = max(1, min(len(times), int((place.end - place.begin) / 2)))
    parts = np.array_split(times, bins)
    xs = place.of(np.array([len(times) * (index + 0.5) / bins - 0.5 for index in range(bins)]))
    low, middle, high = axes.y.of(
        np.clip([np.percentile(part, (10, 50, 90)) for part in parts], axes.y.low, axes.y.high)
    ).T
    if bins > 1:
        outline = line_path(np.concatenate((xs, xs[::-1])), np.concatenate((low, high[::-1])))
        axes.drawing.path(f"{outline}Z", f"band {css}")
        axes.drawing.path(line_path(xs, middle), f"hair {css}")
    beyond = np.unique(place.of(np.flatnonzero(times > axes.y.high).astype(np.float64)).round())
    if beyond.size:
        top = axes.area.top
        axes.drawing.path("".join(f"M{x:.0f} {top:.0f}v4" for x in beyond), f"hair {css}")


def _draw_opening(axes: Axes, place: Scale, times: Series, css: str) -> None:
    median = float(np.median(times))
    y = axes.y(min(max(median, axes.y.low), axes.y.high))
    axes.drawing.path(
        line_path(np.array([place.begin, place.end]), np.array([y, y])), f"curve {css}", f"median {number(median)} ms"
    )
