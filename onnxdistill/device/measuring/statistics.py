"""Figures of repeated timings with intervals, reported only as far as the number of timings carries them.

Timings come in openings: the models are loaded anew, warmed up, and timed for a while in rounds. Within an opening the
clock frequency drifts and other processes come and go; from one opening to the next, memory falls differently into the
caches, which moves even the same file by a percent or so for as long as it is open. The second kind of variation is
invisible from inside of one opening, and cannot be averaged away there. Therefore:

- With at least three openings, every opening counts as one measurement of a figure, and the interval is Student's, of
  the logarithms. Each of them has to have ten timings beyond a percentile, in the mean.
- Otherwise, as with large models, the interval is from a circular block bootstrap (Politis and Romano, 1992), which
  draws runs of neighbouring rounds, since successive rounds are not independent. It covers what varies within an
  opening only. A bootstrap never leaves the sample; therefore intervals of percentiles also reach as far as those from
  order statistics (binomial), and where the sample has none, they are open.

Two models that were timed in the same rounds are compared opening by opening, or with the same draws for both, so that
what disturbed a round disturbs both sides of the ratio.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import atan, ceil, cos, exp, inf, isfinite, log, pi, sin, sqrt
from typing import Any

import numpy as np
import numpy.typing as npt

Series = npt.NDArray[np.float64]
"""Timings of shape `(rounds, calls)`, in the order they were taken."""

CONFIDENCE = 0.95

# A percentile needs about one timing beyond it, in the mean, to be more than the maximum by another name.
NEEDED_TIMINGS = {50.0: 1, 90.0: 10, 95.0: 20, 99.0: 100, 99.9: 1000}


def timings_to_bound(percent: float) -> int:
    """So many that one lies beyond the percentile, with 97.5 %: its interval of 95 % has an upper end then.

    Args:
        percent: Which percentile.
    """
    return ceil(log((1 - CONFIDENCE) / 2) / log(percent / 100))


# So many timings beyond it, in the mean, make a percentile of one opening a measurement.
_BEYOND = 10
# Fewer rounds do not tell how much rounds differ.
_ROUNDS_NEEDED = 10

# Of two openings, Student's interval is thirteen deviations wide.
_OPENINGS_NEEDED = 3
_RESAMPLES = 1000
_CHUNK = 1_000_000
_NEXT_TO_NOTHING = 1e-9
_NAMES = ("median", "p90", "p95", "p99", "p999")


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval.

    Attributes:
        value: The figure.
        low: Lower end of the interval.
        high: Upper end; infinite where the sample has none.
    """

    value: float
    low: float
    high: float

    @property
    def interval(self) -> tuple[float, float] | tuple[None, None]:
        """Both ends, or neither where the sample has none."""
        return (self.low, self.high) if isfinite(self.low) and isfinite(self.high) else (None, None)

    @property
    def uncertainty(self) -> float:
        """Half of the interval's width, as a share of the figure."""
        return (self.high - self.low) / 2 / self.value if self.value else 0.0

    def to_json(self) -> dict[str, float | None]:
        """The attributes by name; an end that is infinite is None."""
        return {name: value if isfinite(value) else None for name, value in self.__dict__.items()}

    @classmethod
    def from_json(cls, data: Mapping[str, float | None]) -> Estimate:
        """The inverse of `to_json`."""
        return cls(**{name: inf if value is None else float(value) for name, value in data.items()})


@dataclass(frozen=True)
class Percentiles:
    """What repeated timings come to, in the unit of the timings.

    Attributes:
        count: Number of timings.
        median: Half of the timings are below.
        p90: A tenth of the timings is above; None with fewer than 10 timings.
        p95: None with fewer than 20 timings.
        p99: None with fewer than 100 timings.
        p999: 99.9 % are below; None with fewer than 1,000 timings.
        mean: Arithmetic mean.
        std: Sample standard deviation; None with a single timing.
    """

    count: int
    median: Estimate
    p90: Estimate | None
    p95: Estimate | None
    p99: Estimate | None
    p999: Estimate | None
    mean: Estimate
    std: float | None

    def to_json(self) -> dict[str, Any]:
        """Plain values by name."""
        return {key: value.to_json() if isinstance(value, Estimate) else value for key, value in self.__dict__.items()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Percentiles:
        """The inverse of `to_json`."""
        values: dict[str, Any] = {
            key: Estimate.from_json(value) if isinstance(value, dict) else value for key, value in data.items()
        }
        return cls(**values)


def summarize(openings: Sequence[Series], rng: np.random.Generator, *, opened_anew: bool = True) -> Percentiles:
    """Percentiles, mean and deviation of timings.

    Args:
        openings: The timings of each opening.
        rng: Draws the rounds, where there are too few openings.
        opened_anew: Whether they are openings, and not parts of one, which differ by no more than rounds do.

    Raises:
        ValueError: If there is no opening, or one that is empty or has another number of dimensions.
    """
    _check(openings)
    every = np.concatenate([series.ravel() for series in openings])
    figures: dict[str, _Figure] = {"mean": _Figure(1, np.mean)}
    figures |= {
        name: _Figure(
            # Of a few calls, too, the median is a measurement, as noisy as openings then differ.
            1 if name == "median" and opened_anew else round(_BEYOND / (1 - percent / 100)),
            functools.partial(np.percentile, q=percent),
            percent,
        )
        for (percent, needed), name in zip(NEEDED_TIMINGS.items(), _NAMES, strict=True)
        if every.size >= needed
    }
    found = _estimates(openings, figures, rng, opened_anew)
    return Percentiles(
        count=every.size,
        median=found["median"],
        p90=found.get("p90"),
        p95=found.get("p95"),
        p99=found.get("p99"),
        p999=found.get("p999"),
        mean=found["mean"],
        std=float(np.std(every, ddof=1)) if every.size > 1 else None,
    )


def speedup(
    baseline: Sequence[Series],
    openings: Sequence[Series],
    rng: np.random.Generator,
    confidence: float = CONFIDENCE,
) -> Estimate:
    """How many times faster one function is than another that was timed in the same rounds: the ratio of medians.

    Args:
        baseline: The timings of the other one in each opening.
        openings: Those of the one that is compared with it.
        rng: Draws the rounds, where there are too few openings.
        confidence: How often such an interval covers the true ratio.

    Raises:
        ValueError: If openings or rounds do not pair, or are empty.
    """
    _check(baseline)
    _check(openings)
    pairs = list(zip(baseline, openings, strict=True))
    if any(len(before) != len(after) for before, after in pairs):
        raise ValueError("the rounds of the two functions are not pairs")
    if len(pairs) >= _OPENINGS_NEEDED:
        return geometric_mean([float(np.median(before) / np.median(after)) for before, after in pairs], confidence)
    whole, part = _pooled(baseline), _pooled(openings)
    both = np.hstack([whole, part])  # the same draws for both
    ratios = np.concatenate(
        [
            np.median(chunk[..., : whole.shape[1]], axis=(1, 2)) / np.median(chunk[..., whole.shape[1] :], axis=(1, 2))
            for chunk in (one.reshape(len(one), -1, both.shape[1]) for one in _chunks(both, rng))
        ]
    )
    low, high = np.percentile(ratios, _outer(confidence)) if len(part) >= _ROUNDS_NEEDED else (0.0, inf)
    return Estimate(float(np.median(whole) / np.median(part)), float(low), float(high))


def unpaired_speedup(baseline: Sequence[float], medians: Sequence[float], confidence: float = CONFIDENCE) -> Estimate:
    """The same of two functions that were timed at different times: Welch's interval of the logarithms.

    Args:
        baseline: One median per opening, at least two.
        medians: Likewise of the function that is compared with it.
        confidence: How often such an interval covers the true ratio.

    Raises:
        ValueError: If a side has fewer than two openings.
    """
    sides = [np.log(np.asarray(side, dtype=np.float64)) for side in (baseline, medians)]
    if min(map(len, sides)) < 2:
        raise ValueError("at least two openings of each are needed")
    parts = [float(np.var(side, ddof=1)) / len(side) for side in sides]
    error2 = sum(parts)
    # Welch (1947), equation 28; rounded down, which is the wider interval.
    spread = sum(part**2 / (len(side) - 1) for part, side in zip(parts, sides, strict=True))
    freedom = max(1, int(error2**2 / spread)) if spread else sum(map(len, sides)) - 2
    middle = float(np.mean(sides[0]) - np.mean(sides[1]))
    half = student_quantile(0.5 + confidence / 2, freedom) * sqrt(error2)
    return Estimate(exp(middle), exp(middle - half), exp(middle + half))


def geometric_mean(values: Sequence[float], confidence: float = CONFIDENCE) -> Estimate:
    """The mean of the logarithms, taken back, with Student's interval around it.

    Args:
        values: Independent measurements, above 0, at least two.
        confidence: How often such an interval covers the true mean.
    """
    logs = [log(value) for value in values]
    middle = sum(logs) / len(logs)
    half = _students_half(logs, confidence)
    return Estimate(exp(middle), exp(middle - half), exp(middle + half))


@functools.cache
def student_quantile(probability: float, freedom: int) -> float:
    """The value that Student's t, with so many degrees of freedom, stays below with this probability (above 0.5).

    By bisection of the distribution's finite series (Abramowitz and Stegun 1964, 26.7.3 and 26.7.4).
    """
    low, high = 0.0, 1e8
    for _ in range(200):
        middle = (low + high) / 2
        if 0.5 + _student_within(middle, freedom) / 2 < probability:
            low = middle
        else:
            high = middle
    return high


def _student_within(t: float, freedom: int) -> float:
    """The probability that Student's t lies between -t and t."""
    angle = atan(t / sqrt(freedom))
    term, total = (1.0, 0.0) if freedom % 2 == 0 else (cos(angle), 0.0)
    for index in range(1 if freedom % 2 == 0 else 2, freedom, 2):
        total += term
        term *= cos(angle) ** 2 * index / (index + 1)
    if freedom % 2 == 0:
        return sin(angle) * total
    return 2 / pi * (angle + sin(angle) * total)


@dataclass(frozen=True)
class _Figure:
    needed: int  # timings of an opening that make it one measurement of the figure
    of: Callable[..., Any]  # along the axis of an array
    percent: float | None = None  # of a percentile


def _estimates(
    openings: Sequence[Series], figures: dict[str, _Figure], rng: np.random.Generator, opened_anew: bool
) -> dict[str, Estimate]:
    """Figures of all timings by name.

    Of an opening with few calls the tails are no measurement by themselves. What the openings differ by in the median
    is then added to the interval of all timings together, since it shifts the tails as well.
    """
    pooled = _pooled(openings)
    values = {name: float(figure.of(pooled)) for name, figure in figures.items()}
    halves = {
        name: _students_half([log(max(float(figure.of(series)), _NEXT_TO_NOTHING)) for series in openings], CONFIDENCE)
        for name, figure in figures.items()
        if len(openings) >= _OPENINGS_NEEDED and min(series.size for series in openings) >= figure.needed
    }
    found = {
        name: Estimate(values[name], values[name] * exp(-half), values[name] * exp(half))
        for name, half in halves.items()
    }
    apart = exp(halves["median"]) if "median" in halves and opened_anew else 1.0
    if rest := figures.keys() - found.keys():
        drawn: dict[str, list[Series]] = {name: [] for name in rest}
        for chunk in _chunks(pooled, rng):
            for name in rest:
                drawn[name].append(figures[name].of(chunk, axis=1))
        for name, parts in drawn.items():
            low, high = np.percentile(np.concatenate(parts), _outer(CONFIDENCE))
            if len(pooled) < _ROUNDS_NEEDED:
                low, high = 0.0, inf
            least, most = _order_statistics(pooled, figures[name].percent)
            low, high = min(float(low), least) / apart, max(float(high), most) * apart
            found[name] = Estimate(values[name], low, high)
    return found


def _order_statistics(pooled: Series, percent: float | None) -> tuple[float, float]:
    """The distribution-free interval of a percentile (David and Nagaraja 2003, section 7.1); nothing of a mean."""
    if percent is None:
        return inf, -inf
    ordered = np.sort(pooled, axis=None)
    count, tail = len(ordered), (1 - CONFIDENCE) / 2
    # The number of timings below the percentile is binomial.
    below = np.cumsum(_binomial(count, percent / 100))
    low, high = int(np.searchsorted(below, tail)), int(np.searchsorted(below, 1 - tail)) + 1
    return (float(ordered[low - 1]) if low else 0.0), (float(ordered[high - 1]) if high <= count else inf)


def _binomial(count: int, share: float) -> Series:
    """The probabilities of 0 to `count` hits."""
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, count + 1)))])  # of factorials
    hits = np.arange(count + 1)
    chances: Series = np.exp(
        logs[count] - logs[hits] - logs[count - hits] + hits * log(share) + (count - hits) * log(1 - share)
    )
    return chances


def _chunks(pooled: Series, rng: np.random.Generator) -> Iterator[Series]:
    """All resamples, of shape `(resamples, timings)`, some at a time."""
    draws = _block_draws(len(pooled), rng)
    at_once = max(1, _CHUNK // pooled.size)
    while rows := list(itertools.islice(draws, at_once)):
        yield pooled[np.array(rows)].reshape(len(rows), -1)


def _students_half(logs: Sequence[float], confidence: float) -> float:
    """Half of the width of Student's interval around the mean."""
    deviation = float(np.std(logs, ddof=1))
    return student_quantile(0.5 + confidence / 2, len(logs) - 1) * deviation / sqrt(len(logs))


def _pooled(openings: Sequence[Series]) -> Series:
    """All rounds one after the other; of rounds of different lengths, every call is a round."""
    if len({series.shape[1] for series in openings}) == 1:
        return np.concatenate(openings)
    return np.concatenate([series.ravel() for series in openings])[:, None]


def _outer(confidence: float) -> tuple[float, float]:
    return 50 * (1 - confidence), 50 * (1 + confidence)


def _check(openings: Sequence[Series]) -> None:
    if not openings:
        raise ValueError("at least one opening is needed")
    for series in openings:
        if series.ndim != 2 or series.size == 0:
            raise ValueError(f"timings of shape (rounds, calls) are needed, not {series.shape}")


def _block_draws(rounds: int, rng: np.random.Generator) -> Iterator[npt.NDArray[np.intp]]:
    """Yields `rounds` indices at a time, in blocks of about the cube root of `rounds` neighbours."""
    length = max(1, round(rounds ** (1 / 3)))
    blocks = -(-rounds // length)
    offsets = np.arange(length)
    for _ in range(_RESAMPLES):
        starts = rng.integers(rounds, size=blocks)
        yield ((starts[:, None] + offsets) % rounds).ravel()[:rounds]
