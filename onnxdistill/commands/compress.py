"""`onnxdistill compress`."""

from __future__ import annotations

import os
from pathlib import Path

import click
from rich.console import Console

import onnxdistill
from onnxdistill.commands.options import Minutes


@click.command("compress")
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Folder for the student and its report.")
@click.option("--set", "overrides", metavar="KEY=VALUE", multiple=True, help="Override a value; repeatable.")
@click.option(
    "--time-budget",
    "minutes",
    metavar="30m",
    type=Minutes(),
    help="Time to fine-tune in, such as 90s, 30m or 2h: fewer epochs, if need be; distill.minutes.",
)
@click.option(
    "--log-file", metavar="FILE", type=click.Path(path_type=Path), help="Add a line of JSON for all that happens."
)
@click.option("--quiet", is_flag=True, help="Print nothing but errors.")
def compress_command(
    recipe: Path,
    out: Path | None,
    overrides: tuple[str, ...],
    minutes: float | None,
    log_file: Path | None,
    quiet: bool,
) -> None:
    """Make a student from a RECIPE: prune, factorize, distill, export, quantize, verify."""
    settings = overrides if minutes is None else (*overrides, f"distill.minutes={minutes}")
    if int(os.environ.get("RANK", 0)) > 0:  # torchrun says so
        onnxdistill.assist(recipe, settings)
        return
    console = None if quiet else Console(highlight=False)
    onnxdistill.compress(recipe, out=out, overrides=settings, console=console, log_file=log_file)
