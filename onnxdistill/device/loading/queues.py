"""Latency of one function under load: at a rate of requests, with clients that call back to back, and within a limit.

Timing calls one after the other says how long one takes on an idle machine. Users arrive when they like, and wait until
those before them are served. Three questions, one function each:

- `open_loop`: what is the latency when requests arrive at random, at a mean rate that doesn't depend on how fast they
  are served? This is a queue M/G/k: Poisson arrivals, one line, k workers.
- `closed_loop`: how many calls a second come out when N clients call back to back?
- `highest_rate`: up to which rate of arrivals does a percentile of the latency stay below a limit?

The first two differ as Schroeder, Wierman and Harchol-Balter describe (2006, "Open versus closed: a cautionary tale"):
a closed loop slows down with what it measures, so that it never sees a queue longer than its clients. In the open loop
a latency runs from the moment at which the request was scheduled to arrive, whatever the workers did then: a stall
shows in all requests that arrived meanwhile, instead of in one ("coordinated omission").

The functions are to be warm: see `timing.warm_up`.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from array import array
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for_futures
from dataclasses import dataclass
from math import ceil, isfinite
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from onnxdistill.device.measuring.statistics import NEEDED_TIMINGS, Series
from onnxdistill.device.measuring.timing import Clock, Runner, no_garbage_collection
from onnxdistill.errors import UsageError

Wait = Callable[[int], None]
"""Returns at a moment of the clock, in nanoseconds; at once if it has passed."""

OnProbe = Callable[["Probe"], None]

_Times = npt.NDArray[np.int64]
_T = TypeVar("_T")

_NS_PER_MS, _NS_PER_S = 1e6, 1e9

# A sleep ends about 100 microseconds too late on Linux, where the kernel gathers timers; the rest of a wait is spun.
_SPIN_NS = 300_000

# How often somebody who waits looks whether the measurement was ended.
_SLICE_NS, _POLL_S = 50_000_000, 0.2

# A thread that comes back from ONNX Runtime waits for Python's lock for as long as this, if another one computes.
_SWITCH_S = 1e-4

# One request in so many, the first ones, is not counted. The queue starts empty and forgets that within a time in the
# order of 2 rho / (1 - rho)^2 calls, where rho is the load (the relaxation time of its limit in heavy traffic; Whitt
# 1989, "Planning queueing simulations"): 40 calls at a load of 80 %, 180 at 90 %. A run of some hundred requests, or of
# a thousand, leaves that behind in its first fifth. At a load so near 1 that it doesn't, the mean over the run scatters
# by more than what is left of the empty start.
_WARMUP_PART = 5

# After the last arrival, the rest of the line gets a quarter of the asked seconds. What is not done by then has been
# queueing up at a load of about 1.2 or more, or since a stall that the run is too short for.
_DRAIN_SHARE, _DRAIN_AT_LEAST_S = 0.25, 1.0

# Of a closed loop: until all threads are there.
_START_SHARE = 0.1

# Some hundred megabytes.
_REQUESTS_AT_MOST, _CLIENTS_AT_MOST = 5_000_000, 1000

# Bounds of the search, as shares of what the workers could do at best. That is measured over a few seconds, and can be
# better under load, when the processor doesn't fall asleep between the calls.
_HIGHEST_LOAD, _LOWEST_LOAD = 1.1, 0.02
_TIMINGS_AT_LEAST = 20


@dataclass(frozen=True, eq=False)
class OpenLoopResult:
    """Requests that arrived at random, at a mean rate, and were served in order of arrival.

    The arrays have shape `(requests,)` and are in order of arrival, without the warm-up.

    Attributes:
        rate_per_s: Mean rate of the arrivals that was asked for.
        offered_per_s: The rate at which they came by chance.
        achieved_per_s: Finished calls a second, from the first counted arrival to the last end of a call.
        clients: Workers that serve the line.
        warmup_requests: Served before those that are counted.
        unfinished_requests: Not even begun when the time was over; none unless the workers were overloaded.
        utilization: Share of the workers' time that went into calls, over the same time as `achieved_per_s`.
        load: Asked rate times the time that a request takes a worker, over the number of workers: the utilization that
            an endless run would have, and above 1 where it couldn't be served.
        lateness_ms: By how much a worker that waited for a request began it too late, in the mean: the error of this
            measurement, which is part of the latencies.
        saturated: Whether the line grew without bound, as far as the run can tell: requests were left over, or those
            of the second half took the workers more time than there was. The latencies then only say how long the run
            was.
        arrival_ms: Scheduled arrival, since the start of the run.
        service_ms: The call alone.
        latency_ms: From the scheduled arrival to the end of the call.
    """

    rate_per_s: float
    offered_per_s: float
    achieved_per_s: float
    clients: int
    warmup_requests: int
    unfinished_requests: int
    utilization: float
    load: float
    lateness_ms: float
    saturated: bool
    arrival_ms: Series
    service_ms: Series
    latency_ms: Series

    def percentile(self, percent: float) -> float | None:
        """Of the latency, in ms; None if there are too few requests for it."""
        return _percentile(self.latency_ms, percent)

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dump`, with every raw time to the nanosecond."""
        return {**_plain(self), "percentiles_ms": _percentiles(self.latency_ms)}


@dataclass(frozen=True, eq=False)
class ClosedLoopResult:
    """Clients that called back to back.

    Attributes:
        clients: How many there were.
        seconds: From the first counted call to the end of the last.
        throughput_per_s: Finished calls a second, of all clients together.
        latency_ms: Every counted call, of shape `(calls,)`, in the order in which they began.
    """

    clients: int
    seconds: float
    throughput_per_s: float
    latency_ms: Series

    def percentile(self, percent: float) -> float | None:
        """Of the latency, in ms; None if there are too few calls for it."""
        return _percentile(self.latency_ms, percent)

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dump`, with every raw time to the nanosecond."""
        return {**_plain(self), "percentiles_ms": _percentiles(self.latency_ms)}


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


def _give_way() -> None:
    """Lets other threads go on, of this process and of others, without sleeping."""
    if sys.platform == "win32":
        time.sleep(0)
    else:
        # Here, a sleep of no time takes as long as the shortest sleep. A loop that never lets others go on is put aside
        # for milliseconds at some point, which may be just when a request arrives, and keeps Python's lock until then.
        os.sched_yield()


def wait_until(
    moment_ns: int,
    *,
    clock: Clock = time.perf_counter_ns,
    sleep: Callable[[float], None] = time.sleep,
    yield_cpu: Callable[[], None] = _give_way,
) -> None:
    """Waits to the microsecond, on a machine that isn't busy: sleeps until shortly before, then looks at the clock.

    Args:
        moment_ns: When to return.
        clock: Returns nanoseconds.
        sleep: Takes seconds.
        yield_cpu: Called between looks at the clock.
    """
    while (left_ns := moment_ns - clock()) > 0:
        if left_ns > _SPIN_NS:
            sleep((left_ns - _SPIN_NS) / _NS_PER_S)
        else:
            yield_cpu()


def open_loop(
    runner: Runner,
    *,
    rate_per_s: float,
    seconds: float,
    rng: np.random.Generator,
    clients: int = 1,
    clock: Clock = time.perf_counter_ns,
    wait: Wait = wait_until,
) -> OpenLoopResult:
    """Lets requests arrive at random and measures their latencies, queueing included.

    The gaps between arrivals are exponential, so that requests arrive as from many users who know nothing of each other
    (a Poisson process). Workers take the requests in order of arrival. A single one works in the calling thread, more
    of them in threads of their own. The garbage collector is off meanwhile.

    There are `rate_per_s * seconds` requests, and a fourth of that before, as a warm-up. How long this takes is up to
    chance. Workers that are overloaded stop after about one and a half times the seconds, or a second more than one and
    a quarter.

    Args:
        runner: The function, warm; it is called from several threads at once if there are several clients.
        rate_per_s: Mean rate of the arrivals.
        seconds: For how long to count requests.
        rng: Draws the arrivals.
        clients: How many workers.
        clock: Returns nanoseconds.
        wait: Waits for a moment of that clock.

    Raises:
        UsageError: If a number is out of range.
        BaseException: Whatever the function raises, after all workers have stopped.
    """
    check_load(seconds, clients)
    check_rate(rate_per_s, seconds)
    return _open_loop(runner, rate_per_s, seconds, rng, clients, clock, wait)


def closed_loop(
    runner: Runner,
    *,
    clients: int,
    seconds: float,
    clock: Clock = time.perf_counter_ns,
) -> ClosedLoopResult:
    """Lets clients call back to back for some seconds; the garbage collector is off meanwhile.

    A single client works in the calling thread, more of them in threads of their own. Calls that begin in the first
    tenth of the time are not counted, but each client makes at least one that is.

    Args:
        runner: The function, warm; it is called from several threads at once if there are several clients.
        clients: How many.
        seconds: When no call begins any more.
        clock: Returns nanoseconds.

    Raises:
        UsageError: If a number is out of range.
        BaseException: Whatever the function raises, after all clients have stopped.
    """
    check_load(seconds, clients)
    with no_garbage_collection(), _quick_switches(clients):
        begin_ns = clock()
        counted_ns = begin_ns + int(_START_SHARE * seconds * _NS_PER_S)
        end_ns = begin_ns + int(seconds * _NS_PER_S)
        parts = _in_parallel(lambda stop: _call_back_to_back(runner, counted_ns, end_ns, stop, clock), clients)
    calls = np.concatenate(parts)
    begins, ends = calls[np.argsort(calls[:, 0], kind="stable")].T
    # Over the time that all share: a client that got a single call in all that time has not called faster than others.
    throughput_per_s = len(calls) / _span_s(begins.min(), ends.max())
    return ClosedLoopResult(
        clients=clients,
        seconds=_span_s(begins.min(), ends.max()),
        throughput_per_s=throughput_per_s,
        latency_ms=(ends - begins) / _NS_PER_MS,
    )


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
    held, missed = 0.0, _HIGHEST_LOAD * capacity_per_s
    check_rate(missed, probe_seconds)
    probes: list[Probe] = []
    resolved = alone_ms > limit_ms
    while not resolved:
        rate_per_s = (held + missed) / 2
        seconds = max(probe_seconds, _timings_needed(percent) / rate_per_s)
        if clock() + _WARMUP_PART / (_WARMUP_PART - 1) * seconds * _NS_PER_S > over_ns:
            break
        result = _open_loop(runner, rate_per_s, seconds, np.random.default_rng(seed), clients, clock, wait)
        probe = _probe(result, percent, limit_ms)
        probes.append(probe)
        if on_probe is not None:
            on_probe(probe)
        held, missed = (rate_per_s, missed) if probe.held else (held, rate_per_s)
        resolved = missed - held <= tolerance * missed or (not held and missed < _LOWEST_LOAD * capacity_per_s)
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


class _Line:
    """Requests in order of arrival, and what became of them; whoever is free takes the next one."""

    def __init__(self, arrivals_ns: _Times, drain_ns: int) -> None:
        # Arrays of the standard library: an element costs a fraction of what one of numpy does.
        self.arrivals_ns = array("q", arrivals_ns.tobytes())
        self.starts_ns, self.ends_ns, self.frees_ns = (array("q", bytes(arrivals_ns.nbytes)) for _ in range(3))
        self.waited = bytearray(len(arrivals_ns))
        self.deadline_ns = self.arrivals_ns[-1] + drain_ns
        self.taken = 0
        self._lock = threading.Lock()

    def take(self, now_ns: int) -> int | None:
        """The number of the next request, even if it hasn't arrived yet; None if there is none or the time is over."""
        with self._lock:
            if self.taken == len(self.arrivals_ns) or now_ns >= self.deadline_ns:
                return None
            self.taken += 1
            return self.taken - 1

    def served(self, values: array[int] | bytearray) -> _Times:
        """Values of the requests that were served, which are the first ones: one that was taken is served."""
        return np.array(values[: self.taken], dtype=np.int64)


def _open_loop(
    runner: Runner,
    rate_per_s: float,
    seconds: float,
    rng: np.random.Generator,
    clients: int,
    clock: Clock,
    wait: Wait,
) -> OpenLoopResult:
    counted = max(1, round(rate_per_s * seconds))
    gaps_ns = rng.exponential(_NS_PER_S / rate_per_s, size=counted + counted // (_WARMUP_PART - 1))
    drain_s = max(_DRAIN_AT_LEAST_S, _DRAIN_SHARE * seconds)
    with no_garbage_collection(), _quick_switches(clients):
        begin_ns = clock()
        line = _Line(begin_ns + np.cumsum(gaps_ns).astype(np.int64), int(drain_s * _NS_PER_S))
        _in_parallel(lambda stop: _serve(line, runner, stop, clock, wait), clients)
    return _open_loop_result(line, begin_ns, rate_per_s, clients)


def _serve(line: _Line, runner: Runner, stop: threading.Event, clock: Clock, wait: Wait) -> None:
    """What a worker does: takes requests, waits until they arrive, and calls the function."""
    now_ns = clock()
    while not stop.is_set() and (index := line.take(now_ns)) is not None:
        arrival_ns = line.arrivals_ns[index]
        line.waited[index] = now_ns < arrival_ns
        while now_ns < arrival_ns:
            wait(min(arrival_ns, now_ns + _SLICE_NS))
            now_ns = clock()
            if stop.is_set():
                return
        runner()
        line.ends_ns[index] = clock()
        line.starts_ns[index] = now_ns
        line.frees_ns[index] = now_ns = clock()


def _open_loop_result(line: _Line, begin_ns: int, rate_per_s: float, clients: int) -> OpenLoopResult:
    arrivals, starts, ends, frees = map(line.served, (line.arrivals_ns, line.starts_ns, line.ends_ns, line.frees_ns))
    waited = line.served(line.waited) > 0
    first = line.taken // _WARMUP_PART
    counted = line.taken - first
    opening, closing = arrivals[first], ends.max()
    span_s = _span_s(opening, closing)
    # Calls of the warm-up that reach into the counted time keep workers busy there.
    busy_s = float(np.sum(np.clip(ends, opening, None) - np.clip(starts, opening, None))) / _NS_PER_S
    # Up to when the worker can turn to the next request, which is a little later than the end of the call.
    taken_s = (frees - starts)[first:] / _NS_PER_S
    demand = rate_per_s / clients
    unfinished = len(line.arrivals_ns) - line.taken
    late = (starts - arrivals)[first:][waited[first:]]
    return OpenLoopResult(
        rate_per_s=rate_per_s,
        offered_per_s=counted / _span_s(arrivals[first - 1] if first else begin_ns, arrivals[-1]),
        achieved_per_s=float(np.sum(ends > opening)) / span_s,
        clients=clients,
        warmup_requests=first,
        unfinished_requests=unfinished,
        utilization=busy_s / (clients * span_s),
        load=demand * float(np.mean(taken_s)),
        lateness_ms=float(np.mean(late)) / _NS_PER_MS if late.size else 0.0,
        saturated=unfinished > 0 or demand * float(np.mean(taken_s[counted // 2 :])) >= 1,
        arrival_ms=(arrivals - begin_ns)[first:] / _NS_PER_MS,
        service_ms=(ends - starts)[first:] / _NS_PER_MS,
        latency_ms=(ends - arrivals)[first:] / _NS_PER_MS,
    )


def _call_back_to_back(runner: Runner, counted_ns: int, end_ns: int, stop: threading.Event, clock: Clock) -> _Times:
    """Begin and end of each counted call of a client, of shape `(calls, 2)`."""
    calls = array("q")
    begin_ns = clock()
    while not stop.is_set() and (begin_ns < end_ns or not calls):
        runner()
        ended_ns = clock()
        if begin_ns >= counted_ns:
            calls.append(begin_ns)
            calls.append(ended_ns)
        begin_ns = clock()
    return np.array(calls, dtype=np.int64).reshape(-1, 2)


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


def _in_parallel(work: Callable[[threading.Event], _T], clients: int) -> list[_T]:
    """Does the work once for each client, at the same time; the first error, also one of the caller, ends them all.

    The work is to return soon when the event is set.
    """
    stop = threading.Event()
    if clients == 1:
        return [work(stop)]
    with ThreadPoolExecutor(clients, "client") as pool:
        try:
            futures = [pool.submit(work, stop) for _ in range(clients)]
            running: set[Future[_T]] = set(futures)
            while running:
                # Without a timeout, Windows would hold an interrupt back until the end.
                done, running = wait_for_futures(running, _POLL_S, FIRST_EXCEPTION)
                for future in done:
                    future.result()
        finally:
            stop.set()
    return [future.result() for future in futures]


@contextlib.contextmanager
def _quick_switches(clients: int) -> Iterator[None]:
    """Lets Python's threads get their turn sooner, if there are several."""
    before_s = sys.getswitchinterval()
    if clients > 1:
        sys.setswitchinterval(_SWITCH_S)
    try:
        yield
    finally:
        sys.setswitchinterval(before_s)


def _timings_needed(percent: float) -> int:
    """One timing beyond the percentile, in the mean, as in `statistics`; but some at least."""
    return max(_TIMINGS_AT_LEAST, _needed(percent))


def _needed(percent: float) -> int:
    return ceil(round(100 / (100 - percent), 6))


def _percentile(series: Series, percent: float) -> float | None:
    return float(np.percentile(series, percent)) if series.size >= _needed(percent) else None


def _percentiles(series: Series) -> dict[str, float | None]:
    return {f"p{percent:g}": _percentile(series, percent) for percent in NEEDED_TIMINGS}


def _plain(result: OpenLoopResult | ClosedLoopResult) -> dict[str, Any]:
    values = result.__dict__.items()
    return {name: value.round(6).tolist() if isinstance(value, np.ndarray) else value for name, value in values}


def _span_s(begin_ns: int, end_ns: int) -> float:
    """Never 0, which a clock with coarse steps would make of a short call."""
    return max(1, int(end_ns) - int(begin_ns)) / _NS_PER_S


def check_rate(rate_per_s: float, seconds: float) -> None:
    """Makes sure that requests can arrive at a rate for some seconds.

    Raises:
        UsageError: If they cannot, or if they would be too many.
    """
    if not (isfinite(rate_per_s) and rate_per_s > 0):
        raise UsageError(f"A rate is above 0 a second, and {rate_per_s:g} was asked for.")
    if rate_per_s * seconds > _REQUESTS_AT_MOST:
        raise UsageError(
            f"{rate_per_s:g} requests a second for {seconds:g} seconds are more than {_REQUESTS_AT_MOST:,}.",
            "Ask for a lower rate or a shorter time.",
        )


def check_load(seconds: float, clients: int) -> None:
    """Makes sure that so many clients can work for some seconds.

    Raises:
        UsageError: If a number is out of range.
    """
    if not (isfinite(seconds) and seconds > 0):
        raise UsageError(f"The time must be above 0 seconds, and {seconds:g} were asked for.")
    if not 1 <= clients <= _CLIENTS_AT_MOST:
        raise UsageError(f"There can be 1 to {_CLIENTS_AT_MOST} clients, and {clients} were asked for.")


def _check_search(percent: float, limit_ms: float, seconds_at_most: float, tolerance: float) -> None:
    if not 50 <= percent <= 99.9:
        raise UsageError(f"A percentile from 50 to 99.9 can be limited, and {percent:g} was asked for.")
    if not (isfinite(limit_ms) and limit_ms > 0):
        raise UsageError(f"A limit of the latency is above 0 ms, and {limit_ms:g} was asked for.")
    if not (isfinite(seconds_at_most) and seconds_at_most > 0):
        raise UsageError(f"The time must be above 0 seconds, and {seconds_at_most:g} were asked for.")
    if not 0 < tolerance < 1:
        raise UsageError(f"A tolerance is a share between 0 and 1, and {tolerance:g} was asked for.")
