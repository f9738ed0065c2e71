"""`onnxdistill profile`."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
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
from onnxdistill.errors import OnnxDistillError, UsageError

_FILE = click.Path(path_type=Path)
_USUAL: dict[str, Any] = {"threads": 1, "batch": 1, "provider": "cpu", "step": 8, "remote": None}


@click.command("profile")
@click.argument("models", nargs=-1, required=True, metavar="MODEL.onnx...|RECIPE.toml", type=_FILE)
@click.option(
    "--set", "overrides", metavar="KEY=VALUE", multiple=True, help="Override a value of the recipe; repeatable."
)
@click.option("--threads", type=int, help="Threads inside one operator.  [default: 1, or as in the recipe]")
@click.option("--batch", type=int, help="Items per call.  [default: 1, or as in the recipe]")
@click.option("--provider", help="cpu, cuda, tensorrt, openvino, coreml, ...  [default: cpu, or as in the recipe]")
@click.option(
    "--precision",
    "precisions",
    type=Several(click.Choice(PRECISIONS)),
    help="float32, int8 or both; int8 on the CPU only.  [default: both on the CPU]",
)
@click.option(
    "--step", type=int, help="Measure widths that are whole multiples of it.  [default: 8, or as in the recipe]"
)
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
    threads: int | None,
    batch: int | None,
    provider: str | None,
    precisions: list[Precision] | None,
    step: int | None,
    shapes: tuple[tuple[str, tuple[int, ...]], ...],
    remote: str | None,
    fresh: bool,
    out: Path | None,
) -> None:
    """Measure what the layers of ONNX models cost on this machine, at the widths that they have and at smaller ones.

    Of a recipe, the layers of its teacher are measured, as its student will be timed. What was measured is kept, and is
    not measured again.
    """
    if out is not None:
        check_place(out, models)
        out = out.absolute()  # a network of the user's own may change the working folder
    chosen = {"threads": threads, "batch": batch, "provider": provider, "step": step, "remote": remote}
    with _exported(models, overrides) as (named, said), BenchProgress(Console(stderr=True)) as progress:
        asked = said | {key: value for key, value in chosen.items() if value is not None}
        asked |= {"precisions": precisions, "shapes": dict(shapes), "fresh": fresh}
        host = asked.pop("remote")

        def on_progress(phase: str, done: float, total: float) -> None:
            progress(phase if phase == "send" else "layers", done, total)

        if host is None:
            profile = profile_models(named, **asked, on_progress=on_progress)
        else:
            profile = remote_profile(host, named, asked, on_progress)
    if out is not None:
        write_json(out, profile.to_json())
    show_profile(profile, Console(highlight=False))


@contextmanager
def _exported(models: Sequence[Path], overrides: Sequence[str]) -> Iterator[tuple[dict[str, Path], dict[str, Any]]]:
    """ONNX files, or the teacher of a recipe as one, by name, and how they are to be timed."""
    recipe = _recipe_among(models, overrides)
    if recipe is None:
        yield name_models(models), dict(_USUAL)
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"{recipe.stem}.onnx"
        loaded = onnxdistill.export_untrained(recipe, file, overrides)
        bench, plan = loaded.bench, loaded.plan
        said = {"threads": bench.threads, "batch": bench.batch, "provider": bench.provider, "remote": bench.remote}
        said["step"] = _USUAL["step"] if plan is None else plan.multiple_of
        try:
            yield {recipe.stem: file}, said
        except OnnxDistillError as error:  # the user knows the recipe, not what was made of it
            told = [text.replace(str(file), str(recipe)) for text in (error.what, error.fix)]
            raise type(error)(*told) from error


def _recipe_among(models: Sequence[Path], overrides: Sequence[str]) -> Path | None:
    recipes = [path for path in models if path.suffix.lower() == ".toml"]
    if recipes and len(models) > 1:
        raise UsageError(
            f"The recipe {recipes[0]} says how its teacher is timed, and other models cannot join in.",
            "Profile it alone.",
        )
    if overrides and not recipes:
        raise UsageError("--set replaces keys of a recipe, and there is none.", "Leave it out.")
    return recipes[0] if recipes else None
