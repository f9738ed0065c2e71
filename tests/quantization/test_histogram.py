"""Histograms: by hand, against numpy, in any order, any batches and several threads."""

import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from onnxdistill.errors import ModelFileError
from onnxdistill.quantization.histogram import HALF, Histogram
from onnxdistill.quantization.ranges import find_range

Array = NDArray[np.float32]
# Without numbers so small that they underflow when they are divided by the width of a bin.
NUMBERS = st.floats(-1e6, 1e6, width=32).map(lambda number: 0.0 if abs(number) < 1e-6 else number)
ARRAYS = arrays.arrays(np.float32, st.integers(0, 40), elements=NUMBERS)


def histogram(*batches: Array | Sequence[float]) -> Histogram:
    made = Histogram("x")
    for batch in batches:
        made.add(np.asarray(batch, np.float32))
    return made


def filled(made: Histogram) -> dict[int, int]:
    """Counts by the number of the bin, where 0 is the first above zero."""
    return {int(index) - HALF: int(made.counts[index]) for index in np.flatnonzero(made.counts)}


def test_bins_by_hand() -> None:
    # 3 lies between 2 and 4, so that 8,192 bins up to 4 are 2 ** -11 wide.
    made = histogram([3.0, 0.0, -(2**-12), 2**-11, 2**-10, -1.0])
    assert made.width == 2**-11
    assert filled(made) == {3 * 2**11: 1, 0: 1, -1: 1, 1: 1, 2: 1, -(2**11): 1}
    assert (made.minimum, made.maximum, made.total) == (-1.0, 3.0, 6)


def test_a_value_outside_joins_neighbours() -> None:
    made = histogram([3.0, 0.0, -(2**-12), 2**-11, 2**-10, -1.0], [4.0])
    assert made.width == 2**-10  # 4 is the first value that 8,192 bins up to 4 do not have
    assert filled(made) == {3 * 2**10: 1, 0: 2, -1: 1, 1: 1, -(2**10): 1, 2**12: 1}


def test_zeros_alone_and_nothing() -> None:
    assert histogram().total == histogram([]).total == 0
    zeros = histogram([0.0, -0.0, 0.0])
    assert filled(zeros) == {0: 3}
    zeros.add(np.float32([-1e30]))
    assert filled(zeros)[0] == 3
    assert zeros.total == 4


def test_the_extremes_of_float32_are_counted() -> None:
    limits = np.finfo(np.float32)
    made = histogram([limits.tiny], [limits.max, limits.min], [limits.smallest_subnormal])
    assert made.total == 4
    assert (made.minimum, made.maximum) == (limits.min, limits.max)
    assert made.width * HALF == 2.0**128


@given(ARRAYS, ARRAYS, ARRAYS)
def test_counts_do_not_depend_on_order_or_batches(first: Array, second: Array, third: Array) -> None:
    parts = histogram(first, second, third)
    whole = histogram(np.concatenate((third, second, first)))
    assert parts.width == whole.width
    np.testing.assert_array_equal(parts.counts, whole.counts)
    assert parts.total == len(first) + len(second) + len(third)


@given(ARRAYS)
def test_counts_are_those_of_numpy(values: Array) -> None:
    made = histogram(values)
    edges = (np.arange(2 * HALF + 1) - HALF) * made.width
    np.testing.assert_array_equal(made.counts, np.histogram(values.astype(np.float64), edges)[0])
    if np.any(values):
        assert HALF / 2 <= np.abs(values).max() / made.width < HALF


@given(ARRAYS)
def test_magnitudes(values: Array) -> None:
    folded = histogram(values).magnitudes()
    assert folded.total == len(values)
    assert not folded.counts[:HALF].any()
    if len(values):
        sizes = np.abs(values)
        assert folded.maximum == sizes.max()
        assert folded.minimum <= sizes.min()  # of values on both sides of zero, it is not known


def test_tensors_of_several_pieces_are_counted_whole() -> None:
    values = np.random.default_rng(0).standard_normal(100_003, dtype=np.float32)
    for some in (values, np.maximum(values, 0)):
        made = histogram(some)
        bins = np.floor(some / made.width).astype(np.int64) + HALF
        np.testing.assert_array_equal(made.counts, np.bincount(bins, minlength=2 * HALF))
    made = histogram(values[:1], np.array([values[1]]), values[2:50_000], values[50_000:].reshape(-1, 1))
    np.testing.assert_array_equal(made.counts, histogram(values).counts)


def test_what_underflows_is_counted_once_and_here() -> None:
    least = np.finfo(np.float32).smallest_subnormal
    made = histogram([1e30, -1e30])
    for value in (-least, least):
        made.add(np.float32([value]))
    assert made.total == 4
    assert histogram([1.0]).total == 1  # nothing was left behind for the next


def test_values_that_must_not_be_changed() -> None:
    values = np.float32([0, 1, 2])
    values.setflags(write=False)
    assert histogram(values).total == 3


def test_several_threads_count_side_by_side() -> None:
    values = np.random.default_rng(0).standard_normal((64, 20_000), dtype=np.float32)
    made = [Histogram(), Histogram()]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: made[i % 2].add(values[i]), range(64)))
    for first, each in enumerate(made):
        np.testing.assert_array_equal(each.counts, histogram(values[first::2]).counts)


@pytest.mark.parametrize("obstacle", ["caching.CacheImpl._locator_classes = []", "limited"])
def test_counting_works_where_nothing_can_be_kept(obstacle: str, tmp_path: Path) -> None:
    """Without any folder that could be written, or without room in it."""
    if obstacle == "limited":
        obstacle = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (16, 16))"
    code = f"""
import numpy, signal
from numba.core import caching
import onnxdistill.quantization.histogram as histogram
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
{obstacle}
made = histogram.Histogram()
made.add(numpy.float32([0, 1, 2]))
assert made.total == 3
"""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


def test_counting_works_where_what_was_kept_is_damaged(tmp_path: Path) -> None:
    code = "import numpy, onnxdistill.quantization.histogram as h; h.Histogram().add(numpy.float32([0, 1, 2]))"
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    for _ in range(2):
        subprocess.run([sys.executable, "-c", code], env=environment, check=True)
        for file in tmp_path.rglob("*.nbi"):
            file.write_bytes(file.read_bytes()[:100])


def test_what_is_interrupted_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_keys: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("onnxdistill.quantization.histogram._values", interrupted)
        with pytest.raises(KeyboardInterrupt):
            histogram([0.0, 0.0, 0.0])
    assert histogram([0.0]).total == 1


def test_masked_values_are_counted_as_they_are() -> None:
    made = Histogram()
    made.add(np.ma.masked_array(np.float32([1, 2]), [False, True]))
    assert made.total == 2


def test_float16_is_counted_as_it_is() -> None:
    values = np.random.default_rng(0).standard_normal(1000).astype(np.float16)
    made = Histogram()
    made.add(values)
    np.testing.assert_array_equal(made.counts, histogram(values.astype(np.float32)).counts)


def test_values_that_are_no_numbers_name_the_tensor() -> None:
    with pytest.raises(ModelFileError, match=r"The tensor 'x' has values that are no number \(NaN\)"):
        histogram([1.0, np.nan, 2.0])


@pytest.mark.parametrize("infinite", [np.inf, -np.inf])
def test_with_an_infinite_value_there_is_no_range(infinite: float) -> None:
    made = histogram([1.0, 2.0])
    assert not made.unbounded
    made.add(np.array([3.0, infinite], np.float32))
    made.add(np.array([4.0], np.float32))
    assert made.unbounded
    assert find_range(made, "minmax") is None
    made.counts[HALF] = 7  # as of another thread, that had begun before
    assert find_range(made, "percentile") is None
    again = Histogram.of("x", made.counts, made.minimum, made.maximum, made.exponent)
    assert again.unbounded
    assert not Histogram().unbounded
