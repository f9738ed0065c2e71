"""Pieces of an HTML page as text: escaped words, numbers, intervals, tables that scroll in a box of their own, figures.

Every function returns HTML; what comes from a user goes through `escape` first, and nothing else is ever escaped twice.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from onnxdistill.device.measuring.statistics import Estimate, Percentiles
from onnxdistill.device.numbertext import DASH, number

LATENCY_HEADINGS = ("median<br>ms", "p90<br>ms", "p95<br>ms", "p99<br>ms", "p99.9<br>ms")

# No page may hold these: control characters, halves of surrogate pairs (which stand for bytes of a file's name that are
# no text), and marks that turn the direction of what follows them.
_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")
_TAG = re.compile("<[^>]*>")


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        content: HTML.
        below: HTML of a second, smaller line, which narrow screens leave out.
        css: Classes.
        style: Inline style.
        title: Text that shows up under the pointer.
    """

    content: str
    below: str = ""
    css: str = ""
    style: str = ""
    title: str = ""


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        name: HTML of its first cell, which heads it.
        cells: The others; text stands for a cell of that HTML.
        css: Classes.
    """

    name: str
    cells: Sequence[Cell | str] = field(default_factory=tuple)
    css: str = ""


def escape(text: str) -> str:
    """A user's text as HTML, also inside of an attribute."""
    return html.escape(_FORBIDDEN.sub("\N{REPLACEMENT CHARACTER}", text))


def percent(share: float, digits: int = 1) -> str:
    """A share, 0 to 1, in per cent."""
    return f"{100 * share:.{digits}f}\N{NO-BREAK SPACE}%"


def interval(estimate: Estimate, digits: int | None = None) -> str:
    """`0.197–0.199`: a range, with so many decimal places, or as `number` has it."""
    ends = (estimate.low, estimate.high)
    return DASH.join(number(end) if digits is None else f"{end:,.{digits}f}" for end in ends)


def ratio(estimate: Estimate) -> str:
    """`3.91×`."""
    return f"{estimate.value:.2f}×"


def counted(count: int, singular: str, plural: str = "") -> str:
    """`1 thread`, `2 threads`."""
    return f"{count:,} {singular if count == 1 else plural or singular + 's'}"


def latency_cells(latency_ms: Percentiles | None) -> Iterator[Cell]:
    """Median, p90, p95, p99 and p99.9 with their intervals, as `LATENCY_HEADINGS` has them."""
    figures = ("median", "p90", "p95", "p99", "p999")
    for name in figures:
        estimate: Estimate | None = None if latency_ms is None else getattr(latency_ms, name)
        css = "strong" if name == "median" else ""
        yield Cell(DASH) if estimate is None else Cell(number(estimate.value), interval(estimate), css)


def table(label: str, headings: Sequence[Cell | str], rows: Iterable[Row], css: str = "") -> str:
    """A table in a box that scrolls sideways by itself.

    Args:
        label: Text that says what it holds, for those who do not see it.
        headings: Of the first column, too; text stands for a cell of that HTML.
        rows: From top to bottom.
        css: Classes of the table.
    """
    rows = list(rows)
    head = "".join(_cell(heading, 'th scope="col"') for heading in headings)
    body = "\n".join(_row(row) for row in rows)
    longest = max((len(html.unescape(_TAG.sub("", row.name))) for row in rows), default=0)
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(label)}">'
        f'<table class="{css}" style="--longest:{longest}ch"><thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def figure(caption: str, content: str, css: str = "") -> str:
    """A card with a caption (HTML) above its content."""
    return f'<figure class="{css}"><figcaption>{caption}</figcaption>{content}</figure>'


def section(title: str, *parts: str) -> str:
    """A heading (text) with what follows it; nothing where nothing follows."""
    content = "\n".join(part for part in parts if part)
    return f"<section>\n<h2>{escape(title)}</h2>\n{content}\n</section>" if content else ""


def note(text: str) -> str:
    """A small paragraph (HTML) beneath a table or a figure; nothing without a text."""
    return f'<p class="soft small">{text}</p>' if text else ""


def bar(share: float, css: str = "") -> str:
    """A horizontal bar of so much of its cell, 0 to 1."""
    return f'<div class="bar {css}" style="width:{100 * min(1.0, max(0.0, share)):.1f}%"></div>'


def two_sizes(wide: str, narrow: str) -> str:
    """The same plot for a desktop's and for a phone's width, of which the page shows one."""
    return f'<div class="wide">{wide}</div><div class="narrow">{narrow}</div>'


def key(entries: Iterable[tuple[str, str]]) -> str:
    """A numbered list of names with the classes of their colours."""
    items = "".join(
        f'<li><span class="number {css}">{index}</span> {escape(name)}</li>'
        for index, (name, css) in enumerate(entries, 1)
    )
    return f'<ol class="key">{items}</ol>'


def key_of_colours(colours: dict[str, str]) -> str:
    """Names with the classes of their colours."""
    items = "".join(f'<li><span class="swatch {css}"></span> {escape(name)}</li>' for name, css in colours.items())
    return f'<ul class="key">{items}</ul>'


def _row(row: Row) -> str:
    cells = "".join(_cell(cell, "td") for cell in row.cells)
    return f'<tr class="{row.css}"><th scope="row">{row.name}</th>{cells}</tr>'


def _cell(cell: Cell | str, opening: str) -> str:
    if isinstance(cell, str):
        cell = Cell(cell)
    attributes = {"class": cell.css, "style": cell.style, "title": cell.title}
    text = "".join(f' {name}="{escape(value)}"' for name, value in attributes.items() if value)
    below = f'<span class="below">{cell.below}</span>' if cell.below else ""
    return f"<{opening}{text}>{cell.content}{below}</{opening.partition(' ')[0]}>"
