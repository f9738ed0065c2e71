"""Clients that call back to back: each begins its next call when the last one has ended."""

from __future__ import annotations

import threading
import time
from array import array
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxdistill.device.loading.clients import check_load, in_parallel, quick_switches
from onnxdistill.device.loading.latencies import percentile, percentiles, plain
from onnxdistill.device.loading.moments import Times, seconds_between
from onnxdistill.device.measuring.statistics import Series
from onnxdistill.device.measuring.timing import Clock, Runner, no_garbage_collection

_NS_PER_MS, _NS_PER_S = 1e6, 1e9

# Until all threads are there.
_START_SHARE = 0.1


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
        return percentile(self.latency_ms, percent)

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dump`, with every raw time to the nanosecond."""
        return {**plain(self), "percentiles_ms": percentiles(self.latency_ms)}


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
    with no_garbage_collection(), quick_switches(clients):
        begin_ns = clock()
        counted_ns = begin_ns + int(_START_SHARE * seconds * _NS_PER_S)
        end_ns = begin_ns + int(seconds * _NS_PER_S)
        parts = in_parallel(lambda stop: _call_back_to_back(runner, counted_ns, end_ns, stop, clock), clients)
    calls = np.concatenate(parts)
    begins, ends = calls[np.argsort(calls[:, 0], kind="stable")].T
    # Over the time that all share: a client that got a single call in all that time has not called faster than others.
    throughput_per_s = len(calls) / seconds_between(begins.min(), ends.max())
    return ClosedLoopResult(
        clients=clients,
        seconds=seconds_between(begins.min(), ends.max()),
        throughput_per_s=throughput_per_s,
        latency_ms=(ends - begins) / _NS_PER_MS,
    )


def _call_back_to_back(runner: Runner, counted_ns: int, end_ns: int, stop: threading.Event, clock: Clock) -> Times:
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
