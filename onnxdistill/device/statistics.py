"""Percentiles and intervals of repeated timings, reported only as far as the number of timings carries them.

Successive timings are not independent: the clock frequency drifts and other processes come and go. The
intervals are therefore from a circular block bootstrap (Politis and Romano, 1992), which draws runs of
neighbouring rounds instead of single timings. Two models that were timed in the same rounds are compared with
the same draws for both, so that what disturbed a round disturbs both sides of the ratio.

An interval covers what varies within one process. From one process to the next, memory falls differently into
the caches, which moves even the same file by a percent or so.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Series = npt.NDArray[np.float64]

# A percentile needs about one timing beyond it, in the mean, to be more than the maximum by another name.
_NEEDED = {90: 10, 95: 20, 99: 100}
_RESAMPLES = 1000
_OUTER = (2.5, 97.5)


@dataclass(frozen=True)
class Percentiles:
    """What repeated timings come to, in the unit of the timings.

    Attributes:
        count: Number of timings.
        median: Half of the timings are below.
        median_low: Lower end of the 95 % interval of the median.
        median_high: Upper end.
        p90: A tenth of the timings is above; None with fewer than 10 timings.
        p95: None with fewer than 20 timings.
        p99: None with fewer than 100 timings.
        mean: Arithmetic mean.
        std: Sample standard deviation; None with a single timing.
    """

    count: int
    median: float
    median_low: float
    median_high: float
    p90: float | None
    p95: float | None
    p99: float | None
    mean: float
    std: float | None

    def to_json(self) -> dict[str, Any]:
        """The attributes by name."""
        return dict(self.__dict__)


@dataclass(frozen=True)
class Ratio:
    """How many times faster a model is than the baseline.

    Attributes:
        value: Median time of the baseline over the median time of the model.
        low: Lower end of the 95 % interval.
        high: Upper end.
    """

    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        """The attributes by name."""
        return dict(self.__dict__)


def summarize(series: Series, rng: np.random.Generator) -> Percentiles:
    """Percentiles, mean and deviation of timings of shape `(rounds, calls)`, in the order they were taken.

    Raises:
        ValueError: If the series is empty or has another number of dimensions.
    """
    _check(series)
    medians = np.array([np.median(series[rounds]) for rounds in _block_draws(len(series), rng)])
    low, high = np.percentile(medians, _OUTER)
    return Percentiles(
        count=series.size,
        median=float(np.median(series)),
        median_low=float(low),
        median_high=float(high),
        p90=_percentile(series, 90),
        p95=_percentile(series, 95),
        p99=_percentile(series, 99),
        mean=float(np.mean(series)),
        std=float(np.std(series, ddof=1)) if series.size > 1 else None,
    )


def speedup(baseline: Series, series: Series, rng: np.random.Generator) -> Ratio:
    """Ratio of the medians of two series of shape `(rounds, calls)` that were timed in the same rounds.

    Raises:
        ValueError: If a series is empty or if they have different numbers of rounds.
    """
    _check(baseline)
    _check(series)
    if len(baseline) != len(series):
        raise ValueError(f"{len(baseline)} and {len(series)} rounds are not pairs")
    ratios = np.array(
        [np.median(baseline[rounds]) / np.median(series[rounds]) for rounds in _block_draws(len(series), rng)]
    )
    low, high = np.percentile(ratios, _OUTER)
    return Ratio(float(np.median(baseline) / np.median(series)), float(low), float(high))


def _check(series: Series) -> None:
    if series.ndim != 2 or series.size == 0:
        raise ValueError(f"timings of shape (rounds, calls) are needed, not {series.shape}")


def _percentile(series: Series, percent: int) -> float | None:
    return float(np.percentile(series, percent)) if series.size >= _NEEDED[percent] else None


def _block_draws(rounds: int, rng: np.random.Generator) -> Iterator[npt.NDArray[np.intp]]:
    """Yields `rounds` indices at a time, in blocks of about the cube root of `rounds` neighbours."""
    length = max(1, round(rounds ** (1 / 3)))
    blocks = -(-rounds // length)
    offsets = np.arange(length)
    for _ in range(_RESAMPLES):
        starts = rng.integers(rounds, size=blocks)
        yield ((starts[:, None] + offsets) % rounds).ravel()[:rounds]
