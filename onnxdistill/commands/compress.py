"""`onnxdistill compress`."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Console

import onnxdistill
from onnxdistill.commands.options import Minutes
from onnxdistill.errors import UsageError
from onnxdistill.overrides import keys_given

_BUDGETS = ("plan.speedup", "plan.latency_ms")


@click.command("compress")
@click.argument("recipe", required=False, type=click.Path(path_type=Path))
@click.option(
    "--onnx", "model", metavar="FILE", type=click.Path(path_type=Path), help="Instead of a RECIPE: a float ONNX file."
)
@click.option(
    "--data",
    metavar="PATH",
    type=click.Path(path_type=Path),
    help="With --onnx: samples, as an .npz file with an array for every input, or a folder of images.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Folder for the student and its report.")
@click.option("--set", "overrides", metavar="KEY=VALUE", multiple=True, help="Override a value; repeatable.")
@click.option(
    "--speedup",
    type=float,
    metavar="4",
    help="Times faster than the teacher: planned for, in place of [prune] and [factorize], and a limit, in place of a "
    "recipe's own on speed.",
)
@click.option("--latency-ms", type=float, metavar="2.5", help="The same by the latency of the student.")
@click.option(
    "--pareto",
    "count",
    type=click.IntRange(min=2),
    metavar="N",
    help="With --speedup: N students, at speeds in equal ratios up to it; each trains for itself.",
)
@click.option("--max-drop", type=float, metavar="0.5", help="Points of accuracy below the teacher; limits.max_drop.")
@click.option(
    "--time-budget",
    "minutes",
    metavar="30m",
    type=Minutes(),
    help="Time to fine-tune in, such as 90s, 30m or 2h: fewer epochs, if need be; distill.minutes.",
)
@click.option(
    "--target",
    "targets",
    multiple=True,
    metavar="NAME",
    help="Make a file for another kind of machine as well, such as arm64 or tensorrt; repeatable; quantize.targets. A "
    "recipe without [quantize] gets one.",
)
@click.option(
    "--remote",
    metavar="[USER@]HOST[:PYTHON]",
    help="Make the student for another machine: all latencies are measured there, over ssh; bench.remote.",
)
@click.option(
    "--log-file", metavar="FILE", type=click.Path(path_type=Path), help="Add a line of JSON for all that happens."
)
@click.option(
    "--tensorboard", metavar="DIR", type=click.Path(path_type=Path), help="Write the trainings' curves for TensorBoard."
)
@click.option("--quiet", is_flag=True, help="Print nothing but errors.")
def compress_command(
    recipe: Path | None,
    model: Path | None,
    data: Path | None,
    out: Path | None,
    overrides: tuple[str, ...],
    speedup: float | None,
    latency_ms: float | None,
    count: int | None,
    max_drop: float | None,
    minutes: float | None,
    targets: tuple[str, ...],
    remote: str | None,
    log_file: Path | None,
    tensorboard: Path | None,
    quiet: bool,
) -> None:
    """Make a student from a RECIPE: prune, factorize, distill, export, quantize, verify; or quantize an ONNX file."""
    console = None if quiet else Console(highlight=False)
    if speedup is not None or latency_ms is not None:
        _check_planned(overrides, "limits.min_speedup" if latency_ms is None else "limits.max_latency_ms")
    asked = _asked(speedup, latency_ms, max_drop, plans=model is None)
    overrides = (*_replaced(speedup, latency_ms), *overrides, *asked)
    if targets:
        overrides = (*overrides, f"quantize.targets={json.dumps(targets)}")
    if remote is not None:
        overrides = (*overrides, f"bench.remote={json.dumps(remote)}")
    assists = int(os.environ.get("RANK", 0)) > 0  # torchrun says so
    if model is not None:
        _check_alone(recipe, data, minutes, tensorboard, count)
        assert data is not None
        if not assists:  # nothing is trained
            onnxdistill.quantize_onnx(model, data, out=out, overrides=overrides, console=console, log_file=log_file)
        return
    if data is not None:
        raise UsageError("--data is for an ONNX file.", "Name one with --onnx; a recipe has its data in [data].")
    if recipe is None:
        raise UsageError(
            "There is nothing to compress.",
            "Name a recipe, or an ONNX file with --onnx and samples for it with --data.",
        )
    settings = overrides if minutes is None else (*overrides, f"distill.minutes={minutes}")
    if count is not None:
        onnxdistill.compress_front(
            recipe, count, out=out, overrides=settings, console=console, log_file=log_file, tensorboard=tensorboard
        )
    elif assists:
        onnxdistill.assist(recipe, settings)
    else:
        onnxdistill.compress(
            recipe, out=out, overrides=settings, console=console, log_file=log_file, tensorboard=tensorboard
        )


def _check_planned(overrides: Sequence[str], limit: str) -> None:
    """Refuses what the budget's own options would undo, such as the limit that they set."""
    for item in overrides:
        keys = keys_given(item)
        if any(key.partition(".")[0] in ("prune", "factorize") or key in _BUDGETS for key in keys):
            raise UsageError(
                f"--set {item!r} has no effect beside --speedup or --latency-ms, which plan for one budget in place "
                "of [prune] and [factorize].",
                "Leave out one of them.",
            )
        if limit in keys:
            option = "--speedup" if limit == "limits.min_speedup" else "--latency-ms"
            raise UsageError(f"--set {item!r} has no effect beside {option}, which sets it.", "Leave out one of them.")


def _replaced(speedup: float | None, latency_ms: float | None) -> list[str]:
    """A recipe's own limit on speed is not asked for any more, but one that is set beside these options."""
    if speedup is None and latency_ms is None:
        return []
    return ["limits.max_latency_ms=" if latency_ms is None else "limits.min_speedup="]


def _asked(speedup: float | None, latency_ms: float | None, max_drop: float | None, *, plans: bool) -> list[str]:
    """What is promised of the student, as overrides: it is planned for that, and does not ship without."""
    if speedup is not None and latency_ms is not None:
        raise UsageError("--speedup and --latency-ms exclude each other.", "Leave out one of them.")
    asked = [] if max_drop is None else [f"limits.max_drop={max_drop}"]
    for key, other, limit, value in (
        ("speedup", "latency_ms", "min_speedup", speedup),
        ("latency_ms", "speedup", "max_latency_ms", latency_ms),
    ):
        if value is not None:
            planned = [f"plan.{key}={value}", f"plan.{other}=", "prune=", "factorize="]
            asked += [f"limits.{limit}={value}", *(planned if plans else [])]
    return asked


def _check_alone(
    recipe: Path | None, data: Path | None, minutes: float | None, tensorboard: Path | None, count: int | None
) -> None:
    if count is not None:
        raise UsageError("--pareto is for recipes: an ONNX file has one int8 form.", "Leave it out.")
    if recipe is not None:
        raise UsageError(f"The recipe {recipe} and --onnx exclude each other.", "Leave out one of them.")
    if data is None:
        raise UsageError("--onnx needs samples for the inputs of the model.", "Name them with --data.")
    if minutes is not None:
        raise UsageError("--time-budget is for trainings, and an ONNX file is not trained.", "Leave it out.")
    if tensorboard is not None:
        raise UsageError("--tensorboard shows trainings, and an ONNX file is not trained.", "Leave it out.")
