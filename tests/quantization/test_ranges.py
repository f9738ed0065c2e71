"""Ranges: by hand, against numpy, against the published algorithm as a loop; and what has no ordinary range."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from onnxdistill.quantization.histogram import HALF, Histogram
from onnxdistill.quantization.ranges import Method, Range, divergences_of, find_range, squared_errors

METHODS: tuple[Method, ...] = get_args(Method)
Array = NDArray[np.float32]
VALUES = arrays.arrays(
    np.float32,
    st.integers(1, 300),
    elements=st.floats(-100, 100, width=32).map(lambda number: 0.0 if abs(number) < 1e-4 else number),
)


def histogram(values: Array | Sequence[float]) -> Histogram:
    made = Histogram("x")
    made.add(np.asarray(values, np.float32))
    return made


def found(values: Array | Sequence[float], method: Method, **options: bool | float) -> Range:
    covered = find_range(histogram(values), method, **options)  # type: ignore[arg-type]
    assert covered is not None
    return covered


def test_minmax_is_exact_and_holds_zero() -> None:
    assert found([-1.25, 0.1, 3.0], "minmax") == (-1.25, 3.0)
    assert found([2.0, 3.0], "minmax") == (0.0, 3.0)
    assert found([-2.0, -3.0], "minmax") == (-3.0, 0.0)
    assert found([-1.25, 0.1, 3.0], "minmax", symmetric=True) == (-3.0, 3.0)


def test_percentile_by_hand() -> None:
    values = np.arange(1, 1001, dtype=np.float32)  # bins are 1/8 wide
    # One value in a hundred is outside: ten above, and none below where nothing is negative.
    assert found(values, "percentile", percent=99.0) == (0.0, 990.125)
    assert found(-values, "percentile", percent=99.0) == (-995.0, 0.0)
    assert found(np.concatenate((values, -values)), "percentile", percent=99.0) == (-990.0, 990.125)
    assert found(np.concatenate((values, -values / 2)), "percentile", percent=99.0) == (-495.0, 990.125)
    assert found(values, "percentile", percent=100.0) == (0.0, 1000.0)


@pytest.mark.parametrize("method", METHODS)
def test_a_histogram_of_nothing_has_no_range(method: Method) -> None:
    assert find_range(Histogram(), method) is None


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [0.0, 1e-40])
def test_a_tensor_that_is_always_zero_gets_an_ordinary_scale(method: Method, value: float) -> None:
    assert found([value, 0.0], method) == (0.0, 1.0)
    assert found([value, 0.0], method, symmetric=True) == (-1.0, 1.0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [7.3, -0.02, 1e-30, 1e30])
def test_a_constant_tensor(method: Method, value: float) -> None:
    covered = found([value] * 5, method)
    far = covered.high if value > 0 else covered.low
    assert min(covered, key=abs) == 0.0
    assert far == pytest.approx(value, rel=2 / HALF)
    assert found([value] * 5, method, symmetric=True).high == pytest.approx(abs(value), rel=2 / HALF)


@pytest.mark.parametrize("method", METHODS)
def test_an_enormous_dynamic_range(method: Method) -> None:
    limits = np.finfo(np.float32)
    covered = found([limits.max, limits.min, limits.tiny, 0.0, 1.0], method)
    assert np.isfinite(covered).all()
    assert covered.low < 0 < covered.high


@given(VALUES, st.sampled_from(METHODS), st.booleans())
def test_ranges_lie_within_the_values_and_hold_zero(values: Array, method: Method, symmetric: bool) -> None:
    assume(np.any(values))
    low, high = found(values, method, symmetric=symmetric)
    assert low <= 0 <= high
    assert low < high
    if symmetric:
        assert low == -high
        assert high <= np.abs(values).max()
    else:
        assert min(values.min(), 0) <= low
        assert high <= max(values.max(), 0)
        assert low == 0 or values.min() < 0  # nothing is spent below zero after a Relu


@given(VALUES, st.floats(50, 100))
def test_percentiles_are_those_of_numpy_within_a_bin(values: Array, percent: float) -> None:
    assume(np.any(values))
    made = histogram(values)
    low, high = found(values, "percentile", percent=percent)
    outside = int(len(values) * (100 - percent) / 100 + 1e-6)
    ordered = np.sort(values)
    below = 0 if ordered[0] >= 0 else outside // 2
    assert high == pytest.approx(max(ordered[len(values) - 1 - (outside - below)], 0), abs=made.width * 1.001)
    assert low == pytest.approx(min(ordered[below], 0), abs=made.width * 1.001)


def test_the_default_percentile_is_numpys_within_a_bin() -> None:
    values = np.maximum(np.random.default_rng(0).standard_normal(1_000_000, dtype=np.float32), 0)
    expected = np.percentile(values, 99.999, method="inverted_cdf")
    assert found(values, "percentile").high == pytest.approx(expected, abs=1.001 * histogram(values).width)


def published_divergence(counts: NDArray[np.int64], bins: int, levels: int) -> float:
    """The loop of Migacz 2017, slide 34, for one `bins`."""
    reference = counts[:bins].astype(float)
    reference[-1] += counts[bins:].sum()
    candidate = np.zeros(bins)
    for level in range(levels):
        start, stop = level * bins // levels, (level + 1) * bins // levels
        mass = counts[start:stop].sum()
        kept = [index for index in range(start, stop) if reference[index] > 0]
        for index in kept:
            candidate[index] = mass / len(kept)
    divergence = 0.0
    for p, q in zip(reference / reference.sum(), candidate / candidate.sum(), strict=True):
        if p > 0:
            divergence += p * np.log(p / q) if q > 0 else np.inf
    return divergence


def test_divergences_are_those_of_the_published_loop() -> None:
    rng = np.random.default_rng(0)
    for sparsity in (0.0, 0.5, 0.9):
        counts = rng.poisson(200 * np.exp(-np.arange(64) / 10)) * (rng.random(64) > sparsity)
        counts[[0, 63]] = 50, 1
        sizes = np.arange(8, 65)
        closed = divergences_of(counts, np.zeros_like(sizes), sizes, 8)
        expected = [published_divergence(counts, int(size), 8) for size in sizes]
        np.testing.assert_allclose(closed, expected, rtol=1e-9, atol=1e-12)
        assert np.isfinite(closed[-1])


def test_the_divergence_of_the_published_example() -> None:
    # Migacz 2017, slide 37: 8 bins into 2 levels; Q is 2 0 2 2 4 4 4 4.
    counts = np.array([1, 0, 2, 3, 5, 3, 1, 7])
    p, q = counts / 22, np.array([2, 0, 2, 2, 4, 4, 4, 4]) / 22
    expected = sum(a * np.log(a / b) for a, b in zip(p, q, strict=True) if a)
    assert divergences_of(counts, np.array([0]), np.array([8]), 2)[0] == pytest.approx(expected)


def test_windows_on_both_sides_of_zero_mirror_those_on_one() -> None:
    counts = np.random.default_rng(0).poisson(200 * np.exp(-np.arange(64) / 10))
    sizes = np.arange(8, 65)
    right = divergences_of(counts, np.zeros_like(sizes), sizes, 8)
    # The same from the right to the left; the groups have the same bins where their number divides that of the bins.
    left = divergences_of(counts[::-1], 64 - sizes, np.full_like(sizes, 64), 8)
    np.testing.assert_allclose(left[::8], right[::8], rtol=1e-9)


def test_squared_errors_are_those_of_quantizing_every_value() -> None:
    values = np.random.default_rng(0).laplace(size=20_000).astype(np.float32)
    made = histogram(values)
    low, high = np.array([-8.0, -4.0, -1.0]), np.array([8.0, 5.0, 2.0])
    for levels in (256, 16):
        closed = squared_errors(made, low, high, levels)
        for index in range(3):
            scale = (high[index] - low[index]) / (levels - 1)
            zero = np.round(-low[index] / scale)
            quantized = (np.clip(np.round(values / scale) + zero, 0, levels - 1) - zero) * scale
            assert closed[index] == pytest.approx(((values - quantized) ** 2).sum(), rel=0.02)


def mean_squared_error(values: Array, covered: Range) -> float:
    scale = (covered.high - covered.low) / 255
    zero = np.round(-covered.low / scale)
    quantized = (np.clip(np.round(values / scale) + zero, 0, 255) - zero) * scale
    return float(((values - quantized) ** 2).mean())


@pytest.mark.parametrize("relu", [False, True])
def test_mse_beats_every_clipping_in_steps_of_a_twentieth(relu: bool) -> None:
    values = np.random.default_rng(0).laplace(size=50_000).astype(np.float32)
    values = np.maximum(values, 0) if relu else values
    best = mean_squared_error(values, found(values, "mse"))
    everything = found(values, "minmax")
    assert best < mean_squared_error(values, everything)
    for share in np.arange(0.1, 1.05, 0.05):
        limit = share * max(-everything.low, everything.high)
        clipped = Range(max(everything.low, -limit), min(everything.high, limit))
        assert best <= 1.02 * mean_squared_error(values, clipped)


def test_entropy_clips_a_long_tail_and_leaves_an_even_distribution() -> None:
    rng = np.random.default_rng(0)
    even = rng.uniform(0, 1, 200_000).astype(np.float32)
    assert found(even, "entropy").high > 0.95
    # Half a normal distribution with one value in 10,000 up to ten times as far.
    outliers = np.concatenate((np.abs(rng.standard_normal(200_000)), rng.uniform(5, 40, 20))).astype(np.float32)
    assert 2.5 < found(outliers, "entropy").high < 8
    assert 2.5 < found(outliers, "mse").high < 40


def test_many_exact_zeros_do_not_decide_the_entropy_range() -> None:
    values = np.abs(np.random.default_rng(0).standard_normal(100_000)).astype(np.float32)
    zeros = np.zeros(10 * len(values), np.float32)
    assert found(np.concatenate((values, zeros)), "entropy") == found(values, "entropy")


def test_the_short_side_is_never_clipped_more_than_the_long_one() -> None:
    # As after a hard swish: down to -0.375 on one side, a long tail on the other.
    inputs = np.random.default_rng(0).standard_normal(100_000) * 3
    values = (inputs * np.clip(inputs / 6 + 0.5, 0, 1)).astype(np.float32)
    for method in ("entropy", "mse"):
        low, high = found(values, method)
        assert low == pytest.approx(-0.375, abs=0.001)
        assert 2 < high <= values.max()


def test_a_percentile_that_would_clip_everything_covers_everything() -> None:
    made = Histogram("x")
    made.add(np.concatenate([np.zeros(400_000, np.float32), np.array([-1.0], np.float32)]))
    assert find_range(made, "percentile") == Range(-1.0, 0.0)
