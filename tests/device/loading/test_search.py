from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from onnxdistill.device.loading.search import Probe, RateSearch, highest_rate
from onnxdistill.errors import UsageError
from tests.device.loading.virtual import MS, S, VirtualTime, rng


def lindley(gaps: np.ndarray, service: float) -> np.ndarray:
    """Waiting times of a single worker: W[n + 1] = max(0, W[n] + S - gap), as a running minimum (Lindley 1952)."""
    walk = np.concatenate([[0.0], np.cumsum(service - gaps[1:])])
    return walk - np.minimum.accumulate(walk)


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


def test_more_requests_than_a_probe_has_room_for_are_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxdistill.device.loading.openloop._REQUESTS_AT_MOST", 6000)
    clock = VirtualTime()
    # Five hundred calls a second, of which probes of a minute have room for a hundred.
    found = search(clock.server(2.0), clock, percent=90.0, limit_ms=1000.0, probe_seconds=60.0, seconds_at_most=1e4)
    assert found.rate_per_s is not None
    assert 90 < found.rate_per_s < 100
    assert (found.missed_per_s, found.resolved) == (None, False)


def test_a_search_as_json() -> None:
    clock = VirtualTime()
    found = search(clock.server(2.0), clock, percent=99.0, limit_ms=8.0)
    data = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert tuple(Probe(**probe) for probe in data.pop("probes")) == found.probes
    assert data == {key: value for key, value in found.__dict__.items() if key != "probes"}


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
