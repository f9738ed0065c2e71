from __future__ import annotations

import json

import numpy as np
import pytest

from onnxdistill.device.jsonfile import json_text
from onnxdistill.device.measuring.statistics import Estimate, Percentiles, summarize
from onnxdistill.device.verdicts import Slo, Verdict, check_slo, parse_slo, slo_verdict, slowdown_verdict
from onnxdistill.errors import UsageError


@pytest.mark.parametrize(
    ("text", "slo"),
    [
        ("p99=20ms", Slo(99.0, 20.0)),
        ("20ms", Slo(99.0, 20.0)),
        (" p99.9 <= 1.5 s ", Slo(99.9, 1500.0)),
        ("median=800us", Slo(50.0, 0.8)),
        ("p50=1ms", Slo(50.0, 1.0)),
    ],
)
def test_bounds_that_read(text: str, slo: Slo) -> None:
    assert parse_slo(text) == slo


@pytest.mark.parametrize("text", ["", "p99", "20", "p99=20", "p99=-1ms", "p99=0ms", "mean=1ms", "p98=1ms", "p99==1ms"])
def test_bounds_that_do_not(text: str) -> None:
    with pytest.raises(UsageError, match=r"does not read as p99=20ms|There is no p98 .* p99\.9"):
        parse_slo(text)


@pytest.mark.parametrize(
    ("speedup", "outcome"),
    [
        (Estimate(0.90, 0.88, 0.92), "missed"),  # 11 % slower, surely more than 5 %
        (Estimate(0.94, 0.92, 0.96), "unclear"),
        (Estimate(1.00, 0.98, 1.02), "met"),
        (Estimate(1.50, 1.40, 1.60), "met"),
    ],
)
def test_only_a_sure_regression_is_one(speedup: Estimate, outcome: str) -> None:
    assert slowdown_verdict("new", "old", speedup, 0.05).outcome == outcome


def test_slowdown_by_hand() -> None:
    verdict = slowdown_verdict("new", "old", Estimate(0.8, 0.5, 1.0), 0.05)
    assert (verdict.measured.value, verdict.measured.low, verdict.measured.high) == pytest.approx((25.0, 0.0, 100.0))
    assert str(verdict) == "new: at most 5 % slower than old: 25 % (0 to 100), unclear"
    assert Verdict.from_json(verdict.to_json()) == verdict


def test_bounds_of_each_percentile() -> None:
    latency_ms = summarize([np.arange(1.0, 2001.0).reshape(-1, 4)] * 3, np.random.default_rng(0))
    for percent, value in ((50.0, 1000), (90.0, 1800), (95.0, 1900), (99.0, 1980), (99.9, 1998)):
        assert slo_verdict("m", latency_ms, Slo(percent, value + 5)).outcome == "met"
        assert slo_verdict("m", latency_ms, Slo(percent, value - 900)).outcome == "missed"


def test_a_percentile_that_the_sample_does_not_support() -> None:
    latency_ms = summarize([np.ones((99, 1))], np.random.default_rng(0))
    verdict = slo_verdict("m", latency_ms, Slo(99.0, 1.0))
    assert verdict.outcome == "unclear"
    assert str(verdict) == "m: p99 ≤ 1 ms: too few calls to tell"
    assert Verdict.from_json(json.loads(json_text(verdict.to_json()))) == verdict
    # Unless it is plain from those that it does support.
    surely = slo_verdict("m", latency_ms, Slo(99.0, 0.9))
    assert (surely.outcome, surely.measured) == ("missed", latency_ms.p95)
    assert str(surely) == "m: p99 ≤ 0.9 ms, and p95 is more: 1 ms (1 to 1), missed"
    with pytest.raises(UsageError, match=r"There is no p100 in a benchmark\. Limit one of median, p90"):
        Slo(100.0, 1.0)
    with pytest.raises(UsageError, match=r"99 timed calls do not support p99, which takes at least 100\. Time longer"):
        check_slo(Slo(99.0, 1.0), 99)
    check_slo(Slo(99.0, 1.0), 100)


@pytest.mark.parametrize(
    ("measured", "outcome"),
    [
        ((1.0, 1.0, 1.0), "met"),
        ((1.0, 1.0, 1.1), "unclear"),
        ((0.9, 0.8, 1.1), "unclear"),
        ((1.2, 1.01, 2.0), "missed"),
    ],
)
def test_a_bound_that_is_just_met_is_met(measured: tuple[float, float, float], outcome: str) -> None:
    estimate = Estimate(*measured)
    latency_ms = Percentiles(100, estimate, None, None, None, None, estimate, None)
    assert slo_verdict("m", latency_ms, Slo(50.0, 1.0)).outcome == outcome
