"""Timing ONNX models side by side on this machine, and saying when the numbers should not be trusted."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from onnxdistill.device.feeds import random_feeds
from onnxdistill.device.host import HostFacts, read_host
from onnxdistill.device.modelfile import ModelFile, read_model_file
from onnxdistill.device.result import BenchResult, BenchSettings, ModelTiming
from onnxdistill.device.runtime import load_runtime, short_name, usable_provider
from onnxdistill.device.session import Array, Session, SessionSettings, open_session
from onnxdistill.device.statistics import Percentiles, Series, speedup, summarize
from onnxdistill.device.timing import Timings, Warmup, time_interleaved
from onnxdistill.errors import UsageError

__all__ = ["BenchResult", "OnProgress", "bench", "shaky_machine", "shaky_timing"]

OnProgress = Callable[[str, float, float], None]

_DEFAULT_SECONDS = 10.0
_FEW_CALLS = 30
_WIDE_INTERVAL = 0.1

# Calling ONNX Runtime from Python costs some microseconds, which a shorter run than this does not dwarf.
_TINY_MS = 0.05


@dataclass(frozen=True)
class _Opened:
    file: ModelFile
    session: Session
    feeds: dict[str, Array]
    load_ms: float
    first_run_ms: float


def bench(
    models: Sequence[Path | str] | Mapping[str, Path | str],
    *,
    threads: int = 1,
    batch: int = 1,
    provider: str = "cpu",
    runs: int | None = None,
    seconds: float | None = None,
    warmup: int | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    inputs: Mapping[str, Array] | None = None,
    seed: int = 0,
    baseline: str | None = None,
    on_progress: OnProgress | None = None,
) -> BenchResult:
    """Times ONNX models side by side: every round runs each of them, in a random order.

    Args:
        models: The files; or files by the name that the result shall call them.
        threads: Threads inside one operator.
        batch: Items per call.
        provider: Execution provider, `"cpu"` or `"CUDAExecutionProvider"`.
        runs: How many calls of each model are timed.
        seconds: Instead of `runs`: for how long to time, all models together; 10 if both are left out.
        warmup: How many calls of each model come first; until their time is steady if left out.
        shapes: Whole shapes by input name, for inputs with more open dimensions than the batch.
        inputs: Arrays by input name, instead of random ones, for all models.
        seed: Of the random inputs, the order of the models and the intervals.
        baseline: Name of the model that the others are compared with; the first if left out.
        on_progress: Called between rounds, never while a model is timed, with the phase, what of it is done,
            and the total.

    Raises:
        UsageError: If the request contradicts itself or a model.
        ModelFileError: If a file does not exist or ONNX Runtime cannot load or run it.
        ProviderError: If the provider is unknown or not usable, or takes no node of a model.
        MissingPackageError: If ONNX Runtime is not installed.
    """
    _check_numbers(batch=batch, runs=runs, seconds=seconds, warmup=warmup, seed=seed)
    paths = _named(models)
    reference = next(iter(paths)) if baseline is None else baseline
    if reference not in paths:
        raise UsageError(f"The baseline {reference!r} is none of the models.", f"They are: {', '.join(paths)}.")
    load_runtime()
    settings = SessionSettings(threads=threads, provider=usable_provider(provider))
    # Before the models are loaded, which is load as well.
    host = read_host()
    opened = {}
    for done, (name, path) in enumerate(paths.items()):
        if on_progress is not None:
            on_progress("load", done, len(paths))
        opened[name] = _open(path, settings, batch, shapes or {}, inputs, np.random.default_rng(seed))
    _check_inputs_used(opened, shapes or {})
    if runs is None and seconds is None:
        seconds = _DEFAULT_SECONDS
    rng = np.random.default_rng(seed)
    timings = time_interleaved(
        {name: one.session.runner(one.feeds) for name, one in opened.items()},
        rng=rng,
        calls=runs,
        seconds=seconds,
        warmup_calls=warmup,
        on_round=None if on_progress is None else lambda done, total: on_progress("time", done, total),
    )
    rounds, calls_per_round = timings.times_ms[reference].shape
    return BenchResult(
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        settings=BenchSettings(
            threads=threads,
            batch=batch,
            provider=settings.provider,
            runs=runs,
            seconds=None if seconds is None else float(seconds),
            warmup=warmup,
            seed=seed,
            baseline=reference,
            rounds=rounds,
            calls_per_round=calls_per_round,
        ),
        host=host,
        models=tuple(_timing(name, one, timings, reference, batch, rng) for name, one in opened.items()),
        shaky=tuple(shaky_machine(host, threads)),
    )


def shaky_machine(host: HostFacts, threads: int) -> list[str]:
    """Reasons of the machine not to trust timings with that many threads; each is a sentence."""
    cpus = min(float(host.usable_cpus), host.cpu_limit or float("inf"))
    reasons = []
    if threads > cpus:
        reasons.append(f"{threads} threads share {cpus:g} usable CPUs.")
    elif host.load_average is not None and host.load_average + threads > cpus:
        reasons.append(
            f"The machine was busy: a load average of {host.load_average:g} before the start, "
            f"and {threads} more thread{'s' if threads > 1 else ''}, on {cpus:g} usable CPUs."
        )
    return reasons


def shaky_timing(latency_ms: Percentiles, warmup: Warmup) -> list[str]:
    """Reasons of its timings not to trust the numbers of a model; each is a sentence."""
    reasons = []
    if latency_ms.count < _FEW_CALLS:
        reasons.append(f"Only {latency_ms.count} calls were timed.")
    width = (latency_ms.median_high - latency_ms.median_low) / latency_ms.median if latency_ms.median else 0.0
    if width > _WIDE_INTERVAL:
        reasons.append(
            f"The median is uncertain: {latency_ms.median_low:.4g} to {latency_ms.median_high:.4g} ms, "
            f"{width:.0%} wide."
        )
    if not warmup.settled:
        reasons.append(f"The time of a call was not steady after {warmup.calls} warm-up calls.")
    if latency_ms.median < _TINY_MS:
        reasons.append(f"A call shorter than {_TINY_MS} ms is for a visible part the call from Python.")
    return reasons


def _check_numbers(*, batch: int, runs: int | None, seconds: float | None, warmup: int | None, seed: int) -> None:
    if seed < 0:
        raise UsageError(f"A seed is a whole number from 0 on, and {seed} was given.")
    if batch < 1:
        raise UsageError(f"A batch has at least 1 item, and {batch} were asked for.")
    if runs is not None and seconds is not None:
        raise UsageError("Both a number of runs and a number of seconds were given.", "Give one of them.")
    if runs is not None and runs < 1:
        raise UsageError(f"At least 1 run is needed, and {runs} were asked for.")
    if seconds is not None and not seconds > 0:
        raise UsageError(f"The time must be above 0 seconds, and {seconds:g} were asked for.")
    if warmup is not None and warmup < 0:
        raise UsageError(f"There is no warm-up of {warmup} runs.")


def _named(models: Sequence[Path | str] | Mapping[str, Path | str]) -> dict[str, Path]:
    """Names that tell the files apart: the stem, else with its folder, else with a number."""
    if isinstance(models, Mapping):
        named = {name: Path(path) for name, path in models.items()}
    else:
        paths = [Path(path) for path in models]
        stems = Counter(path.stem for path in paths)
        named = {}
        for path in paths:
            name = path.stem if stems[path.stem] == 1 else f"{path.absolute().parent.name}/{path.stem}"
            number = 1 + sum(known.partition(" #")[0] == name for known in named)
            named[name if number == 1 else f"{name} #{number}"] = path
    if not named:
        raise UsageError("There is no model to time.", "Name at least one .onnx file.")
    return named


def _open(
    path: Path,
    settings: SessionSettings,
    batch: int,
    shapes: Mapping[str, Sequence[int]],
    inputs: Mapping[str, Array] | None,
    rng: np.random.Generator,
) -> _Opened:
    file = read_model_file(path)
    begin = time.perf_counter_ns()
    session = open_session(path, settings)
    load_ms = (time.perf_counter_ns() - begin) / 1e6
    if inputs is None:
        own = {port.name: tuple(shapes[port.name]) for port in session.inputs if port.name in shapes}
        feeds = random_feeds(session, batch, own, rng)
    else:
        feeds = dict(inputs)
    session.check_feeds(feeds)
    begin = time.perf_counter_ns()
    session.run(feeds)
    first_run_ms = (time.perf_counter_ns() - begin) / 1e6
    return _Opened(file, session, feeds, load_ms, first_run_ms)


def _check_inputs_used(opened: Mapping[str, _Opened], shapes: Mapping[str, Sequence[int]]) -> None:
    known = {port.name for one in opened.values() for port in one.session.inputs}
    if unknown := shapes.keys() - known:
        raise UsageError(
            f"A shape is given for {min(unknown)!r}, which no model has as an input.",
            f"The inputs are: {', '.join(sorted(known))}.",
        )


def _timing(
    name: str, one: _Opened, timings: Timings, reference: str, batch: int, rng: np.random.Generator
) -> ModelTiming:
    series: Series = timings.times_ms[name]
    latency_ms = summarize(series, rng)
    return ModelTiming(
        name=name,
        path=str(one.file.path),
        size_bytes=one.file.size_bytes,
        sha256=one.file.sha256,
        inputs={key: array.shape for key, array in one.feeds.items()},
        load_ms=round(one.load_ms, 6),
        first_run_ms=round(one.first_run_ms, 6),
        warmup_calls=timings.warmup[name].calls,
        latency_ms=latency_ms,
        throughput_per_s=batch * 1e3 / latency_ms.median,
        speedup=speedup(timings.times_ms[reference], series, rng),
        nodes_by_provider=one.session.nodes_by_provider,
        shaky=tuple(shaky_timing(latency_ms, timings.warmup[name]) + _elsewhere(one.session)),
        times_ms=tuple(series.ravel().tolist()),
    )


def _elsewhere(session: Session) -> list[str]:
    nodes = session.nodes_by_provider
    total, own = sum(nodes.values()), nodes.get(session.provider, 0)
    if own == total:
        return []
    return [f"{total - own} of {total} nodes do not run on {short_name(session.provider)} but on the CPU."]
