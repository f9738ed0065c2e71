"""`onnxdistill bench`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import click
from rich.console import Console

from onnxdistill.commands.options import Bound, Percent, ProviderOption, Rate, Several, Shape
from onnxdistill.device.bench import bench
from onnxdistill.device.cases import name_models
from onnxdistill.device.display import BenchProgress, show_bench
from onnxdistill.device.earlier import read_result
from onnxdistill.device.feeds import read_inputs
from onnxdistill.device.formats import FORMATS
from onnxdistill.device.jsonfile import check_place, json_text, write_json, write_text
from onnxdistill.device.page.whole import render_bench_page
from onnxdistill.device.remote.bench import remote_bench
from onnxdistill.device.result import BenchResult
from onnxdistill.device.session import OptimizationLevel
from onnxdistill.device.verdicts import Slo
from onnxdistill.errors import RegressionError, UsageError

_STDOUT = "-"
_FILE = click.Path(path_type=Path)
_LEVELS = click.Choice(["disabled", "basic", "extended", "all"])


@click.command("bench")
@click.argument("models", nargs=-1, required=True, metavar="MODEL.onnx...", type=_FILE)
@click.option("--threads", default="1", show_default=True, type=Several(click.INT), help="Threads inside one operator.")
@click.option("--batch", default="1", show_default=True, type=Several(click.INT), help="Items per call.")
@click.option(
    "--provider",
    "providers",
    default="cpu",
    show_default=True,
    type=Several(click.STRING),
    help="cpu, cuda, tensorrt, openvino, coreml, ...",
)
@click.option(
    "--opt-level",
    "levels",
    default="all",
    show_default=True,
    type=Several(_LEVELS),
    help="How far ONNX Runtime rewrites the graph: disabled, basic, extended, all.",
)
@click.option(
    "--provider-option",
    "options",
    metavar="PROVIDER.KEY=VALUE",
    multiple=True,
    type=ProviderOption(),
    help="As cuda.enable_cuda_graph=1 or tensorrt.trt_fp16_enable=1; repeatable.",
)
@click.option("--io-binding", is_flag=True, help="Keep inputs and outputs on the device: no copies are timed.")
@click.option("--allow-fallback", is_flag=True, help="Accept that a provider leaves a model to the CPU.")
@click.option("--runs", type=int, help="Timed calls of each case.")
@click.option(
    "--seconds",
    type=float,
    help="Seconds to time, all cases together; at most, if something ends it, or if 200,000 calls of each are made. "
    "Of a load: each case.  [default: 10; 60 with --precision, 20 with --max-regression]",
)
@click.option("--precision", metavar="1%", type=Percent(), help="End when all intervals are as narrow.")
@click.option("--warmup", type=int, help="Calls of each case before the timing.  [default: until steady]")
@click.option(
    "--shape",
    "shapes",
    metavar="NAME=1x3x32x32",
    multiple=True,
    type=Shape(),
    help="Whole shape of an input; repeatable.",
)
@click.option("--inputs", "inputs_path", metavar="FILE.npz", type=_FILE, help="Inputs by name, instead of random ones.")
@click.option("--seed", default=0, show_default=True, help="Of the inputs, the order and the intervals.")
@click.option(
    "--baseline",
    metavar="OLD.onnx|OLD.json",
    type=_FILE,
    help="What is compared with; the first model, if left out.",
)
@click.option(
    "--max-regression", metavar="5%", type=Percent(), help="Exit with 1 if a model is surely slower than that."
)
@click.option("--slo", metavar="p99=20ms", type=Bound(), help="Exit with 1 if the latency surely misses that.")
@click.option(
    "--rate", metavar="200/s|max", type=Rate(), help="Also the latency of requests that arrive at random, at that rate."
)
@click.option("--clients", metavar="N", type=int, help="Workers that take these requests; or callers back to back.")
@click.option(
    "--remote",
    metavar="[USER@]HOST[:PYTHON]",
    help="Do all that on another machine, over ssh; Python, numpy and onnxruntime are needed there.",
)
@click.option("--profile", is_flag=True, help="Where the time goes, operator by operator, and what holds it back.")
@click.option("--check-outputs", is_flag=True, help="Compare the outputs with those of the baseline.")
@click.option(
    "--format", "text_format", type=click.Choice(sorted(FORMATS)), help="Print for another program, not for eyes."
)
@click.option("--html", "html_path", metavar="FILE", type=_FILE, help="Also write a page with pictures.")
@click.option(
    "--json",
    "json_path",
    metavar="FILE",
    help="Also write every raw time as JSON; - for standard output alone.",
)
def bench_command(
    models: tuple[Path, ...],
    threads: list[int],
    batch: list[int],
    providers: list[str],
    levels: list[OptimizationLevel],
    options: tuple[tuple[str, str, str], ...],
    io_binding: bool,
    allow_fallback: bool,
    runs: int | None,
    seconds: float | None,
    precision: float | None,
    warmup: int | None,
    shapes: tuple[tuple[str, tuple[int, ...]], ...],
    inputs_path: Path | None,
    seed: int,
    baseline: Path | None,
    max_regression: float | None,
    slo: Slo | None,
    rate: float | Literal["max"] | None,
    clients: int | None,
    remote: str | None,
    profile: bool,
    check_outputs: bool,
    text_format: str | None,
    html_path: Path | None,
    json_path: str | None,
) -> None:
    """Time ONNX models side by side, with intervals; the first is the baseline.

    Several values of --threads, --batch, --provider and --opt-level, separated by commas, are all combined.
    """
    output = _Output(text_format, json_path, html_path)
    output.check((*models, *(path for path in (inputs_path, baseline) if path is not None)))
    earlier, given = None, models
    if baseline is not None and baseline.suffix == ".json":
        earlier = read_result(baseline)
    elif baseline is not None:
        models = (baseline, *models)
    asked: dict[str, Any] = {
        "threads": threads,
        "batch": batch,
        "provider": providers,
        "optimization_level": levels,
        "provider_options": _by_provider(options),
        "allow_fallback": allow_fallback,
        "io_binding": io_binding,
        "runs": runs,
        "seconds": seconds,
        "precision": precision,
        "warmup": warmup,
        "shapes": dict(shapes),
        "inputs": None if inputs_path is None else read_inputs(inputs_path),
        "seed": seed,
        "earlier": earlier,
        "max_regression": max_regression,
        "slo": slo,
        "rate": rate,
        "clients": clients,
        "profile": profile,
        "check_outputs": check_outputs,
    }
    with BenchProgress(Console(stderr=True)) as progress:
        named = name_models(models)
        asked["baseline"] = None if models is given else next(iter(named))
        if remote is None:
            result = bench(named, **asked, on_progress=progress)
        else:
            result = remote_bench(remote, named, asked, on_progress=progress)
    output.write(result)
    _refuse_missed(result)


@dataclass(frozen=True)
class _Output:
    text_format: str | None
    json_path: str | None
    html_path: Path | None

    def check(self, read: Iterable[Path]) -> None:
        """Makes sure, before any work is done, that all of it can be written."""
        if self.text_format is not None and self.json_path == _STDOUT:
            raise UsageError("Both --format and --json - would go to standard output.", "Give --json a file.")
        places = [place for place in (self.html_path, self._json_file()) if place is not None]
        if self.html_path == Path(_STDOUT):
            raise UsageError("A page does not go to standard output.", "Give --html a file.")
        if len(places) == 2 and places[0].resolve() == places[1].resolve():
            raise UsageError(f"Both --json and --html would go to {places[0]}.", "Give each its own file.")
        read = list(read)
        for place in places:
            check_place(place, read)

    def write(self, result: BenchResult) -> None:
        """Writes and shows all that was asked for; the files first, since nobody may be there to look."""
        try:
            if (file := self._json_file()) is not None:
                write_json(file, result.to_json())
            if self.html_path is not None:
                write_text(self.html_path, render_bench_page(result))
        finally:  # where a file cannot be written, minutes of timing are not lost
            self._show(result)

    def _show(self, result: BenchResult) -> None:
        if self.json_path == _STDOUT:
            click.echo(json_text(result.to_json()), nl=False)
        elif self.text_format is not None:
            click.echo(FORMATS[self.text_format](result), nl=False)
        else:
            show_bench(result, Console(highlight=False))

    def _json_file(self) -> Path | None:
        return None if self.json_path in (None, _STDOUT) else Path(str(self.json_path))


def _by_provider(options: Iterable[tuple[str, str, str]]) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for provider, key, value in options:
        found.setdefault(provider, {})[key] = value
    return found


def _refuse_missed(result: BenchResult) -> None:
    if missed := [str(verdict) for verdict in result.verdicts if verdict.outcome == "missed"]:
        raise RegressionError(f"{'; '.join(missed)}.")
