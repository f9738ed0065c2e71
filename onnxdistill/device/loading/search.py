"""The highest rate of arrivals at which a percentile of the latency stays below a limit: open loops, bisected."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np

from onnxdistill.device.loading.clients import check_load
from onnxdistill.device.loading.closedloop import closed_loop
from onnxdistill.device.loading.latencies import needed
from onnxdistill.device.loading.moments import Wait, wait_until
from onnxdistill.device.loading.openloop import WARMUP_PART, OpenLoopResult, most_per_s, open_loop
from onnxdistill.device.measuring.timing import Clock, Runner
from onnxdistill.errors import UsageError

OnProbe = Callable[["Probe"], None]

_NS_PER_S = 1e9

# Bounds of the search: a share of what the workers could do at best, and one of what one of them does, since many may
# do no more. That is measured over a few seconds, and can be better under load, when the processor doesn't fall asleep
# between the calls.
_HIGHEST_LOAD, _LOWEST_LOAD = 1.1, 0.02
_TIMINGS_AT_LEAST = 20


@dataclass(frozen=True)
class Probe:
    """One rate that was tried.

    Attributes:
        rate_per_s: Mean rate of the arrivals.
        latency_ms: The percentile of their latency; None if so few were served that it isn't known.
        requests: How many were counted.
        load: See `OpenLoopResult`.
        saturated: Whether the line grew without bound; the latency then only says how long the probe was.
        held: Whether the limit was kept, in a steady state.
    """

    rate_per_s: float
    latency_ms: float | None
    requests: int
    load: float
    saturated: bool
    held: bool

    def to_json(self) -> dict[str, Any]:
        """The attributes by name."""
        return dict(self.__dict__)


@dataclass(frozen=True)
class RateSearch:
    """The highest rate of arrivals at which a percentile of the latency stays below a limit.

    Attributes:
        percent: The percentile.
        limit_ms: The limit.
        clients: Workers that serve the line.
        alone_ms: The percentile of calls without any load (the median, if they were too few), which is below what any
            rate can have.
        capacity_per_s: What the workers could do at best: one after the other, without gaps and without being in each
            other's way.
        rate_per_s: The highest rate that was measured to hold. None if none was: a call alone already takes longer
            than the limit (there are no probes then), or every probe missed it, down to a load of a few per cent, or
            the time was over before (`resolved` is false then).
        missed_per_s: The lowest rate above it that was measured to miss; None if none was.
        resolved: Whether the search came to its end: the two rates are as near to each other as was asked for, or no
            rate holds.
        probes: Every rate that was tried, in order of time.
    """

    percent: float
    limit_ms: float
    clients: int
    alone_ms: float
    capacity_per_s: float
    rate_per_s: float | None
    missed_per_s: float | None
    resolved: bool
    probes: tuple[Probe, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dump`."""
        return {**self.__dict__, "probes": [probe.to_json() for probe in self.probes]}


def highest_rate(
    runner: Runner,
    *,
    percent: float,
    limit_ms: float,
    rng: np.random.Generator,
    clients: int = 1,
    probe_seconds: float = 5.0,
    seconds_at_most: float = 90.0,
    tolerance: float = 0.04,
    clock: Clock = time.perf_counter_ns,
    wait: Wait = wait_until,
    on_probe: OnProbe | None = None,
) -> RateSearch:
    """Searches the highest rate of Poisson arrivals at which a percentile of the latency stays below a limit.

    Calls one after the other say what the workers could do at best. Below that the rate is bisected, with an open loop
    at each. All probes draw the same arrivals but for the rate, so that a higher rate has the higher latencies.

    A probe near the limit holds or misses by chance: what the result is sure to is more than `tolerance` if the probes
    are short. As a rule of thumb, the percentile needs ten times the requests that it can at all be taken of.

    Args:
        runner: The function, warm; it is called from several threads at once if there are several clients.
        percent: Which percentile, 50 to 99.9.
        limit_ms: What it has to stay below.
        rng: Draws the arrivals.
        clients: How many workers.
        probe_seconds: For how long each probe counts requests; longer at rates at which these are too few.
        seconds_at_most: No probe begins that would end later than this.
        tolerance: The search ends when the rates that hold and miss differ by less than this share.
        clock: Returns nanoseconds.
        wait: Waits for a moment of that clock.
        on_probe: Called after each probe.

    Raises:
        UsageError: If a number is out of range.
        BaseException: Whatever the function raises, after all workers have stopped.
    """
    check_load(probe_seconds, clients)
    _check_search(percent, limit_ms, seconds_at_most, tolerance)
    over_ns = clock() + int(seconds_at_most * _NS_PER_S)
    alone = closed_loop(runner, clients=1, seconds=probe_seconds, clock=clock)
    alone_ms = alone.percentile(percent) or float(np.median(alone.latency_ms))
    capacity_per_s = clients * alone.throughput_per_s
    seed = int(rng.integers(1 << 63))
    # No more can be offered than a probe has room for; where that holds, it is what is told.
    held, missed = 0.0, min(_HIGHEST_LOAD * capacity_per_s, most_per_s(probe_seconds))
    probes: list[Probe] = []
    resolved = alone_ms > limit_ms
    while not resolved:
        rate_per_s = (held + missed) / 2
        seconds = max(probe_seconds, _timings_needed(percent) / rate_per_s)
        if clock() + WARMUP_PART / (WARMUP_PART - 1) * seconds * _NS_PER_S > over_ns:
            break
        result = open_loop(
            runner,
            rate_per_s=rate_per_s,
            seconds=seconds,
            rng=np.random.default_rng(seed),
            clients=clients,
            clock=clock,
            wait=wait,
        )
        probe = _probe(result, percent, limit_ms)
        probes.append(probe)
        if on_probe is not None:
            on_probe(probe)
        held, missed = (rate_per_s, missed) if probe.held else (held, rate_per_s)
        resolved = missed - held <= tolerance * missed or (not held and missed < _LOWEST_LOAD * alone.throughput_per_s)
    misses = [probe.rate_per_s for probe in probes if not probe.held]
    return RateSearch(
        percent=percent,
        limit_ms=limit_ms,
        clients=clients,
        alone_ms=alone_ms,
        capacity_per_s=capacity_per_s,
        rate_per_s=held or None,
        missed_per_s=min(misses, default=None),
        resolved=resolved and (not held or bool(misses)),
        probes=tuple(probes),
    )


def _probe(result: OpenLoopResult, percent: float, limit_ms: float) -> Probe:
    latency_ms = result.percentile(percent)
    return Probe(
        rate_per_s=result.rate_per_s,
        latency_ms=latency_ms,
        requests=result.latency_ms.size,
        load=result.load,
        saturated=result.saturated,
        held=not result.saturated and latency_ms is not None and latency_ms <= limit_ms,
    )


def _timings_needed(percent: float) -> int:
    """One timing beyond the percentile, in the mean, as in `statistics`; but some at least."""
    return max(_TIMINGS_AT_LEAST, needed(percent))


def _check_search(percent: float, limit_ms: float, seconds_at_most: float, tolerance: float) -> None:
    if not 50 <= percent <= 99.9:
        raise UsageError(f"A percentile from 50 to 99.9 can be limited, and {percent:g} was asked for.")
    if not (isfinite(limit_ms) and limit_ms > 0):
        raise UsageError(f"A limit of the latency is above 0 ms, and {limit_ms:g} was asked for.")
    if not (isfinite(seconds_at_most) and seconds_at_most > 0):
        raise UsageError(f"The time must be above 0 seconds, and {seconds_at_most:g} were asked for.")
    if not 0 < tolerance < 1:
        raise UsageError(f"A tolerance is a share between 0 and 1, and {tolerance:g} was asked for.")
