"""A device profile on a console."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from onnxdistill.device.costs.deviceprofile import DeviceProfile
from onnxdistill.device.costs.layers import Layer, LayerKind
from onnxdistill.device.costs.probes import Widths
from onnxdistill.device.numbertext import number

_US_PER_MS = 1e3


def show_profile(profile: DeviceProfile, console: Console) -> None:
    """Prints the machine, and a row for every kind of layer: what it takes where it is narrow, and where it is wide."""
    host = profile.host
    threads = f"{profile.threads} thread{'s' if profile.threads > 1 else ''}"
    console.print(Text(f"{host.cpu}; {host.os}; ONNX Runtime {host.onnxruntime}; {profile.provider}, {threads}"))
    console.print()
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False)
    table.add_column("layers", overflow="fold")
    for heading in ("widths", "narrowest\nµs", "G multiply-\nadds/s", "widest\nµs", "G multiply-\nadds/s"):
        table.add_column(heading, justify="right", no_wrap=True)
    for kind, surface in sorted(profile.surfaces.items(), key=lambda one: _order(one[0])):
        narrow = min(surface.points_ms, key=lambda pair: pair[0] * pair[1])
        wide = max(surface.points_ms, key=lambda pair: pair[0] * pair[1])
        ends = [_end(kind, pair, surface.points_ms[pair]) for pair in (narrow, wide)]
        table.add_row(str(kind), f"{_text(narrow)} to {_text(wide)}", *(cell for cells in ends for cell in cells))
    console.print(table)


def _order(kind: LayerKind) -> tuple[object, ...]:
    """By precision, then from large images to small ones, and products last."""
    return kind.precision, kind.product, [-size for size in kind.places[1:]], kind.kernel, kind.stride, str(kind)


def _end(kind: LayerKind, widths: Widths, time_ms: float) -> tuple[str, str]:
    gmacs_per_s = Layer("", kind, *widths).macs / time_ms / 1e6 if time_ms > 0 else None
    return number(time_ms * _US_PER_MS), number(gmacs_per_s)


def _text(widths: Widths) -> str:
    return f"{widths[0]}→{widths[1]}"
