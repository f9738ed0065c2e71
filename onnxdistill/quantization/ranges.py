"""Ranges of activations: what an 8-bit scale has to cover, by four methods, all from the same histogram.

Every range holds zero, which is then represented exactly. The values outside of a range are clipped to its ends.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from onnxdistill.quantization.histogram import HALF, Histogram

Method = Literal["minmax", "percentile", "entropy", "mse"]

PERCENT = 99.999
"""Of the values that the percentile method keeps: ONNX Runtime's default, so that results can be compared.

One value in 100,000 is clipped: single outliers go, and what many images share stays.
"""

_LEVELS = 256
# Limits of ranges that are tried: the next one is a percent larger or less.
_CANDIDATES = 512
_LEAST_SCALE = float(np.finfo(np.float32).tiny)

Array = NDArray[np.float64]
Bins = NDArray[np.int64]


class Range(NamedTuple):
    """A range that is to be quantized; `low <= 0 <= high`, and not both are zero."""

    low: float
    high: float


def find_range(
    histogram: Histogram, method: Method, *, symmetric: bool = False, percent: float = PERCENT
) -> Range | None:
    """The range of a tensor.

    Args:
        histogram: Of its values.
        method: `minmax` covers all values. `percentile` covers `percent` of them and cuts as many at either end; only
            at the upper end where none is negative. `entropy` takes the clipping after which the 256 levels tell most
            about the distribution: the least Kullback-Leibler divergence (Migacz 2017, "8-bit inference with
            TensorRT"). `mse` takes the one with the least mean squared error of the quantized values.
        symmetric: As far below zero as above it.
        percent: Share of the values that `percentile` covers.

    Returns:
        None if the histogram is empty, or a value was infinite: nothing is known. Of a tensor that was always zero, any
        range would do: it is 0 to 1, so that the scale is no extreme number.
    """
    if histogram.total == 0 or histogram.unbounded:
        return None
    if _degenerate(histogram.minimum, histogram.maximum):
        return Range(-1.0 if symmetric or histogram.minimum < 0 else 0.0, 1.0)
    view = histogram.magnitudes() if symmetric else histogram
    levels = _LEVELS // 2 if symmetric else _LEVELS
    found = _METHODS[method](view, levels, percent)
    if _degenerate(found.low, found.high):  # so few values are not zero that all of them would be clipped
        found = _minmax(view, levels, percent)
    low, high = min(found.low, 0.0), max(found.high, 0.0)
    return Range(-high if symmetric else low, high)


def _degenerate(low: float, high: float) -> bool:
    # ONNX Runtime then takes a scale of 1 and a zero point of 0, with which int8 does not clip as a Relu does.
    return (max(high, 0.0) - min(low, 0.0)) / (_LEVELS - 1) < _LEAST_SCALE


def _minmax(histogram: Histogram, levels: int, percent: float) -> Range:  # the signature of every method
    return Range(histogram.minimum, histogram.maximum)


def _percentile(histogram: Histogram, levels: int, percent: float) -> Range:
    cumulative = np.cumsum(histogram.counts)
    total = int(cumulative[-1])
    outside = int(total * (100 - percent) / 100 + 1e-6)  # 100 - 99.999 is a little less than 0.001
    below = 0 if histogram.minimum >= 0 else outside // 2
    # The lowest upper edge above which there are not more than `outside - below`, and the other way round.
    last = int(np.searchsorted(cumulative, total - (outside - below)))
    first = int(np.searchsorted(cumulative, below, side="right"))
    low, high = (first - HALF) * histogram.width, (last + 1 - HALF) * histogram.width
    return Range(max(low, histogram.minimum), min(high, histogram.maximum))


def _entropy(histogram: Histogram, levels: int, percent: float) -> Range:
    below, above = _windows(histogram, levels)
    counts = histogram.counts.copy()
    # Zero is exact at any scale, and after a Relu it is half of the values: without this, it would decide alone. So it
    # is in NVIDIA's pytorch-quantization.
    counts[HALF] = min(counts[HALF], max(counts[HALF - 1], counts[HALF + 1]))
    divergences = divergences_of(counts, HALF - below, HALF + above, levels)
    best = len(divergences) - 1 - int(np.argmin(divergences[::-1]))  # of equal ones that which clips least
    low, high = -below[best] * histogram.width, above[best] * histogram.width
    return Range(max(low, histogram.minimum), min(high, histogram.maximum))


def divergences_of(counts: Bins, first: Bins, last: Bins, levels: int) -> Array:
    """Kullback-Leibler divergence of the quantized distribution from the clipped one, for several clippings.

    Migacz 2017: the reference P are the bins of the window, with all that is outside added to the bins at its ends; Q
    are these bins without what is outside, merged into `levels` groups, each spread over those of its bins that are not
    empty in P. Both are normalised. In closed form, with `m` values and `f` filled bins in a group,

        sum P log(P / Q) = (sum P log P - sum over groups of (P in the group) log(m / f)) / |P| + log(|Q| / |P|)

    where the sums over windows and groups are differences of running sums.

    Args:
        counts: `[B]`.
        first: `[K]`, first bin of every window, which has at least `levels` bins.
        last: `[K]`, the bin after its last.
        levels: Of the quantizer.

    Returns:
        `[K]`; infinity where Q is zero and P is not.
    """
    edges = first[:, None] + np.arange(levels + 1) * (last - first)[:, None] // levels
    running = _running(counts)
    left, right = running[first], running[-1] - running[last]
    groups = np.diff(running[edges])
    filled = np.diff(_running(counts > 0)[edges])
    filled[:, 0] += (left > 0) & (counts[first] == 0)
    filled[:, -1] += (right > 0) & (counts[last - 1] == 0)
    reference = groups.copy()
    reference[:, 0] += left
    reference[:, -1] += right
    within = _times_log(counts)
    ends = _times_log(counts[first] + left) - within[first] + _times_log(counts[last - 1] + right) - within[last - 1]
    sums = _running(within)
    own = sums[last] - sums[first] + ends
    spread = np.log(np.where(groups > 0, groups, 1) / np.maximum(filled, 1))
    total, inside = float(running[-1]), groups.sum(axis=1)
    divergence: Array = (own - (reference * spread).sum(axis=1)) / total + np.log(np.maximum(inside, 1) / total)
    divergence[((reference > 0) & (groups == 0)).any(axis=1)] = np.inf
    return divergence


def _mse(histogram: Histogram, levels: int, percent: float) -> Range:
    below, above = _windows(histogram, levels)
    low = np.maximum(-below * histogram.width, min(histogram.minimum, 0.0))
    high = np.minimum(above * histogram.width, max(histogram.maximum, 0.0))
    errors = squared_errors(histogram, low, high, levels)
    best = len(errors) - 1 - int(np.argmin(errors[::-1]))
    return Range(float(low[best]), float(high[best]))


def squared_errors(histogram: Histogram, low: Array, high: Array, levels: int) -> Array:
    """Sum of the squared errors of quantized values, for several ranges.

    Values count as the middle of their bin, those in the first bin above zero as zero. The values that one level takes
    are a run of bins, whose error follows from running sums of their counts, values and squares.

    Args:
        histogram: Of the values.
        low: `[K]`, lower ends, at most 0.
        high: `[K]`, upper ends, at least 0.
        levels: Of the quantizer; its zero point is rounded to one of them.

    Returns:
        `[K]`.
    """
    middles = (np.arange(2 * HALF) - HALF + 0.5) * histogram.width
    middles[HALF] = 0.0
    scale = (high - low) / (levels - 1)
    values = (np.arange(levels) - np.round(-low / scale)[:, None]) * scale[:, None]
    borders = np.ceil((values[:, 1:] + values[:, :-1]) / (2 * histogram.width) - 0.5).astype(np.int64) + HALF
    borders = np.clip(borders, 0, 2 * HALF)
    ends = np.zeros((len(scale), 1), np.int64)
    edges = np.concatenate((ends, borders, ends + 2 * HALF), axis=1)
    counts, firsts, seconds = (
        np.diff(_running(histogram.counts * power)[edges]) for power in (np.ones_like(middles), middles, middles**2)
    )
    errors: Array = (seconds - 2 * values * firsts + values**2 * counts).sum(axis=1)
    return errors


def _windows(histogram: Histogram, levels: int) -> tuple[Bins, Bins]:
    """Clippings to try: bins below and above zero, `[K]`, up to all that are filled; the last clips nothing."""
    filled = np.flatnonzero(histogram.counts)
    most_below, most_above = max(0, HALF - int(filled[0])), max(0, int(filled[-1]) + 1 - HALF)
    most = max(most_below, most_above)
    sizes = np.unique(np.round(np.geomspace(min(levels, most), most, _CANDIDATES)).astype(np.int64))
    return np.minimum(sizes, most_below), np.minimum(sizes, most_above)


def _running(values: NDArray[np.generic]) -> Array:
    return np.concatenate((np.zeros(1), np.cumsum(values, dtype=np.float64)))


def _times_log(values: NDArray[np.generic]) -> Array:
    product: Array = values * np.log(np.maximum(values, 1))
    return product


_METHODS: Mapping[Method, Callable[[Histogram, int, float], Range]] = {
    "minmax": _minmax,
    "percentile": _percentile,
    "entropy": _entropy,
    "mse": _mse,
}
