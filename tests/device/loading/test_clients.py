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
from collections.abc import Callable

import numpy as np
import pytest

from onnxdistill.device.feeds import random_feeds
from onnxdistill.device.loading.closedloop import closed_loop
from onnxdistill.device.loading.openloop import OpenLoopResult, open_loop
from onnxdistill.device.loading.search import highest_rate
from onnxdistill.device.session import open_session
from tests.device.loading.virtual import rng


def replayed(result: OpenLoopResult) -> tuple[np.ndarray, np.ndarray]:
    """Begin and end of each call of a result, in ms."""
    ends = result.arrival_ms + result.latency_ms
    return ends - result.service_ms, ends


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


def test_many_clients_of_a_server_that_takes_one_at_a_time() -> None:
    """What one of them could do, times their number, says nothing of what they can do together."""
    serving = threading.Lock()

    def serve() -> None:
        with serving:
            time.sleep(0.004)

    found = highest_rate(serve, percent=90.0, limit_ms=60.0, rng=rng(), clients=60, probe_seconds=0.5, tolerance=0.3)
    assert found.rate_per_s is not None
    assert 20 < found.rate_per_s < 500  # and nowhere near 60 times what one of them does
