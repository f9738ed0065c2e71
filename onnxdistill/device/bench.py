"""Timing ONNX models side by side on this machine, and saying when the numbers should not be trusted."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np

from onnxdistill.device.cases import Case, baselines, combine, name_models, options_by_provider, several
from onnxdistill.device.earlier import check_same_inputs, check_same_machine, doubts_of_earlier, matching_case
from onnxdistill.device.feeds import InputSource
from onnxdistill.device.host import read_cpu_times, read_host
from onnxdistill.device.loading.traffic import CaseLoad, Traffic, load_verdict, put_load
from onnxdistill.device.measuring import doubts
from onnxdistill.device.measuring.agreement import Agreement, agreements, check_comparable
from onnxdistill.device.measuring.measurement import EARLIER_RUNS_NEEDED, Effort, Measurement, OnProgress
from onnxdistill.device.measuring.memory import peak_memory
from onnxdistill.device.measuring.statistics import summarize, timings_to_bound
from onnxdistill.device.modelfile import ModelFile, read_model_file
from onnxdistill.device.profiling.profiles import CaseProfile, Profiler
from onnxdistill.device.result import BenchResult, BenchSettings, CaseTiming
from onnxdistill.device.runtime import load_runtime
from onnxdistill.device.session import Array, OptimizationLevel, SessionSettings
from onnxdistill.device.verdicts import Slo, Verdict, check_slo, parse_slo, slo_verdict, slowdown_verdict
from onnxdistill.errors import UsageError

_LOAD_SECONDS = 10.0

__all__ = ["BenchResult", "OnProgress", "bench"]


def bench(
    models: Sequence[Path | str] | Mapping[str, Path | str],
    *,
    threads: int | Sequence[int] = 1,
    batch: int | Sequence[int] = 1,
    provider: str | Sequence[str] = "cpu",
    optimization_level: OptimizationLevel | Sequence[OptimizationLevel] = "all",
    provider_options: Mapping[str, Mapping[str, str]] | None = None,
    allow_fallback: bool = False,
    io_binding: bool = False,
    runs: int | None = None,
    seconds: float | None = None,
    precision: float | None = None,
    warmup: int | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    inputs: Mapping[str, Array] | None = None,
    seed: int = 0,
    baseline: str | None = None,
    earlier: BenchResult | None = None,
    max_regression: float | None = None,
    slo: Slo | str | None = None,
    rate: float | Literal["max"] | None = None,
    clients: int | None = None,
    profile: bool = False,
    check_outputs: bool = False,
    on_progress: OnProgress | None = None,
) -> BenchResult:
    """Times ONNX models side by side: every round runs each of them in every setting, in a random order.

    Args:
        models: The files; or files by the name that the result shall call them.
        threads: Threads inside one operator; with several numbers, every model is timed with each.
        batch: Items per call; likewise.
        provider: Execution provider, `"cpu"` or `"CUDAExecutionProvider"`; likewise.
        optimization_level: How far ONNX Runtime rewrites the graph; likewise.
        provider_options: Options by name, of every provider by its short name.
        allow_fallback: Accept that a provider leaves a whole model to the CPU, or is not there at all. A part of the
            nodes is always accepted, and told.
        io_binding: Keep inputs and outputs on the provider's device, so that copies are not timed.
        runs: How many calls of each case are timed.
        seconds: Instead of `runs`: for how long to time, all cases together; 10 if both are left out. With
            `precision` or `max_regression`: for how long at most, 60 or 20 if it is left out.
        precision: Go on until the interval of each median and of each speed-up is as narrow: 0.01 is ± 1 %.
        warmup: How many calls of each case come first; until their time is steady if left out.
        shapes: Whole shapes by input name, for inputs with more open dimensions than the batch.
        inputs: Arrays by input name, instead of random ones, for all models; the first items make a batch.
        seed: Of the random inputs, the order of the cases and the intervals.
        baseline: Name of the model that the others are compared with; the first if left out. One that is named, and
            that others are compared with, need not keep `slo` itself.
        earlier: The result of an earlier benchmark on this machine, as the baseline of all models.
        max_regression: Fail a case that is slower than its baseline by more than this share; 0.05 is 5 %. The
            measurement ends when that is clear.
        slo: Fail a case whose latency misses this bound, such as `"p99=20ms"`; under load, if there is some.
        rate: After the timing, put each case under load: so many requests a second, which arrive at random and wait
            until those before them are served. `"max"` searches the highest rate that keeps `slo`.
        clients: How many workers take the requests; without a rate, how many callers call one session back to back.
        profile: Find out where the time of each case goes, operator by operator, and what holds it back.
        check_outputs: Compare the outputs of the models with those of the baseline.
        on_progress: Called between rounds, never while a model is timed, with the phase, what of it is done,
            and the total.

    Raises:
        UsageError: If the request contradicts itself or a model.
        ModelFileError: If a file does not exist or ONNX Runtime cannot load or run it.
        ProviderError: If a provider is unknown or not usable here.
        FallbackError: If a provider leaves a whole model to the CPU, and that was not allowed.
        MissingPackageError: If ONNX Runtime is not installed.
    """
    slo = parse_slo(slo) if isinstance(slo, str) else slo
    traffic = _traffic(rate, clients, seconds, slo)
    needed = 0 if slo is None or traffic is not None else timings_to_bound(slo.percent)
    effort = Effort(runs, seconds, precision, max_regression, warmup, seed, needed)
    effort.check()
    if slo is not None and runs is not None and traffic is None:
        check_slo(slo, runs)
    paths = name_models(models)
    reference = _reference(paths, baseline)
    exempt = baseline if len(paths) > 1 and earlier is None else None
    load_runtime()
    options = options_by_provider(provider_options or {}, several(provider))
    settings = [
        SessionSettings(count, name, level, options[name], allow_fallback, io_binding)
        for count, name, level in itertools.product(several(threads), options, several(optimization_level))
    ]
    cases = combine(paths, settings, several(batch))
    compared = baselines(cases, reference)
    if check_outputs and len(paths) == 1:
        raise UsageError("Outputs are compared with those of another model, and there is one.", "Name a second model.")
    if max_regression is not None and earlier is None and all(name == other for name, other in compared.items()):
        raise UsageError("A limit on regressions needs a baseline.", "Name a second model, or --baseline FILE.")
    # Before the models are loaded, which is load as well.
    host = read_host()
    files = {name: read_model_file(path) for name, path in paths.items()}
    known: dict[str, CaseTiming] = {}
    if earlier is not None:
        check_same_machine(earlier, host, {case.settings.provider for case in cases.values()})
        if runs is not None and runs < EARLIER_RUNS_NEEDED:
            raise UsageError(
                f"{runs} runs are too few for a comparison with another process.",
                f"Ask for at least {EARLIER_RUNS_NEEDED}.",
            )
        known = {name: matching_case(earlier, case) for name, case in cases.items()}
    source = InputSource(shapes or {}, inputs, seed, several(batch))
    progress = on_progress or (lambda _phase, _done, _total: None)
    medians_ms = {name: one.medians_ms() for name, one in known.items()}
    measurement = Measurement(cases, compared, effort, source.feeds, progress, medians_ms)
    measurement.open()
    source.check_shapes_used(measurement.openings.sessions.values())
    source.check_same_work(measurement.openings.feeds, {name: case.batch for name, case in cases.items()})
    for name, before in known.items():
        check_same_inputs(before, measurement.openings.feeds[name])
    if check_outputs:
        _check_comparable(measurement, cases, reference)
    # First of all: what cannot be profiled ends here, and not after minutes of timing.
    profiles = list(_profiles(measurement, cases, progress)) if profile else []
    begin = read_cpu_times()
    measurement.time()
    timings = measurement.openings.timings
    most_threads = max(case.settings.threads for case in cases.values())
    shaky = doubts.of_machine(host, most_threads, begin, read_cpu_times())
    shaky += doubts.of_drift([one.series for one in timings.values()])
    if earlier is not None:
        providers = [session.provider for session in measurement.openings.sessions.values()]
        shaky += doubts_of_earlier(earlier, known.values(), host, providers)
    loads = [] if traffic is None else list(_loads(measurement, traffic, seed, progress))
    found = list(_agreements(measurement, cases, reference, source)) if check_outputs else []
    results = []
    for done, (name, case) in enumerate(cases.items()):
        progress("memory", done, len(cases))
        against = f"earlier {known[name].name}" if name in known else compared[name]
        results.append(_case_timing(name, case, files[case.model], measurement, against))
    return BenchResult(
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        settings=BenchSettings(
            runs=runs,
            seconds=None if runs is not None else effort.time_s,
            precision=precision,
            warmup=warmup,
            seed=seed,
            baseline=reference,
            calls_per_round=tuple(series.shape[1] for series in timings[next(iter(cases))].series),
        ),
        host=host,
        cases=tuple(results),
        loads=tuple(loads),
        profiles=tuple(profiles),
        agreements=tuple(found),
        verdicts=tuple(
            _verdicts(
                results,
                loads,
                [] if max_regression is None else measurement.limited(),
                [] if slo is None else [name for name, case in cases.items() if case.model != exempt],
                max_regression,
                slo,
            )
        ),
        shaky=tuple(shaky),
    )


def _traffic(
    rate: float | Literal["max"] | None, clients: int | None, seconds: float | None, slo: Slo | None
) -> Traffic | None:
    """The load that is asked for, if some is."""
    if rate is None and clients is None:
        return None
    traffic = Traffic(rate, 1 if clients is None else clients, seconds or _LOAD_SECONDS, slo)
    traffic.check()
    if slo is not None and isinstance(rate, int | float):
        check_slo(slo, round(rate * traffic.seconds), under_load=True)
    return traffic


def _reference(paths: Mapping[str, Path], baseline: str | None) -> str:
    if baseline is None:
        return next(iter(paths))
    if baseline not in paths:
        raise UsageError(f"The baseline {baseline!r} is none of the models.", f"They are: {', '.join(paths)}.")
    return baseline


def _loads(measurement: Measurement, traffic: Traffic, seed: int, progress: OnProgress) -> Iterator[CaseLoad]:
    """Every case under load, one after the other."""
    openings = measurement.openings
    for done, (name, session) in enumerate(openings.sessions.items()):
        progress("load test", done, len(openings.sessions))
        within = functools.partial(_within, progress, done, len(openings.sessions))
        yield put_load(name, session.shared_runner(openings.feeds[name]), traffic, np.random.default_rng(seed), within)


def _within(progress: OnProgress, done: int, total: int, share: float) -> None:
    progress("load test", done + share, total)


def _profiles(measurement: Measurement, cases: Mapping[str, Case], progress: OnProgress) -> Iterator[CaseProfile]:
    """Every case, one after the other."""
    profiler = Profiler()
    for done, (name, case) in enumerate(cases.items()):
        progress("profile", done, len(cases))
        yield profiler.profile(name, case, measurement.openings.feeds[name])


def _agreements(
    measurement: Measurement, cases: Mapping[str, Case], reference: str, source: InputSource
) -> Iterator[Agreement]:
    """Every model beside the baseline, in the first setting of each."""
    first = _first_cases(cases)
    sessions = measurement.openings.sessions
    session = sessions[first[reference]]
    for model, name in first.items():
        if model != reference:
            batches = source.batches(cases[first[reference]].batch, session)
            yield from agreements((reference, session), (model, sessions[name]), batches)


def _check_comparable(measurement: Measurement, cases: Mapping[str, Case], reference: str) -> None:
    first = _first_cases(cases)
    sessions = measurement.openings.sessions
    expected = first[reference]
    for name in first.values():
        check_comparable(sessions[expected], sessions[name])
        # Shapes that the models leave open show up when they run.
        pair = (cases[expected].model, sessions[expected]), (cases[name].model, sessions[name])
        agreements(*pair, [measurement.openings.feeds[expected]])


def _first_cases(cases: Mapping[str, Case]) -> dict[str, str]:
    """Per model the name of its first case."""
    first: dict[str, str] = {}
    for name, case in cases.items():
        first.setdefault(case.model, name)
    return first


def _verdicts(
    cases: Sequence[CaseTiming],
    loads: Sequence[CaseLoad],
    limited: Collection[str],
    bounded: Collection[str],
    max_regression: float | None,
    slo: Slo | None,
) -> Iterator[Verdict]:
    """Whether each case meets the limits; that of the latency is meant for the load, if there is some."""
    for case in cases:
        if max_regression is not None and case.name in limited:
            yield slowdown_verdict(case.name, case.compared_with, case.speedup, max_regression)
        if slo is not None and case.name in bounded and not loads:
            yield slo_verdict(case.name, case.latency_ms, slo)
    for load in loads:
        if slo is not None and load.case in bounded:
            yield load_verdict(load, slo)


def _case_timing(name: str, case: Case, file: ModelFile, measurement: Measurement, against: str) -> CaseTiming:
    """What was measured of a case; its memory is measured now."""
    openings = measurement.openings
    one, session, feeds = openings.timings[name], openings.sessions[name], openings.feeds[name]
    latency_ms = summarize(one.series, measurement.rng)
    return CaseTiming(
        name=name,
        model=case.model,
        path=str(file.path),
        size_bytes=file.size_bytes,
        sha256=file.sha256,
        threads=case.settings.threads,
        batch=case.batch,
        provider=session.provider,
        optimization_level=case.settings.optimization_level,
        provider_options=dict(case.settings.provider_options),
        io_binding=case.settings.io_binding,
        inputs={key: array.shape for key, array in feeds.items()},
        load_ms=round(float(np.median(one.load_ms)), 6),
        first_run_ms=round(float(np.median(one.first_run_ms)), 6),
        warmup_calls=one.warmup.calls,
        latency_ms=latency_ms,
        throughput_per_s=case.batch * 1e3 / latency_ms.mean.value,
        compared_with=against,
        speedup=measurement.speedup(name),
        nodes_by_provider=session.nodes_by_provider,
        memory=peak_memory(case, feeds),
        shaky=tuple(doubts.of_timing(latency_ms, one.warmup) + doubts.of_placement(session, case)),
        times_ms=tuple(tuple(series.ravel().tolist()) for series in one.series),
    )
