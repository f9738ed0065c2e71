from __future__ import annotations

import _thread
import functools
import gc
import itertools
import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxdistill.device.feeds import random_feeds
from onnxdistill.device.loading.queues import (
    OpenLoopResult,
    Probe,
    RateSearch,
    closed_loop,
    highest_rate,
    open_loop,
    wait_until,
)
from onnxdistill.device.measuring.statistics import NEEDED_TIMINGS
from onnxdistill.device.session import open_session
from onnxdistill.errors import UsageError

MS, S = 1_000_000, 1_000_000_000


@pytest.fixture(autouse=True, scope="module")
def nothing_to_collect() -> Iterator[None]:
    """Every measurement collects garbage first, which takes a tenth of a second with torch loaded."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


class VirtualTime:
    """A clock that only waiting and the timed functions move."""

    def __init__(self) -> None:
        self.now_ns = 0

    def __call__(self) -> int:
        return self.now_ns

    def wait(self, moment_ns: int) -> None:
        self.now_ns = max(self.now_ns, moment_ns)

    def server(self, service_ms: float) -> Callable[[], object]:
        def run() -> None:
            self.now_ns += int(service_ms * MS)

        return run


class GivenGaps(np.random.Generator):
    """Draws the gaps between arrivals that it was given, in ms."""

    def __init__(self, gaps_ms: list[float]) -> None:
        super().__init__(np.random.PCG64(0))
        self.gaps_ns = np.array(gaps_ms) * MS

    def exponential(self, scale: float = 1.0, size: int | None = None) -> np.ndarray:  # type: ignore[override]
        assert size == len(self.gaps_ns)
        return self.gaps_ns


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def virtual_open_loop(service_ms: float, *, rate_per_s: float, seconds: float, seed: int = 0) -> OpenLoopResult:
    clock = VirtualTime()
    server = clock.server(service_ms)
    return open_loop(server, rate_per_s=rate_per_s, seconds=seconds, rng=rng(seed), clock=clock, wait=clock.wait)


def lindley(gaps: np.ndarray, service: float) -> np.ndarray:
    """Waiting times of a single worker: W[n + 1] = max(0, W[n] + S - gap), as a running minimum (Lindley 1952)."""
    walk = np.concatenate([[0.0], np.cumsum(service - gaps[1:])])
    return walk - np.minimum.accumulate(walk)


def replayed(result: OpenLoopResult) -> tuple[np.ndarray, np.ndarray]:
    """Begin and end of each call of a result, in ms."""
    ends = result.arrival_ms + result.latency_ms
    return ends - result.service_ms, ends


def test_latencies_of_a_handful_of_arrivals_by_hand() -> None:
    clock = VirtualTime()
    # At 5, 6, 8, 30, 31 ms; each takes 4 ms. The first one in five is the warm-up.
    result = open_loop(
        clock.server(4.0),
        rate_per_s=4.0,
        seconds=1.0,
        rng=GivenGaps([5, 1, 2, 22, 1]),
        clock=clock,
        wait=clock.wait,
    )
    assert result.warmup_requests == 1
    assert result.arrival_ms.tolist() == [6, 8, 30, 31]
    # They end at 13, 17, 34, 38.
    assert result.latency_ms.tolist() == [7, 9, 4, 7]
    assert result.service_ms.tolist() == [4, 4, 4, 4]
    # From 6 to 38 ms: four calls, and 3 ms of the warm-up's.
    assert result.utilization == pytest.approx(19 / 32)
    assert result.achieved_per_s == pytest.approx(5 / 0.032)
    # Four gaps from 5 to 31 ms.
    assert result.offered_per_s == pytest.approx(4 / 0.026)
    assert result.load == pytest.approx(4.0 * 0.004)
    assert (result.unfinished_requests, result.lateness_ms, result.saturated) == (0, 0.0, False)


@given(
    # A counted number of requests and a fourth of it never come to 4, 9, 14, …
    gaps_ms=st.lists(st.integers(0, 30), min_size=1, max_size=40).filter(lambda gaps: len(gaps) % 5 != 4),
    service_ms=st.integers(1, 20),
)
def test_latencies_follow_lindleys_recursion(gaps_ms: list[int], service_ms: int) -> None:
    clock = VirtualTime()
    counted = len(gaps_ms) - len(gaps_ms) // 5
    result = open_loop(
        clock.server(service_ms),
        rate_per_s=counted,
        seconds=1.0,
        rng=GivenGaps([float(gap) for gap in gaps_ms]),
        clock=clock,
        wait=clock.wait,
    )
    wait_ms, expected = 0.0, []
    for gap in [*gaps_ms[1:], 0]:
        expected.append(wait_ms + service_ms)
        wait_ms = max(0.0, wait_ms + service_ms - gap)
    assert result.latency_ms.tolist() == expected[len(gaps_ms) - counted :]


@pytest.mark.parametrize("load", [0.5, 0.8])
def test_mean_wait_of_random_arrivals_and_constant_calls(load: float) -> None:
    """Pollaczek and Khinchine: rho s / (2 (1 - rho))."""
    result = virtual_open_loop(2.0, rate_per_s=load * 500, seconds=150_000 / (load * 500))
    wait_ms = float(np.mean(result.latency_ms - result.service_ms))
    assert wait_ms == pytest.approx(load * 2.0 / (2 * (1 - load)), rel=0.05)
    assert result.latency_ms.size == 150_000
    assert result.utilization == pytest.approx(load, rel=0.02)
    assert result.load == pytest.approx(load)
    assert result.achieved_per_s == pytest.approx(load * 500, rel=0.02)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("load", "saturated"), [(0.3, False), (0.8, False), (0.95, False), (1.05, True), (1.2, True)])
def test_overload_is_flagged_and_load_is_not(load: float, saturated: bool, seed: int) -> None:
    result = virtual_open_loop(2.0, rate_per_s=load * 500, seconds=2.0, seed=seed)
    assert result.saturated is saturated
    assert result.load == pytest.approx(load)


def test_a_server_that_slows_down_on_the_way_is_saturated() -> None:
    clock = VirtualTime()

    def throttled() -> None:
        clock.now_ns += (2 if clock.now_ns < 7 * S else 3) * MS

    result = open_loop(throttled, rate_per_s=380.0, seconds=10.0, rng=rng(), clock=clock, wait=clock.wait)
    assert result.load < 1
    assert result.saturated


def test_far_too_many_requests_end_in_time_and_are_counted_as_what_they_are() -> None:
    clock = VirtualTime()
    result = open_loop(clock.server(100.0), rate_per_s=1000.0, seconds=10.0, rng=rng(), clock=clock, wait=clock.wait)
    assert clock.now_ns < 15.5 * S
    assert result.saturated
    assert result.load == pytest.approx(100)
    assert result.achieved_per_s == pytest.approx(10, rel=0.02)
    assert result.utilization == pytest.approx(1)
    assert result.warmup_requests + result.latency_ms.size + result.unfinished_requests == 12_500
    assert result.latency_ms.size == pytest.approx(0.8 * 150, abs=3)


def test_one_stall_shows_in_all_that_arrive_meanwhile() -> None:
    """Calls back to back would count one slow call of a hundred thousand; users see 2 % of slow answers."""
    clock = VirtualTime()
    stalled = False

    def stalls_once() -> None:
        nonlocal stalled
        stall = not stalled and clock.now_ns > 50 * S
        stalled = stalled or stall
        clock.now_ns += 1 * S if stall else 1 * MS

    result = open_loop(stalls_once, rate_per_s=200.0, seconds=60.0, rng=rng(), clock=clock, wait=clock.wait)
    assert np.sum(result.service_ms > 500) == 1
    # Who arrives u seconds after its beginning waits for the rest of it and for 200 u others: 1 - 0.8 u, which is above
    # half a second for the first 125.
    assert np.sum(result.latency_ms > 500) == pytest.approx(125, abs=25)
    assert not result.saturated


def test_arrivals_are_a_poisson_process() -> None:
    gaps_ms = np.diff(virtual_open_loop(0.01, rate_per_s=100.0, seconds=200.0).arrival_ms)
    assert np.mean(gaps_ms) == pytest.approx(10.0, rel=0.02)
    # Of an exponential distribution, the deviation equals the mean, and a share of exp(-1) is above it.
    assert np.std(gaps_ms) == pytest.approx(10.0, rel=0.03)
    assert np.mean(gaps_ms > 10.0) == pytest.approx(np.exp(-1), abs=0.015)


def test_waiting_sleeps_most_of_the_time_and_ends_on_the_moment() -> None:
    now_ns, slept = 0, []

    def clock() -> int:
        nonlocal now_ns
        now_ns += 100
        return now_ns

    def sleep(seconds: float) -> None:
        nonlocal now_ns
        slept.append(seconds)
        now_ns += int(seconds * S) + 80_000

    yields: list[None] = []
    for _ in range(2):  # the second time, the moment has passed
        wait_until(20 * MS, clock=clock, sleep=sleep, yield_cpu=lambda: yields.append(None))
        assert 20 * MS <= now_ns < 20 * MS + 1000
        assert slept == pytest.approx([0.0197], abs=1e-5)
        assert len(yields) == pytest.approx(220_000 / 100, abs=5)


def test_waiting_in_real_time() -> None:
    moment_ns = time.perf_counter_ns() + 2 * MS
    wait_until(moment_ns)
    assert time.perf_counter_ns() >= moment_ns


@pytest.mark.parametrize(
    ("count", "reported"),
    [(1, ""), (9, "50"), (10, "50 90"), (20, "50 90 95"), (999, "50 90 95 99"), (1000, "50 90 95 99 99.9")],
)
def test_percentiles_only_as_far_as_the_sample_supports_them(count: int, reported: str) -> None:
    result = virtual_open_loop(1.0, rate_per_s=100.0, seconds=count / 100)
    found = [f"{percent:g}" for percent in NEEDED_TIMINGS if result.percentile(percent) is not None]
    assert found == reported.split()


def test_a_single_client_calls_back_to_back() -> None:
    clock = VirtualTime()
    result = closed_loop(clock.server(5.0), clients=1, seconds=1.0, clock=clock)
    # Those that begin from 0.1 s to before 1 s.
    assert result.latency_ms.tolist() == [5.0] * 180
    assert result.throughput_per_s == pytest.approx(200)
    assert result.seconds == pytest.approx(0.9)


def test_a_call_longer_than_the_time_is_counted_once() -> None:
    clock = VirtualTime()
    result = closed_loop(clock.server(9000.0), clients=1, seconds=1.0, clock=clock)
    assert result.latency_ms.tolist() == [9000.0]


def meeting(parties: int) -> Callable[[], object]:
    """A function whose first call in each thread ends only when so many threads are in it."""
    barrier, own = threading.Barrier(parties), threading.local()

    def run() -> None:
        if not hasattr(own, "met"):
            barrier.wait(60)
            own.met = True
        time.sleep(0.001)

    return run


def test_clients_of_a_closed_loop_call_at_the_same_time() -> None:
    assert closed_loop(meeting(3), clients=3, seconds=0.2).latency_ms.size >= 3


def test_workers_of_an_open_loop_serve_one_line() -> None:
    result = open_loop(meeting(3), rate_per_s=1000.0, seconds=0.3, rng=rng(), clients=3)
    begins, ends = replayed(result)
    running = [int(np.sum((begins <= begin) & (begin < ends))) for begin in begins]
    assert max(running) <= 3
    assert np.all(result.latency_ms >= result.service_ms)
    assert np.all(np.diff(result.arrival_ms) >= 0)
    assert 0 < result.utilization <= 1
    assert sys.getswitchinterval() == pytest.approx(0.005)


LONG_LOOPS: dict[str, Callable[[Callable[[], object], int], object]] = {
    "open": lambda run, clients: open_loop(run, rate_per_s=50.0, seconds=120.0, rng=rng(), clients=clients),
    "closed": lambda run, clients: closed_loop(run, clients=clients, seconds=120.0),
}


@pytest.mark.parametrize("clients", [1, 4])
@pytest.mark.parametrize("kind", LONG_LOOPS)
def test_the_first_error_ends_all_and_reaches_the_caller(kind: str, clients: int) -> None:
    error = ZeroDivisionError("a call failed")
    numbers = itertools.count()

    def fails() -> None:
        time.sleep(0.001)
        if next(numbers) == 5:
            raise error

    threads, begin = threading.active_count(), time.monotonic()
    with pytest.raises(ZeroDivisionError) as caught:
        LONG_LOOPS[kind](fails, clients)
    assert caught.value is error
    assert time.monotonic() - begin < 60
    assert threading.active_count() == threads
    assert gc.isenabled()
    assert sys.getswitchinterval() == pytest.approx(0.005)


@pytest.mark.parametrize("kind", LONG_LOOPS)
def test_an_interrupt_ends_all_threads(kind: str, request: pytest.FixtureRequest) -> None:
    # A process that a shell has started in the background ignores interrupts.
    request.addfinalizer(functools.partial(signal.signal, signal.SIGINT, signal.getsignal(signal.SIGINT)))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    numbers = itertools.count()

    def interrupted() -> None:
        time.sleep(0.001)
        if next(numbers) == 5:
            _thread.interrupt_main()

    threads, begin = threading.active_count(), time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        LONG_LOOPS[kind](interrupted, 2)
    assert time.monotonic() - begin < 60
    assert threading.active_count() == threads


def test_no_garbage_collection_meanwhile_and_again_afterwards() -> None:
    seen = set()
    open_loop(lambda: seen.add(gc.isenabled()), rate_per_s=1000.0, seconds=0.02, rng=rng())
    closed_loop(lambda: seen.add(gc.isenabled()), clients=1, seconds=0.02)
    assert seen == {False}
    assert gc.isenabled()


@pytest.mark.parametrize("clients", [1, 2])
def test_a_real_model(make_model, clients: int) -> None:
    session = open_session(make_model())
    runner = session.runner(random_feeds(session, 1, {}, rng()))
    opened = open_loop(runner, rate_per_s=100.0, seconds=0.3, rng=rng(), clients=clients)
    assert opened.latency_ms.shape == opened.service_ms.shape == opened.arrival_ms.shape == (30,)
    assert np.all(opened.service_ms > 0)
    assert np.all(opened.latency_ms >= opened.service_ms)
    assert opened.lateness_ms >= 0
    closed = closed_loop(runner, clients=clients, seconds=0.2)
    assert closed.latency_ms.size >= clients
    assert np.all(closed.latency_ms > 0)
    # Clients that are never idle: each does one call in its mean time.
    assert closed.throughput_per_s <= clients * 1e3 / np.min(closed.latency_ms)
    for result in (opened, closed):
        data = json.loads(json.dumps(result.to_json(), allow_nan=False))
        assert data["clients"] == clients
        assert data["latency_ms"] == pytest.approx(result.latency_ms.tolist(), abs=1e-6)
        assert data["percentiles_ms"]["p50"] == result.percentile(50)


def search(server: Callable[[], object], clock: VirtualTime, **settings: Any) -> RateSearch:
    return highest_rate(server, rng=rng(), clock=clock, wait=clock.wait, **settings)


@pytest.mark.parametrize(("percent", "limit_ms"), [(99.0, 6.0), (99.0, 12.0), (50.0, 2.5)])
def test_highest_rate_of_random_arrivals_and_constant_calls(percent: float, limit_ms: float) -> None:
    # Where the percentile crosses the limit, from unit gaps and nothing of the tested code.
    gaps = rng(1).exponential(size=300_000)
    low, high = 0.0, 500.0
    for _ in range(12):
        rate = (low + high) / 2
        latency_ms = 2.0 + lindley(gaps * 1e3 / rate, 2.0)
        low, high = (rate, high) if np.percentile(latency_ms, percent) <= limit_ms else (low, rate)
    clock = VirtualTime()
    found = search(
        clock.server(2.0),
        clock,
        percent=percent,
        limit_ms=limit_ms,
        probe_seconds=200.0,
        seconds_at_most=3600.0,
        tolerance=0.02,
    )
    assert found.rate_per_s == pytest.approx(low, rel=0.05)
    assert found.resolved
    assert found.missed_per_s is not None
    assert found.rate_per_s < found.missed_per_s <= found.rate_per_s / 0.98
    assert found.rate_per_s == max(probe.rate_per_s for probe in found.probes if probe.held)
    assert all(probe.held == (probe.rate_per_s <= found.rate_per_s) for probe in found.probes)
    assert (found.alone_ms, found.capacity_per_s) == (2.0, pytest.approx(500))


def test_a_loose_limit_is_held_up_to_where_the_line_grows_without_bound() -> None:
    clock = VirtualTime()
    heard: list[Probe] = []
    found = search(clock.server(2.0), clock, percent=90.0, limit_ms=60_000.0, on_probe=heard.append)
    assert found.rate_per_s is not None
    assert 0.95 * 500 < found.rate_per_s < 500
    assert [probe.saturated for probe in found.probes] == [probe.rate_per_s >= 500 for probe in found.probes]
    assert tuple(heard) == found.probes


def test_no_rate_holds_what_a_call_alone_misses() -> None:
    clock = VirtualTime()
    found = search(clock.server(30.0), clock, percent=99.0, limit_ms=20.0)
    assert (found.rate_per_s, found.probes, found.resolved, found.alone_ms) == (None, (), True, 30.0)


def test_no_rate_holds_if_calls_are_slow_after_every_pause() -> None:
    clock = VirtualTime()
    ended_ns = 0

    def dozes() -> None:
        nonlocal ended_ns
        clock.now_ns += (50 if clock.now_ns > ended_ns else 1) * MS
        ended_ns = clock.now_ns

    found = search(dozes, clock, percent=50.0, limit_ms=10.0)
    assert (found.rate_per_s, found.resolved, found.alone_ms) == (None, True, 1.0)
    rates = [probe.rate_per_s for probe in found.probes]
    assert rates == sorted(rates, reverse=True)
    assert found.missed_per_s == rates[-1] < 20


def test_a_search_ends_in_time_with_what_it_has() -> None:
    clock = VirtualTime()
    found = search(clock.server(2.0), clock, percent=99.0, limit_ms=20.0, seconds_at_most=20.0)
    assert clock.now_ns < 22 * S
    assert len(found.probes) == 2
    assert not found.resolved
    assert found.rate_per_s == max(probe.rate_per_s for probe in found.probes if probe.held)


def test_a_probe_is_as_long_as_its_percentile_needs() -> None:
    clock = VirtualTime()
    found = search(clock.server(100.0), clock, percent=99.0, limit_ms=300.0, probe_seconds=1.0, seconds_at_most=600.0)
    assert min(probe.requests for probe in found.probes) == 100
    # A thousand requests do not fit into the time: nothing is known then.
    hopeless = search(clock.server(100.0), clock, percent=99.9, limit_ms=300.0)
    assert (hopeless.rate_per_s, hopeless.resolved, hopeless.probes) == (None, False, ())


def test_clients_that_hardly_get_a_turn_do_not_add_to_the_throughput() -> None:
    """Fifty clients of a function that only one can call at a time."""
    turn = threading.Lock()

    def call() -> None:
        with turn:
            time.sleep(0.002)

    result = closed_loop(call, clients=50, seconds=0.3)
    assert result.throughput_per_s <= 1000 / 2
    assert result.throughput_per_s == pytest.approx(len(result.latency_ms) / result.seconds)


def test_a_search_as_json() -> None:
    clock = VirtualTime()
    found = search(clock.server(2.0), clock, percent=99.0, limit_ms=8.0)
    data = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert tuple(Probe(**probe) for probe in data.pop("probes")) == found.probes
    assert data == {key: value for key, value in found.__dict__.items() if key != "probes"}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rate_per_s": 0.0}, "A rate is above 0"),
        ({"rate_per_s": float("nan")}, "A rate is above 0"),
        ({"rate_per_s": 1e9}, "Ask for a lower rate"),
        ({"seconds": 0.0}, "above 0 seconds"),
        ({"seconds": float("inf")}, "above 0 seconds"),
        ({"clients": 0}, "1 to 1000 clients"),
        ({"clients": 1001}, "1 to 1000 clients"),
    ],
)
def test_an_open_loop_that_makes_no_sense_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        open_loop(lambda: None, rng=rng(), **{"rate_per_s": 1.0, "seconds": 1.0, **wrong})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"percent": 49.0}, "from 50 to 99.9"),
        ({"percent": 99.99}, "from 50 to 99.9"),
        ({"limit_ms": 0.0}, "above 0 ms"),
        ({"tolerance": 0.0}, "between 0 and 1"),
        ({"seconds_at_most": 0.0}, "above 0 seconds"),
        ({"probe_seconds": 0.0}, "above 0 seconds"),
        ({"clients": 0}, "1 to 1000 clients"),
    ],
)
def test_a_search_that_makes_no_sense_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        highest_rate(lambda: None, rng=rng(), **{"percent": 99.0, "limit_ms": 20.0, **wrong})
