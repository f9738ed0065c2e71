from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import t as student
from scipy.stats import ttest_ind

from onnxdistill.device.jsonfile import json_text
from onnxdistill.device.measuring.statistics import (
    NEEDED_TIMINGS,
    Estimate,
    Percentiles,
    geometric_mean,
    speedup,
    student_quantile,
    summarize,
    timings_to_bound,
    unpaired_speedup,
)

# Every bootstrap resamples a thousand times: short series keep the properties quick.
SERIES = st.integers(1, 12).flatmap(
    lambda rounds: arrays(np.float64, (rounds, 2), elements=st.floats(0.001, 1000, allow_subnormal=False))
)


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def column(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float64)[:, None]


def test_summary_of_one_to_one_hundred_by_hand() -> None:
    summary = summarize([np.arange(1.0, 101.0).reshape(25, 4)], rng())
    assert summary.count == 100
    assert summary.median.value == 50.5
    # Linear between the two order statistics around (n - 1) p: index 89.1 is 90 + 0.1.
    assert summary.p90.value == pytest.approx(90.1)
    assert summary.p95.value == pytest.approx(95.05)
    assert summary.p99.value == pytest.approx(99.01)
    assert summary.mean.value == 50.5
    # The variance of 1..n is n (n + 1) / 12.
    assert summary.std == pytest.approx((100 * 101 / 12) ** 0.5)


@pytest.mark.parametrize(
    ("count", "reported"),
    [
        (1, ""),
        (9, ""),
        (10, "90"),
        (19, "90"),
        (20, "90 95"),
        (99, "90 95"),
        (100, "90 95 99"),
        (999, "90 95 99"),
        (1000, "90 95 99 999"),
    ],
)
def test_percentiles_only_as_far_as_the_sample_supports_them(count: int, reported: str) -> None:
    summary = summarize([np.ones((count, 1))], rng())
    found = [str(p) for p in (90, 95, 99, 999) if getattr(summary, f"p{p}") is not None]
    assert found == reported.split()


def test_single_timing_has_no_deviation() -> None:
    summary = summarize([column(3.0)], rng())
    assert (summary.median, summary.std) == (Estimate(3.0, 0.0, math.inf), None)


def test_what_openings_differ_by_counts_however_few_calls_each_has() -> None:
    """Three openings of ten calls, whose times within are constant."""
    openings = [column(*[value] * 10) for value in (1.0, 1.1, 1.21)]
    found = summarize(openings, rng())
    half = 4.3027 * math.log(1.1) / math.sqrt(3)  # Student's, of logarithms that are a step apart
    assert found.median.value == pytest.approx(1.1)
    assert math.log(found.median.high / 1.1) == pytest.approx(half, rel=1e-3)
    pieces = summarize(openings, rng(), opened_anew=False)
    assert (pieces.median.low, pieces.median.high) == (1.0, 1.21)
    assert pieces.p90 is not None
    assert found.p90 is not None
    assert (pieces.p90.low, found.p90.low) == pytest.approx((1.1, 1.1 / math.exp(half)), rel=1e-3)


def test_speedup_by_hand() -> None:
    ratio = speedup([column(*[10, 20, 30] * 4)], [column(*[5] * 12)], rng())
    assert ratio.value == 4.0
    assert 2.0 <= ratio.low <= ratio.high <= 6.0


def test_a_few_rounds_tell_nothing_of_how_much_they_differ() -> None:
    few = [column(*[1.0, 1.1] * 4, 1.0)]
    assert (speedup(few, few, rng()).low, speedup(few, few, rng()).high) == (0.0, math.inf)
    assert summarize(few, rng()).mean.high == math.inf
    more = [column(*[1.0, 1.1] * 5)]
    assert speedup(more, more, rng()).high == 1.0
    assert summarize(more, rng()).mean.high < 1.1


def test_pairing_removes_what_disturbs_both_sides() -> None:
    """A machine that slows down tenfold half-way leaves a ratio of rounds exactly as it is."""
    drift = np.concatenate([np.ones(50), np.full(50, 10.0)])[:, None]
    ratio = speedup([3 * drift], [drift], rng())
    assert (ratio.value, ratio.low, ratio.high) == (3.0, 3.0, 3.0)
    unpaired = summarize([drift], rng())
    assert unpaired.median.high > unpaired.median.low


def test_interval_covers_the_true_median_about_as_often_as_it_says() -> None:
    source = np.random.default_rng(1)
    hits = 0
    for _ in range(60):
        summary = summarize([source.lognormal(size=(80, 1))], source)
        hits += summary.median.low <= 1.0 <= summary.median.high
    assert hits >= 50


def test_interval_is_wider_for_series_that_drift_than_for_shuffled_ones() -> None:
    slow = np.sin(np.linspace(0, 6 * np.pi, 1000))[:, None] + 5
    shuffled = np.random.default_rng(2).permutation(slow)
    drifting, independent = summarize([slow], rng()), summarize([shuffled], rng())
    assert drifting.median.high - drifting.median.low > 1.5 * (independent.median.high - independent.median.low)


def test_same_generator_gives_the_same_interval() -> None:
    series = np.random.default_rng(3).lognormal(size=(40, 2))
    assert summarize([series], rng()) == summarize([series], rng())


@given(SERIES)
def test_order_of_the_numbers(series: np.ndarray) -> None:
    summary = summarize([series], rng())
    known = [p.value for p in (summary.p90, summary.p95, summary.p99) if p is not None]
    assert summary.median.low <= summary.median.value <= summary.median.high
    if len(series) >= 10:  # enough to have an interval
        assert series.min() <= summary.median.low
        assert summary.median.high <= series.max()
    assert series.min() <= summary.median.value <= series.max()
    assert known == sorted(known)


@given(SERIES)
def test_a_series_is_exactly_as_fast_as_itself(series: np.ndarray) -> None:
    ratio = speedup([series] * 3, [series] * 3, rng())
    assert (ratio.value, ratio.low, ratio.high) == (1.0, 1.0, 1.0)


@given(SERIES, st.sampled_from([0.25, 2.0, 1024.0]))
def test_another_unit_changes_nothing_but_the_unit(series: np.ndarray, unit: float) -> None:
    before, after = summarize([series], rng()), summarize([unit * series], rng())
    assert after.median.value == unit * before.median.value
    assert (after.median.low, after.median.high) == pytest.approx((unit * before.median.low, unit * before.median.high))
    assert speedup([series], [unit * series], rng()).value == pytest.approx(1 / unit)


@pytest.mark.parametrize("series", [np.ones(3), np.ones((0, 1)), np.ones((3, 0))])
def test_what_is_no_series(series: np.ndarray) -> None:
    with pytest.raises(ValueError, match="rounds, calls"):
        summarize([series], rng())


def test_rounds_must_pair() -> None:
    with pytest.raises(ValueError, match="rounds of the two functions are not pairs"):
        speedup([column(1, 2, 3)], [column(1, 2)], rng())


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 7, 10, 19, 200])
@pytest.mark.parametrize("probability", [0.6, 0.975, 0.99, 0.9995])
def test_quantiles_are_students(probability: float, freedom: int) -> None:
    assert student_quantile(probability, freedom) == pytest.approx(student.ppf(probability, freedom), rel=1e-6)


def test_the_interval_over_openings_by_hand() -> None:
    """Three openings with speed-ups of 1, 2 and 4: the mean of the logarithms is ln 2, their deviation ln 2."""
    before = [column(value, value) for value in (1.0, 2.0, 4.0)]
    ratio = speedup(before, [column(1.0, 1.0)] * 3, rng())
    half = 4.302653 * 0.693147 / 3**0.5  # Student's 97.5 % with two degrees of freedom
    assert ratio.value == pytest.approx(2.0)
    assert (ratio.low, ratio.high) == pytest.approx((2 * np.exp(-half), 2 * np.exp(half)), rel=1e-5)


def test_what_differs_between_openings_widens_the_interval() -> None:
    steady = [np.full((50, 2), 2.0)] * 5
    jumping = [np.full((50, 2), 2.0 * factor) for factor in (0.98, 1.0, 1.02, 1.0, 0.99)]
    assert summarize(steady, rng()).median == Estimate(2.0, 2.0, 2.0)
    median = summarize(jumping, rng()).median
    assert 0.01 < median.uncertainty < 0.03
    # The bootstrap of a single opening cannot know.
    assert summarize(jumping[:1], rng()).median.uncertainty == 0.0


def test_openings_of_different_turns_are_one_series() -> None:
    summary = summarize([np.full((4, 3), 1.0), np.full((6, 2), 3.0)], rng())
    assert (summary.count, summary.mean.value) == (24, 2.0)


def test_intervals_over_openings_cover_the_true_ratio_as_often_as_they_say() -> None:
    source = np.random.default_rng(4)
    hits = 0
    for _ in range(400):
        factors = np.exp(source.normal(0, 0.02, (2, 5)))
        sides = [[np.full((3, 1), factor) for factor in side] for side in factors]
        ratio = speedup(*sides, source)
        hits += ratio.low <= 1.0 <= ratio.high
    assert 0.92 <= hits / 400 <= 0.98


def test_welch_by_hand_agrees_with_scipy() -> None:
    before, after = [2.0, 2.1, 1.9, 2.05], [1.0, 1.3, 0.9]
    found = unpaired_speedup(before, after)
    reference = ttest_ind(np.log(before), np.log(after), equal_var=False)
    assert found.value == pytest.approx(np.exp(np.mean(np.log(before)) - np.mean(np.log(after))))
    # Whole degrees of freedom, rounded down, make it a little wider than scipy's.
    low, high = np.exp(reference.confidence_interval(0.95))
    assert found.low <= low <= found.low * 1.05
    assert found.high >= high >= found.high / 1.05


def test_welch_of_openings_without_any_spread() -> None:
    assert unpaired_speedup([2.0, 2.0], [1.0, 1.0]) == Estimate(2.0, 2.0, 2.0)
    with pytest.raises(ValueError, match="two openings"):
        unpaired_speedup([2.0], [1.0, 1.0])


def test_geometric_mean_by_hand() -> None:
    mean = geometric_mean([1.0, 4.0], confidence=0.5)
    # Student's quartile with one degree of freedom is 1; the logarithms' deviation over sqrt(2) is ln 2.
    assert (mean.value, mean.low, mean.high) == pytest.approx((2.0, 1.0, 4.0))


def test_there_and_back_as_json() -> None:
    summary = summarize([np.random.default_rng(5).lognormal(size=(40, 3))] * 3, rng())
    assert Percentiles.from_json(summary.to_json()) == summary


def test_every_percentile_that_can_be_limited_is_reported() -> None:
    names = {f"p{percent:g}".replace(".", "") for percent in NEEDED_TIMINGS} - {"p50"}
    assert names == {name for name in Percentiles.__dataclass_fields__ if name.startswith("p")}


@pytest.mark.parametrize(("percent", "name", "count"), [(50.0, "median", 12), (90.0, "p90", 30), (99.0, "p99", 300)])
def test_intervals_of_one_opening_cover_percentiles_as_often_as_they_say(percent: float, name: str, count: int) -> None:
    """Of an exponential tail, whose percentiles are known; a bootstrap alone covers some 60 % of them."""
    source = np.random.default_rng(6)
    truth = -math.log(1 - percent / 100)
    hits = 0
    for _ in range(100):
        estimate = getattr(summarize([source.exponential(size=(count, 1))], source), name)
        hits += estimate.low <= truth <= estimate.high
    assert hits >= 91


def test_an_interval_that_the_sample_has_no_end_for_is_open_and_survives_json() -> None:
    p99 = summarize([np.random.default_rng(7).exponential(size=(120, 1))], rng()).p99
    assert p99 is not None
    assert p99.high == math.inf  # more than half of the samples lie below the 99th percentile as a whole
    assert Estimate.from_json(json.loads(json_text(p99.to_json()))) == p99


@pytest.mark.parametrize(("percent", "count"), [(90.0, 36), (99.0, 368), (99.9, 3688)])
def test_so_many_timings_have_one_beyond_a_percentile(percent: float, count: int) -> None:
    """0.9 ** 36 = 0.0225, and 0.9 ** 35 = 0.0250."""
    assert timings_to_bound(percent) == count
    rng = np.random.default_rng(0)
    for calls, finite in ((count, True), (count - 1, False)):
        found = summarize([rng.exponential(size=(calls, 1))], rng)
        estimate = {90.0: found.p90, 99.0: found.p99, 99.9: found.p999}[percent]
        assert estimate is not None
        assert math.isfinite(estimate.high) == finite
