from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from onnxdistill.device.bench import bench
from onnxdistill.device.loading.closedloop import ClosedLoopResult
from onnxdistill.device.loading.openloop import OpenLoopResult
from onnxdistill.device.loading.search import Probe, RateSearch
from onnxdistill.device.loading.traffic import CaseLoad, Traffic, load_verdict
from onnxdistill.device.verdicts import Slo
from onnxdistill.errors import UsageError


def open_loop(latency_ms: np.ndarray, saturated: bool = False) -> CaseLoad:
    size = len(latency_ms)
    result = OpenLoopResult(
        rate_per_s=100.0,
        offered_per_s=100.0,
        achieved_per_s=99.0,
        clients=2,
        warmup_requests=10,
        unfinished_requests=0,
        utilization=0.5,
        load=0.5,
        lateness_ms=0.0,
        saturated=saturated,
        arrival_ms=np.arange(size, dtype=np.float64),
        service_ms=np.ones(size),
        latency_ms=latency_ms,
    )
    return CaseLoad("m", result)


LATENCIES = np.tile(np.arange(1.0, 101.0), 10)


def test_a_bound_under_load() -> None:
    verdict = load_verdict(open_loop(LATENCIES), Slo(50.0, 60.0))
    assert (verdict.outcome, verdict.limit) == ("met", "median ≤ 60 ms at 100 requests/s")
    assert verdict.measured.value == 50.5
    assert load_verdict(open_loop(LATENCIES), Slo(99.0, 90.0)).outcome == "missed"
    # A line that grows without bound keeps no bound, whatever it was like until the end.
    assert load_verdict(open_loop(LATENCIES, saturated=True), Slo(50.0, 60.0)).outcome == "missed"
    assert load_verdict(open_loop(LATENCIES[:50]), Slo(99.0, 90.0)).outcome == "unclear"


@pytest.mark.parametrize(
    ("rate", "resolved", "outcome"), [(None, True, "missed"), (12.0, True, "met"), (None, False, "unclear")]
)
def test_a_search_that_finds_a_rate_has_met_its_bound(rate: float | None, resolved: bool, outcome: str) -> None:
    probes = (Probe(12.0, 3.0, 500, 0.4, False, rate is not None),)
    search = RateSearch(99.0, 5.0, 1, 2.0, 30.0, rate, None, resolved, probes)
    load = CaseLoad("m", search)
    assert load_verdict(load, Slo(99.0, 5.0)).outcome == outcome
    assert CaseLoad.from_json(json.loads(json.dumps(load.to_json()))).result == search


def test_loads_in_words() -> None:
    assert str(open_loop(LATENCIES)) == "m at 100 requests/s: 99.00 done, median 50.50 ms, p99 99.01 ms"
    assert str(open_loop(LATENCIES[:50], saturated=True)) == (
        "m at 100 requests/s: 99.00 done, overloaded, median 25.50 ms"
    )
    closed = ClosedLoopResult(1, 10.0, 100.0, LATENCIES)
    assert str(CaseLoad("m", closed)) == "m with 1 client: 100.0 calls/s, median 50.50 ms, p99 99.01 ms"
    for rate, resolved, text in (
        (12.0, True, "m: 12.00 requests/s keep p99 ≤ 5 ms"),
        (None, True, "m: found no rate that keeps p99 ≤ 5 ms"),
        (None, False, "m: found no rate that keeps p99 ≤ 5 ms, in the time that there was"),
    ):
        assert str(CaseLoad("m", RateSearch(99.0, 5.0, 1, 2.0, 30.0, rate, None, resolved, ()))) == text


def test_there_and_back_as_json() -> None:
    load = open_loop(LATENCIES)
    again = CaseLoad.from_json(json.loads(json.dumps(load.to_json())))
    assert again.to_json() == load.to_json()
    assert isinstance(again.result, OpenLoopResult)
    np.testing.assert_array_equal(again.result.latency_ms, LATENCIES)


def test_the_highest_rate_of_nothing() -> None:
    with pytest.raises(UsageError, match=r"The highest rate of what latency\? Say it, for example --slo p99=20ms"):
        Traffic("max", 1, 1.0, None).check()


def test_real_models_under_load(make_model: Callable[..., Path]) -> None:
    models = [make_model("a.onnx"), make_model("b.onnx")]
    result = bench(models, seconds=0.3, rate=300.0, clients=2, slo=Slo(50.0, 1e4))
    assert [load.case for load in result.loads] == ["a", "b"]
    assert [load.kind for load in result.loads] == ["open loop"] * 2
    assert [str(verdict.limit) for verdict in result.verdicts] == ["median ≤ 10000 ms at 300 requests/s"] * 2
    closed = bench(models[:1], seconds=0.3, clients=2)
    assert [load.kind for load in closed.loads] == ["closed loop"]
    search = bench(models[:1], seconds=0.3, rate="max", slo=Slo(50.0, 1e4))
    assert isinstance(search.loads[0].result, RateSearch)
    assert search.loads[0].result.rate_per_s
