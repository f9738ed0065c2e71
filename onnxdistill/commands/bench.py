"""`onnxdistill bench`."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import click
from rich.console import Console

from onnxdistill.commands.options import Bound, Percent, ProviderOption, Several, Shape
from onnxdistill.device.bench import bench
from onnxdistill.device.display import BenchProgress, show_bench
from onnxdistill.device.earlier import read_result
from onnxdistill.device.feeds import read_inputs
from onnxdistill.device.formats import FORMATS
from onnxdistill.device.jsonfile import check_place, json_text, write_json
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
@click.option("--allow-fallback", is_flag=True, help="Accept that a provider leaves nodes to the CPU.")
@click.option("--runs", type=int, help="Timed calls of each case.")
@click.option(
    "--seconds", type=float, help="Seconds to time, all cases together; at most, if something ends it.  [default: 10]"
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
@click.option("--check-outputs", is_flag=True, help="Compare the outputs with those of the baseline.")
@click.option(
    "--format", "text_format", type=click.Choice(sorted(FORMATS)), help="Print for another program, not for eyes."
)
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
    check_outputs: bool,
    text_format: str | None,
    json_path: str | None,
) -> None:
    """Time ONNX models side by side, with intervals; the first is the baseline.

    Several values of --threads, --batch, --provider and --opt-level, separated by commas, are all combined.
    """
    if text_format is not None and json_path == _STDOUT:
        raise UsageError("Both --format and --json - would go to standard output.", "Give --json a file.")
    earlier = None
    if baseline is not None and baseline.suffix == ".json":
        earlier = read_result(baseline)
    elif baseline is not None:
        models = (baseline, *models)
    if json_path is not None and json_path != _STDOUT:
        check_place(Path(json_path), (*models, *([] if inputs_path is None else [inputs_path])))
    provider_options: dict[str, dict[str, str]] = defaultdict(dict)
    for provider, key, value in options:
        provider_options[provider][key] = value
    with BenchProgress(Console(stderr=True)) as progress:
        result = bench(
            models,
            threads=threads,
            batch=batch,
            provider=providers,
            optimization_level=levels,
            provider_options=provider_options,
            allow_fallback=allow_fallback,
            io_binding=io_binding,
            runs=runs,
            seconds=seconds,
            precision=precision,
            warmup=warmup,
            shapes=dict(shapes),
            inputs=None if inputs_path is None else read_inputs(inputs_path),
            seed=seed,
            earlier=earlier,
            max_regression=max_regression,
            slo=slo,
            check_outputs=check_outputs,
            on_progress=progress,
        )
    if json_path == _STDOUT:
        click.echo(json_text(result.to_json()), nl=False)
    elif text_format is not None:
        click.echo(FORMATS[text_format](result), nl=False)
    else:
        show_bench(result, Console(highlight=False))
    if json_path not in (None, _STDOUT):
        write_json(Path(str(json_path)), result.to_json())
    _refuse_missed(result)


def _refuse_missed(result: BenchResult) -> None:
    if missed := [str(verdict) for verdict in result.verdicts if verdict.outcome == "missed"]:
        raise RegressionError(f"{'; '.join(missed)}.", "The whole 95 % interval lies beyond the limit.")
