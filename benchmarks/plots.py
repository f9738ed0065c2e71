"""Plots that look as those of the reports do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from onnxdistill.report.charts import INK, STYLE

__all__ = ["INK", "plot"]


@contextmanager
def plot(path: Path, size: tuple[float, float] = (7.0, 4.2)) -> Iterator[Axes]:
    """Axes to draw on; the picture is written at the end."""
    with rc_context({**STYLE, "legend.frameon": False}):
        figure = Figure(figsize=size, layout="constrained")
        yield figure.add_subplot()
        figure.savefig(path, transparent=True, metadata={"Date": None})
