from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxdistill.device.loading.openloop import open_loop
from onnxdistill.errors import UsageError
from tests.device.loading.virtual import MS, S, VirtualTime, rng, virtual_open_loop


class GivenGaps(np.random.Generator):
    """Draws the gaps between arrivals that it was given, in ms."""

    def __init__(self, gaps_ms: list[float]) -> None:
        super().__init__(np.random.PCG64(0))
        self.gaps_ns = np.array(gaps_ms) * MS

    def exponential(self, scale: float = 1.0, size: int | None = None) -> np.ndarray:  # type: ignore[override]
        assert size == len(self.gaps_ns)
        return self.gaps_ns


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
