from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from onnxdistill.device.statistics import speedup, summarize

# Every bootstrap resamples a thousand times: short series keep the properties quick.
SERIES = st.integers(1, 12).flatmap(
    lambda rounds: arrays(np.float64, (rounds, 2), elements=st.floats(0.001, 1000, allow_subnormal=False))
)


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def column(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float64)[:, None]


def test_summary_of_one_to_one_hundred_by_hand() -> None:
    summary = summarize(np.arange(1.0, 101.0).reshape(25, 4), rng())
    assert summary.count == 100
    assert summary.median == 50.5
    # Linear between the two order statistics around (n - 1) p: index 89.1 is 90 + 0.1.
    assert summary.p90 == pytest.approx(90.1)
    assert summary.p95 == pytest.approx(95.05)
    assert summary.p99 == pytest.approx(99.01)
    assert summary.mean == 50.5
    # The variance of 1..n is n (n + 1) / 12.
    assert summary.std == pytest.approx((100 * 101 / 12) ** 0.5)


@pytest.mark.parametrize(
    ("count", "reported"),
    [(1, ""), (9, ""), (10, "90"), (19, "90"), (20, "90 95"), (99, "90 95"), (100, "90 95 99")],
)
def test_percentiles_only_as_far_as_the_sample_supports_them(count: int, reported: str) -> None:
    summary = summarize(np.ones((count, 1)), rng())
    found = [str(p) for p in (90, 95, 99) if getattr(summary, f"p{p}") is not None]
    assert found == reported.split()


def test_single_timing_has_no_deviation() -> None:
    summary = summarize(column(3.0), rng())
    assert (summary.median, summary.median_low, summary.median_high, summary.std) == (3.0, 3.0, 3.0, None)


def test_speedup_by_hand() -> None:
    ratio = speedup(column(10, 20, 30), column(5, 5, 5), rng())
    assert ratio.value == 4.0
    assert 2.0 <= ratio.low <= ratio.high <= 6.0


def test_pairing_removes_what_disturbs_both_sides() -> None:
    """A machine that slows down tenfold half-way leaves a ratio of rounds exactly as it is."""
    drift = np.concatenate([np.ones(50), np.full(50, 10.0)])[:, None]
    ratio = speedup(3 * drift, drift, rng())
    assert (ratio.value, ratio.low, ratio.high) == (3.0, 3.0, 3.0)
    unpaired = summarize(drift, rng())
    assert unpaired.median_high > unpaired.median_low


def test_interval_covers_the_true_median_about_as_often_as_it_says() -> None:
    source = np.random.default_rng(1)
    hits = 0
    for _ in range(60):
        summary = summarize(source.lognormal(size=(80, 1)), source)
        hits += summary.median_low <= 1.0 <= summary.median_high
    assert hits >= 50


def test_interval_is_wider_for_series_that_drift_than_for_shuffled_ones() -> None:
    slow = np.sin(np.linspace(0, 6 * np.pi, 1000))[:, None] + 5
    shuffled = np.random.default_rng(2).permutation(slow)
    drifting, independent = summarize(slow, rng()), summarize(shuffled, rng())
    assert drifting.median_high - drifting.median_low > 1.5 * (independent.median_high - independent.median_low)


def test_same_generator_gives_the_same_interval() -> None:
    series = np.random.default_rng(3).lognormal(size=(40, 2))
    assert summarize(series, rng()) == summarize(series, rng())


@given(SERIES)
def test_order_of_the_numbers(series: np.ndarray) -> None:
    summary = summarize(series, rng())
    known = [p for p in (summary.p90, summary.p95, summary.p99) if p is not None]
    assert series.min() <= summary.median_low <= summary.median_high <= series.max()
    assert series.min() <= summary.median <= series.max()
    assert known == sorted(known)


@given(SERIES)
def test_a_series_is_exactly_as_fast_as_itself(series: np.ndarray) -> None:
    ratio = speedup(series, series, rng())
    assert (ratio.value, ratio.low, ratio.high) == (1.0, 1.0, 1.0)


@given(SERIES, st.sampled_from([0.25, 2.0, 1024.0]))
def test_another_unit_changes_nothing_but_the_unit(series: np.ndarray, unit: float) -> None:
    before, after = summarize(series, rng()), summarize(unit * series, rng())
    assert after.median == unit * before.median
    assert (after.median_low, after.median_high) == pytest.approx((unit * before.median_low, unit * before.median_high))
    assert speedup(series, unit * series, rng()).value == pytest.approx(1 / unit)


@pytest.mark.parametrize("series", [np.ones(3), np.ones((0, 1)), np.ones((3, 0))])
def test_what_is_no_series(series: np.ndarray) -> None:
    with pytest.raises(ValueError, match="rounds, calls"):
        summarize(series, rng())


def test_rounds_must_pair() -> None:
    with pytest.raises(ValueError, match="3 and 2 rounds"):
        speedup(column(1, 2, 3), column(1, 2), rng())
