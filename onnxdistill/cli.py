"""The command line: reads arguments, calls one function, and turns errors into exit codes.

Exit codes: 0 done; 1 it ran and the result is refused; 2 wrong usage; 130 interrupted.
"""

from __future__ import annotations

import io
import os
import signal
import sys
from math import inf
from pathlib import Path
from types import FrameType

import click
from rich.console import Console

import onnxdistill
from onnxdistill.device.bench import bench
from onnxdistill.device.display import BenchProgress, show_bench, show_findings
from onnxdistill.device.doctor import diagnose
from onnxdistill.device.jsonfile import check_place, json_text, write_json
from onnxdistill.errors import OnnxDistillError, UsageError, explained

_STDOUT = "-"
_INTERRUPTED = 130


def _parse_shapes(_ctx: click.Context, _param: click.Parameter, values: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    """`NAME=1x3x32x32`; a name may itself have an equals sign."""
    shapes = {}
    for value in values:
        name, _, sizes = value.rpartition("=")
        parts = sizes.lower().split("x")
        if not name or not all(part.isdecimal() and int(part) > 0 for part in parts):
            raise click.BadParameter(f"{value!r} does not read as NAME=1x3x32x32.")
        shapes[name] = tuple(int(part) for part in parts)
    return shapes


def _parse_minutes(_ctx: click.Context, _param: click.Parameter, value: str | None) -> float | None:
    if value is None:
        return None
    number, unit = value[:-1], value[-1:]
    try:
        minutes = float(number) * {"s": 1 / 60, "m": 1, "h": 60}[unit]
    except (ValueError, KeyError):
        minutes = 0.0
    if not 0 < minutes < inf:
        raise click.BadParameter(f"{value!r} does not read as 90s, 30m or 2h.")
    return minutes


def _print_version(ctx: click.Context, _param: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        click.echo(f"onnxdistill {onnxdistill.__version__}")
        ctx.exit()


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the version.",
)
def cli() -> None:
    """Turn a slow PyTorch teacher into a small, measured, verified int8 ONNX student."""


@cli.command("bench")
@click.argument("models", nargs=-1, required=True, metavar="MODEL.onnx...", type=click.Path(path_type=Path))
@click.option("--threads", default=1, show_default=True, help="Threads inside one operator.")
@click.option("--batch", default=1, show_default=True, help="Items per call.")
@click.option("--provider", default="cpu", show_default=True, help="cpu, cuda, tensorrt, openvino, coreml, ...")
@click.option("--runs", type=int, help="Timed calls of each model.")
@click.option("--seconds", type=float, help="Seconds to time, all models together.  [default: 10]")
@click.option("--warmup", type=int, help="Calls of each model before the timing.  [default: until steady]")
@click.option(
    "--shape",
    "shapes",
    metavar="NAME=1x3x32x32",
    multiple=True,
    callback=_parse_shapes,
    help="Whole shape of an input; repeatable.",
)
@click.option("--seed", default=0, show_default=True, help="Of the inputs, the order and the intervals.")
@click.option(
    "--json",
    "json_path",
    metavar="FILE",
    help="Also write every raw time as JSON; - for standard output alone.",
)
def bench_command(
    models: tuple[Path, ...],
    threads: int,
    batch: int,
    provider: str,
    runs: int | None,
    seconds: float | None,
    warmup: int | None,
    shapes: dict[str, tuple[int, ...]],
    seed: int,
    json_path: str | None,
) -> None:
    """Time ONNX models side by side, with intervals; the first is the baseline."""
    if json_path is not None and json_path != _STDOUT:
        check_place(Path(json_path), models)
    with BenchProgress(Console(stderr=True)) as progress:
        result = bench(
            models,
            threads=threads,
            batch=batch,
            provider=provider,
            runs=runs,
            seconds=seconds,
            warmup=warmup,
            shapes=shapes,
            seed=seed,
            on_progress=progress,
        )
    if json_path == _STDOUT:
        click.echo(json_text(result.to_json()), nl=False)
        return
    show_bench(result, Console(highlight=False))
    if json_path is not None:
        write_json(Path(json_path), result.to_json())


@cli.command("doctor")
def doctor_command() -> int:
    """Check ONNX Runtime, its providers and this machine; exit code 1 if something fails."""
    findings = diagnose()
    show_findings(findings, Console(highlight=False))
    return int(any(finding.level == "fail" for finding in findings))


@cli.command("compress")
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Folder for the student and its report.")
@click.option("--set", "overrides", metavar="KEY=VALUE", multiple=True, help="Override a value; repeatable.")
@click.option(
    "--time-budget",
    "minutes",
    metavar="30m",
    callback=_parse_minutes,
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


def main() -> None:
    """Runs the command line and ends the process with the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A console that cannot show a character gets a question mark instead of a traceback.
            stream.reconfigure(errors="replace")
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), _end)
    sys.exit(_run())


def _end(number: int, _frame: FrameType | None) -> None:
    """Ends like any other exit, so that nothing half-written stays behind."""
    sys.exit(128 + number)


def _run() -> int:
    try:
        code = cli.main(prog_name="onnxdistill", standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("Interrupted.", err=True)
        return _INTERRUPTED
    except BrokenPipeError:
        # The reader, as `head`, has seen enough.
        _abandon_output()
        return 1
    except (OnnxDistillError, OSError, MemoryError) as error:
        return _refuse(error)
    return int(code or 0)


def _refuse(error: OnnxDistillError | OSError | MemoryError) -> int:
    """Says what went wrong, in one paragraph, and returns the exit code."""
    if isinstance(error, OSError):
        known: OnnxDistillError = explained(error, "The output")
        _abandon_output()
    elif isinstance(error, MemoryError):
        known = UsageError(
            f"The memory of this machine does not suffice{f': {error}' if str(error) else ''}.",
            "Ask for a smaller batch or a smaller model, or close other programs.",
        )
    else:
        known = error
    click.echo(f"Error: {' '.join(str(known).split())}", err=True)
    return known.exit_code


def _abandon_output() -> None:
    """What cannot be written now could not be at the end either, when Python flushes once more and complains."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
