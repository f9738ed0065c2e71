"""The roofline plot of a benchmark's page, as an SVG element with the classes of `style`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from onnxdistill.device.numbertext import number
from onnxdistill.device.page.markup import key_of_colours
from onnxdistill.device.page.svg import Axes, Box, Drawing, Scale, first_free, shorten
from onnxdistill.device.profiling.peaks import Peaks
from onnxdistill.device.profiling.roofline import NodeRow

ROOFLINE_NODES = 150
"""How many nodes a roofline plot shows at most."""

_TITLE_LETTERS = 60

# How many of the slowest nodes have a number in the roofline plot.
_RANKED = 5

# A bandwidth has its name beside it if it rises by so much.
_SLOPE_NAMED = 40.0


@dataclass(frozen=True)
class _RatedNode:
    rank: int
    node: NodeRow
    intensity: float
    gmacs_per_s: float


def roofline_chart(nodes: Sequence[NodeRow], peaks: Peaks, *, width: float, height: float) -> str:
    """Multiply-adds a second of each node against those for each byte that it moves, under the roofs of the machine.

    Nodes are discs whose area is their time, those of `ROOFLINE_NODES` that take longest; the first have the numbers
    of their ranks. Nothing if no node has a rate.
    """
    ordered = sorted(nodes, key=lambda node: -node.time_ms)
    rated = [
        _RatedNode(rank, node, node.macs / node.moved_bytes, node.gmacs_per_s)
        for rank, node in enumerate(ordered, 1)
        if node.gmacs_per_s and node.macs and node.moved_bytes
    ][:ROOFLINE_NODES]
    if not rated:
        return ""
    precisions = list(dict.fromkeys(one.node.precision for one in rated))
    colours = {precision: f"s{index}" for index, precision in enumerate(precisions, 1)}
    roofs = {precision: peaks.gmacs_per_s[precision] for precision in precisions if precision in peaks.gmacs_per_s}
    intensities = [one.intensity for one in rated]
    rates = [one.gmacs_per_s for one in rated]
    drawing = Drawing(width, height, "Roofline: multiply-adds a second of each node against those for each byte")
    axes = Axes(
        drawing,
        Scale(min(intensities) / 2, max(intensities) * 2, 44, width - 12, logarithmic=True),
        Scale(min(rates) / 1.6, max([*rates, *roofs.values()]) * 1.4, height - 42, 28, logarithmic=True),
    )
    axes.draw("multiply-adds for each byte read or written", "GMAC/s", most_x=9)
    _draw_roofs(axes, roofs, peaks)
    taken: list[Box] = []
    for one in rated:
        x, y, radius = (
            axes.x(one.intensity),
            axes.y(one.gmacs_per_s),
            3 + 8 * (one.node.time_ms / ordered[0].time_ms) ** 0.5,
        )
        title = f"{shorten(one.node.name, _TITLE_LETTERS)}: {one.gmacs_per_s:.3g} GMAC/s, {number(one.node.time_ms)} ms"
        drawing.circle(x, y, radius, f"disc {colours[one.node.precision]}", title)
        taken.append(Box(x - 0.8 * radius, y - 0.8 * radius, x + 0.8 * radius, y + 0.8 * radius))
    along = np.arange(axes.x.begin, axes.x.end, 3.0)
    ceilings = [np.column_stack((along, np.full(along.shape, axes.y(peak)))) for peak in roofs.values()]
    for one, disc in zip(rated, list(taken), strict=True):
        place = first_free(_around(disc), axes.area, taken, ceilings) if one.rank <= _RANKED else None
        if place is not None:
            taken.append(place)
            drawing.text((place.left + place.right) / 2, place.bottom - 3, str(one.rank), "name middle")
    return str(drawing) + key_of_colours(colours)


def _around(disc: Box) -> Iterator[Box]:
    """Places for a digit beside a disc."""
    x, y, reach = (disc.left + disc.right) / 2, (disc.top + disc.bottom) / 2, (disc.right - disc.left) / 2 + 10
    for right, down in ((reach, 0), (-reach, 0), (0, -reach), (0, reach)):
        yield Box(x + right - 5, y + down - 7, x + right + 5, y + down + 7)


def _draw_roofs(axes: Axes, roofs: dict[str, float], peaks: Peaks) -> None:
    """Bandwidths of caches and of memory as slopes; peaks as ceilings from where the steeper one meets them."""
    area, drawing = axes.area, axes.drawing
    speeds = [one.gb_per_s for one in peaks.bandwidths]
    highest = max(roofs.values(), default=axes.y.high)
    slopes = {"caches": max(speeds), "memory": speeds[-1]} if speeds else {}
    for name, gb_per_s in slopes.items():
        begin = max(axes.x.low, axes.y.low / gb_per_s)
        end = min(axes.x.high, highest / gb_per_s)
        if begin >= end:
            continue
        x1, y1, x2, y2 = axes.x(begin), axes.y(begin * gb_per_s), axes.x(end), axes.y(end * gb_per_s)
        drawing.line(x1, y1, x2, y2, "roof" if name == "caches" else "roof dashed")
        if y1 - y2 > _SLOPE_NAMED:
            # Beneath the line, by where it leaves the height of the text.
            base = min(y1 + 12, area.bottom - 6)
            drawing.text(
                x1 + (y1 - base + 14) * (x2 - x1) / (y1 - y2) + 6, base, f"{name} {gb_per_s:.3g} GB/s", "tick halo"
            )
    for precision, peak in roofs.items():
        begin = max(axes.x.low, peak / slopes["caches"]) if slopes else axes.x.low
        drawing.line(axes.x(min(begin, axes.x.high)), axes.y(peak), area.right, axes.y(peak), "roof")
        drawing.text(area.right - 4, axes.y(peak) - 6, f"{precision} peak {peak:.3g} GMAC/s", "tick end halo")
