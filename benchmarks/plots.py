"""One look for all plots: SVG whose text stays text, with the same bytes for the same numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK = "#7d8590"  # reads on white and on near-black
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "onnxdistill",
    "font.size": 11,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": INK,
    "grid.alpha": 0.18,
    "legend.frameon": False,
}


@contextmanager
def plot(path: Path, size: tuple[float, float] = (7.0, 4.2)) -> Iterator[Axes]:
    """Axes to draw on; the picture is written at the end."""
    with rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        yield figure.add_subplot()
        figure.savefig(path, transparent=True, metadata={"Date": None})
