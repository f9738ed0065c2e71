"""`onnxdistill profile`."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich.console import Console

import onnxdistill
from onnxdistill.commands.options import Several, Shape
from onnxdistill.device.cases import name_models
from onnxdistill.device.costs.layers import Precision
from onnxdistill.device.costs.models import PRECISIONS, profile_models
from onnxdistill.device.display import BenchProgress
from onnxdistill.device.jsonfile import check_place, write_json
from onnxdistill.device.profiledisplay import show_profile
from onnxdistill.device.remote.profile import remote_profile
from onnxdistill.errors import UsageError

_FILE = click.Path(path_type=Path)


@click.command("profile")
@click.argument("models", nargs=-1, required=True, metavar="MODEL.onnx|RECIPE.toml...", type=_FILE)
@click.option(
    "--set", "overrides", metavar="KEY=VALUE", multiple=True, help="Override a value of the recipes; repeatable."
)
@click.option("--threads", default=1, show_default=True, help="Threads inside one operator.")
@click.option("--batch", default=1, show_default=True, help="Items per call.")
@click.option("--provider", default="cpu", show_default=True, help="cpu, cuda, tensorrt, openvino, coreml, ...")
@click.option(
    "--precision",
    "precisions",
    type=Several(click.Choice(PRECISIONS)),
    help="float32, int8 or both; int8 on the CPU only.  [default: both on the CPU]",
)
@click.option("--step", default=8, show_default=True, help="Measure widths that are whole multiples of it.")
@click.option(
    "--shape",
    "shapes",
    metavar="NAME=1x3x32x32",
    multiple=True,
    type=Shape(),
    help="Whole shape of an input; repeatable.",
)
@click.option(
    "--remote",
    metavar="[USER@]HOST[:PYTHON]",
    help="Measure on another machine, over ssh; Python, numpy and onnxruntime are needed there.",
)
@click.option("--fresh", is_flag=True, help="Measure all of it again, as after a busy hour.")
@click.option("--out", metavar="FILE", type=_FILE, help="Also write all times as JSON.")
def profile_command(
    models: tuple[Path, ...],
    overrides: tuple[str, ...],
    threads: int,
    batch: int,
    provider: str,
    precisions: list[Precision] | None,
    step: int,
    shapes: tuple[tuple[str, tuple[int, ...]], ...],
    remote: str | None,
    fresh: bool,
    out: Path | None,
) -> None:
    """Measure what the layers of ONNX models cost on this machine, at the widths that they have and at smaller ones.

    Of a recipe, the layers of its teacher are measured. What was measured is kept, and is not measured again.
    """
    if out is not None:
        check_place(out, models)
    asked: dict[str, Any] = {
        "threads": threads,
        "batch": batch,
        "provider": provider,
        "precisions": precisions,
        "step": step,
        "shapes": dict(shapes),
        "fresh": fresh,
    }
    with _exported(name_models(models), overrides) as named, BenchProgress(Console(stderr=True)) as progress:

        def on_progress(phase: str, done: float, total: float) -> None:
            progress(phase if phase == "send" else "layers", done, total)

        if remote is None:
            profile = profile_models(named, **asked, on_progress=on_progress)
        else:
            profile = remote_profile(remote, named, asked, on_progress)
    if out is not None:
        write_json(out, profile.to_json())
    show_profile(profile, Console(highlight=False))


@contextmanager
def _exported(named: Mapping[str, Path], overrides: Sequence[str]) -> Iterator[dict[str, Path]]:
    """ONNX files, with the teacher of a recipe in its place."""
    recipes = {name: path for name, path in named.items() if path.suffix.lower() == ".toml"}
    if overrides and not recipes:
        raise UsageError("--set replaces keys of recipes, and there is none.", "Leave it out.")
    with tempfile.TemporaryDirectory() as folder:
        files = dict(named)
        for number, (name, path) in enumerate(recipes.items()):
            files[name] = Path(folder) / f"{number}.onnx"
            onnxdistill.export_untrained(path, files[name], overrides)
        yield files
