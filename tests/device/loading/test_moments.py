from __future__ import annotations

import time

import pytest

from onnxdistill.device.loading.moments import wait_until
from tests.device.loading.virtual import MS, S


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
