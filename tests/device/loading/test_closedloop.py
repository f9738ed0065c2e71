from __future__ import annotations

import threading
import time

import pytest

from onnxdistill.device.loading.closedloop import closed_loop
from tests.device.loading.virtual import VirtualTime


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


def test_clients_that_hardly_get_a_turn_do_not_add_to_the_throughput() -> None:
    """Fifty clients of a function that only one can call at a time."""
    turn = threading.Lock()

    def call() -> None:
        with turn:
            time.sleep(0.002)

    result = closed_loop(call, clients=50, seconds=0.3)
    assert result.throughput_per_s <= 1000 / 2
    assert result.throughput_per_s == pytest.approx(len(result.latency_ms) / result.seconds)
