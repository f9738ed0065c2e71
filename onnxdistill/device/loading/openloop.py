"""Requests that arrive at random, at a mean rate that doesn't depend on how fast they are served.

This is a queue M/G/k: Poisson arrivals, one line, k workers. A latency runs from the moment at which the request was
scheduled to arrive, whatever the workers did then: a stall shows in all requests that arrived meanwhile, instead of in
one ("coordinated omission").
"""

from __future__ import annotations

import threading
import time
from array import array
from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np

from onnxdistill.device.loading.clients import check_load, in_parallel, quick_switches
from onnxdistill.device.loading.latencies import percentile, percentiles, plain
from onnxdistill.device.loading.moments import Times, Wait, seconds_between, wait_until
from onnxdistill.device.measuring.statistics import Series
from onnxdistill.device.measuring.timing import Clock, Runner, no_garbage_collection
from onnxdistill.errors import UsageError

_NS_PER_MS, _NS_PER_S = 1e6, 1e9

# How often a worker who waits looks whether the measurement was ended.
_SLICE_NS = 50_000_000

# One request in so many, the first ones, is not counted. The queue starts empty and forgets that within a time in the
# order of 2 rho / (1 - rho)^2 calls, where rho is the load (the relaxation time of its limit in heavy traffic; Whitt
# 1989, "Planning queueing simulations"): 40 calls at a load of 80 %, 180 at 90 %. A run of some hundred requests, or of
# a thousand, leaves that behind in its first fifth. At a load so near 1 that it doesn't, the mean over the run scatters
# by more than what is left of the empty start.
WARMUP_PART = 5

# After the last arrival, the rest of the line gets a quarter of the asked seconds. What is not done by then has been
# queueing up at a load of about 1.2 or more, or since a stall that the run is too short for.
_DRAIN_SHARE, _DRAIN_AT_LEAST_S = 0.25, 1.0

# Some hundred megabytes.
_REQUESTS_AT_MOST = 5_000_000


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
        return percentile(self.latency_ms, percent)

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dump`, with every raw time to the nanosecond."""
        return {**plain(self), "percentiles_ms": percentiles(self.latency_ms)}


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
    counted = max(1, round(rate_per_s * seconds))
    gaps_ns = rng.exponential(_NS_PER_S / rate_per_s, size=counted + counted // (WARMUP_PART - 1))
    drain_s = max(_DRAIN_AT_LEAST_S, _DRAIN_SHARE * seconds)
    with no_garbage_collection(), quick_switches(clients):
        begin_ns = clock()
        line = _Line(begin_ns + np.cumsum(gaps_ns).astype(np.int64), int(drain_s * _NS_PER_S))
        in_parallel(lambda stop: _serve(line, runner, stop, clock, wait), clients)
    return _open_loop_result(line, begin_ns, rate_per_s, clients)


def most_per_s(seconds: float) -> float:
    """The most requests a second that can arrive for so long."""
    return _REQUESTS_AT_MOST / seconds


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


class _Line:
    """Requests in order of arrival, and what became of them; whoever is free takes the next one."""

    def __init__(self, arrivals_ns: Times, drain_ns: int) -> None:
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

    def served(self, values: array[int] | bytearray) -> Times:
        """Values of the requests that were served, which are the first ones: one that was taken is served."""
        return np.array(values[: self.taken], dtype=np.int64)


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
    first = line.taken // WARMUP_PART
    counted = line.taken - first
    opening, closing = arrivals[first], ends.max()
    span_s = seconds_between(opening, closing)
    # Calls of the warm-up that reach into the counted time keep workers busy there.
    busy_s = float(np.sum(np.clip(ends, opening, None) - np.clip(starts, opening, None))) / _NS_PER_S
    # Up to when the worker can turn to the next request, which is a little later than the end of the call.
    taken_s = (frees - starts)[first:] / _NS_PER_S
    demand = rate_per_s / clients
    unfinished = len(line.arrivals_ns) - line.taken
    late = (starts - arrivals)[first:][waited[first:]]
    return OpenLoopResult(
        rate_per_s=rate_per_s,
        offered_per_s=counted / seconds_between(arrivals[first - 1] if first else begin_ns, arrivals[-1]),
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
