"""Drawing as SVG text: scales with round ticks, axes, lines of many steps, and labels that keep out of the way.

Lengths are in units of the drawing's own, about a CSS pixel. Colours are left to the page: elements have classes. All
of it stands inside of an HTML page and therefore needs no namespace.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import ceil, floor, log10

import numpy as np
import numpy.typing as npt

from onnxdistill.device.page.markup import escape

Floats = npt.NDArray[np.float64]

TEXT_SIZE = 12.0
"""Of all text, unless the page says otherwise."""

WIDE_RANGE = 5.0
"""Values that differ by more than this factor are drawn on a logarithmic scale."""

# What a letter takes on average, of the text's size, in the common sans-serif fonts; East Asian ones are square.
_LETTER, _WIDE_LETTER = 0.56, 1.0

_TICK_GAP = 14.0


@dataclass(frozen=True)
class Scale:
    """Maps values to positions.

    Attributes:
        low: Value at `begin`; above 0 if the scale is logarithmic.
        high: Value at `end`.
        begin: Position; below or above `end`, as vertical positions count downwards.
        end: Position.
        logarithmic: Whether equal lengths are equal ratios.
    """

    low: float
    high: float
    begin: float
    end: float
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        """The position of a value; outside of the range it goes on."""
        return float(self.of(np.asarray(value, dtype=np.float64)))

    def of(self, values: Floats) -> Floats:
        """The positions of values, of the same shape."""
        low, high = self.low, self.high
        if self.logarithmic:
            values, low, high = np.log(values), float(np.log(low)), float(np.log(high))
        return self.begin + (values - low) * ((self.end - self.begin) / (high - low))

    def ticks(self, most: int) -> list[float]:
        """Round values within the range, at most so many."""
        if self.logarithmic and (ticks := log_ticks(self.low, self.high, most)):
            return ticks
        return linear_ticks(self.low, self.high, most)


def is_wide(low: float, high: float) -> bool:
    """Whether values differ so much that only a logarithmic scale shows all of them."""
    return low > 0 and high > WIDE_RANGE * low


def linear_ticks(low: float, high: float, most: int) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten within a range: as many as possible, but at most `most`."""
    span = high - low
    exponent = floor(log10(span / most)) - 1
    for step in (factor * 10.0**power for power in range(exponent, exponent + 4) for factor in (1, 2, 5)):
        first, last = ceil(low / step - 1e-9), floor(high / step + 1e-9)
        if last - first < most:
            # By way of a decimal number: 3 * 0.1 is not 0.3.
            return [float(f"{index * step:.12g}") for index in range(first, last + 1)]
    raise AssertionError("a range of three decades of steps has one that is large enough")


def log_ticks(low: float, high: float, most: int) -> list[float]:
    """Powers of ten within a range, with 2 and 5 times these if they fit; with gaps if not even the powers do.

    Returns:
        Nothing if fewer than two would be left: the range is then narrow enough for a linear scale's ticks.
    """
    powers = range(floor(log10(low)), ceil(log10(high)) + 1)
    for factors in ((1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        ticks = [float(f"{factor}e{power}") for power in powers for factor in factors]
        ticks = [tick for tick in ticks if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)]
        if len(ticks) <= most:
            return ticks if len(ticks) > 1 else []
    return ticks[:: ceil(len(ticks) / most)]


def tick_texts(ticks: Sequence[float]) -> list[str]:
    """Each tick with the decimal places that it needs; all with the same, if they are equally far apart."""
    shortest = [f"{tick:,.12f}".rstrip("0").rstrip(".") for tick in ticks]
    if not np.allclose(np.diff(ticks, 2), 0, atol=1e-9 * max(map(abs, ticks), default=0.0)):
        return shortest
    digits = max((len(text.partition(".")[2]) for text in shortest), default=0)
    return [f"{tick:,.{digits}f}" if tick else "0" for tick in ticks]


def text_width(text: str, size: float = TEXT_SIZE) -> float:
    """About how wide a line of text is."""
    wide = sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)
    return size * (_LETTER * (len(text) - wide) + _WIDE_LETTER * wide)


def shorten(text: str, most: int) -> str:
    """At most so many letters; what is left out is in the middle, since names differ at their ends."""
    if len(text) <= most:
        return text
    kept = most - 1
    return f"{text[: kept - kept // 2]}…{text[len(text) - kept // 2 :]}"


def step_path(xs: Floats, ys: Floats, tolerance: float = 0.5) -> str:
    """A path that goes sideways to each x, then up or down to its y, and leaves out steps that nobody would see.

    Args:
        xs: Positions of shape `(points,)`, none smaller than the one before.
        ys: Likewise, all the way up or all the way down.
        tolerance: Neither line is anywhere further away from the other, apart from rounding to a tenth.
    """
    points = list(zip(xs.tolist(), ys.tolist(), strict=True))
    kept = points[:1]
    for (x, y), (next_x, _) in pairwise(points[1:]):
        # Without it the line goes on at the last kept height, and rises at the next x.
        if x < next_x > kept[-1][0] + tolerance and abs(y - kept[-1][1]) > tolerance:
            kept.append((x, y))
    tenths = [(round(10 * x), round(10 * y)) for x, y in [*kept, points[-1]]]
    parts = [f"M{_tenths(tenths[0][0])} {_tenths(tenths[0][1])}"]
    for (x, y), (next_x, next_y) in pairwise(tenths):
        parts += [f"{way}{_tenths(length)}" for way, length in (("h", next_x - x), ("v", next_y - y)) if length]
    return "".join(parts)


def line_path(xs: Floats, ys: Floats) -> str:
    """A path from point to point."""
    return "M" + "L".join(f"{_round(x)} {_round(y)}" for x, y in zip(xs, ys, strict=True))


@dataclass(frozen=True)
class Box:
    """A rectangle that a label takes.

    Attributes:
        left: Position.
        top: Position.
        right: Position.
        bottom: Position.
    """

    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: Box) -> bool:
        """Whether the two have a point in common."""
        return (
            self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom
        )

    def holds(self, other: Box) -> bool:
        """Whether the other one lies inside."""
        return (
            self.left <= other.left
            and other.right <= self.right
            and self.top <= other.top
            and other.bottom <= self.bottom
        )

    def meets_any(self, xs: Floats, ys: Floats) -> bool:
        """Whether one of the points lies inside."""
        return bool(np.any((xs > self.left) & (xs < self.right) & (ys > self.top) & (ys < self.bottom)))


@dataclass
class Drawing:
    """Elements, the first ones behind the later ones.

    Attributes:
        width: Of the drawing.
        height: Of the drawing.
        label: What it shows, for those who do not see it.
    """

    width: float
    height: float
    label: str
    _elements: list[str] = field(default_factory=list)

    def line(self, x1: float, y1: float, x2: float, y2: float, css: str = "") -> None:
        """A straight line."""
        ends = " ".join(f'{name}="{_round(value)}"' for name, value in (("x1", x1), ("y1", y1), ("x2", x2), ("y2", y2)))
        self._elements.append(f'<line {ends} class="{css}"/>')

    def rect(self, box: Box, css: str = "", title: str = "") -> None:
        """A filled rectangle."""
        width, height = max(0.0, box.right - box.left), max(0.0, box.bottom - box.top)
        sides = f'x="{_round(box.left)}" y="{_round(box.top)}" width="{_round(width)}" height="{_round(height)}"'
        self._add("rect", sides, css, title)

    def circle(self, x: float, y: float, radius: float, css: str = "", title: str = "") -> None:
        """A disc."""
        self._add("circle", f'cx="{_round(x)}" cy="{_round(y)}" r="{_round(radius)}"', css, title)

    def path(self, steps: str, css: str = "", title: str = "") -> None:
        """A line of `step_path` or `line_path`, or any other path."""
        self._add("path", f'd="{steps}"', css, title)

    def text(self, x: float, y: float, text: str, css: str = "", title: str = "") -> None:
        """A line of text that begins at x, or as its classes `middle` or `end` say, on the base line y."""
        content = f"{_title(title)}{escape(text)}"
        self._elements.append(f'<text x="{_round(x)}" y="{_round(y)}" class="{css}">{content}</text>')

    def __str__(self) -> str:
        """The whole SVG element."""
        return (
            f'<svg viewBox="0 0 {_round(self.width)} {_round(self.height)}" role="img" '
            f'aria-label="{escape(self.label)}">{"".join(self._elements)}</svg>'
        )

    def _add(self, kind: str, attributes: str, css: str, title: str) -> None:
        inner = f">{_title(title)}</{kind}>" if title else "/>"
        self._elements.append(f'<{kind} {attributes} class="{css}"{inner}')


@dataclass(frozen=True)
class Axes:
    """A plot's area with its two scales.

    Attributes:
        drawing: What it is drawn on.
        x: From left to right.
        y: From bottom to top.
    """

    drawing: Drawing
    x: Scale
    y: Scale

    @property
    def area(self) -> Box:
        """Between the axes."""
        return Box(self.x.begin, self.y.end, self.x.end, self.y.begin)

    def draw(self, x_label: str, y_label: str, *, most_x: int = 8, most_y: int = 6) -> None:
        """Grid lines with ticks, and what the axes mean: the vertical one above its end, where it reads best."""
        area = self.area
        self.draw_levels(most_y)
        for tick, text in self._x_ticks(most_x):
            x = self.x(tick)
            self.drawing.line(x, area.top, x, area.bottom, "grid")
            self.drawing.text(x, area.bottom + 17, text, "tick middle")
        self.drawing.line(area.left, area.bottom, area.right, area.bottom, "axis")
        self.drawing.text(area.right, area.bottom + 36, x_label, "tick end")
        self.drawing.text(0, area.top - 12, y_label, "tick")

    def draw_levels(self, most: int) -> None:
        """Horizontal grid lines with ticks."""
        ticks = self.y.ticks(most)
        for tick, text in zip(ticks, tick_texts(ticks), strict=True):
            y = self.y(tick)
            self.drawing.line(self.area.left, y, self.area.right, y, "grid")
            self.drawing.text(self.area.left - 6, y + 4, text, "tick end")

    def _x_ticks(self, most: int) -> Iterator[tuple[float, str]]:
        """As many as can stand side by side."""
        while True:
            ticks = self.x.ticks(most)
            texts = tick_texts(ticks)
            gaps = [abs(self.x(b) - self.x(a)) for a, b in pairwise(ticks)]
            widths = [(text_width(a) + text_width(b)) / 2 for a, b in pairwise(texts)]
            if most <= 2 or all(gap >= width + _TICK_GAP for gap, width in zip(gaps, widths, strict=True)):
                yield from zip(ticks, texts, strict=True)
                return
            most -= 1


def first_free(candidates: Iterable[Box], area: Box, taken: Sequence[Box], curves: Sequence[Floats]) -> Box | None:
    """The first place for a label that lies in an area, meets no other label and hides no curve.

    Args:
        candidates: Places, the best first.
        area: Where labels may be.
        taken: Places of other labels.
        curves: Points of curves, each of shape `(points, 2)`.
    """
    for box in candidates:
        free = area.holds(box) and not any(box.meets(other) for other in taken)
        if free and not any(box.meets_any(curve[:, 0], curve[:, 1]) for curve in curves):
            return box
    return None


def _title(text: str) -> str:
    return f"<title>{escape(text)}</title>" if text else ""


def _round(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _tenths(count: int) -> str:
    return _round(count / 10)
