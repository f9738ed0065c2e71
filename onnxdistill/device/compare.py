"""Whether one model is really faster than another, beyond what opening the same file again changes.

Two sessions of byte-identical files differ by up to a percent or so, for as long as they live: memory falls
differently into the caches. The interval of `bench`, which is within one opening of the models, misses that. Here both
models are opened several times, in swapped order, and every opening counts as one measurement.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from onnxdistill.device.feeds import random_feeds
from onnxdistill.device.session import Session, SessionSettings, open_session
from onnxdistill.device.statistics import Ratio
from onnxdistill.device.timing import time_interleaved

NEEDED_SPEEDUP = 1.02
"""A gain that counts has its whole interval above this: 2 % is what is left of two equal files at their worst, and
less is not worth an approximation of the teacher."""

OPENING_SECONDS = 0.5
"""How long both models are timed, together, in one opening."""

# After so many openings there is a look at the interval, which ends the measurement if it is clear. Several looks have
# more chances to err than one, so each gets a third of the 5 %: the quantile of Student's t distribution is that of
# 1 - 0.05 / 3 / 2 with one degree of freedom less than there are openings.
LOOKS = {4: 4.857, 8: 3.128, 20: 2.625}

SECONDS_AT_MOST = 15.0
"""A next look that would come later than this after the start is left out."""

# A model that was warm before needs only the memory and the caches of its new session filled.
_REWARM_MS, _REWARM_AT_LEAST, _REWARM_AT_MOST = 50.0, 3, 50


@dataclass
class _Pair:
    """Two files that are opened again and again."""

    before: Path
    after: Path
    settings: SessionSettings
    batch: int
    rng: np.random.Generator
    warmup_calls: int | None = None

    def opening(self, swapped: bool) -> float:
        """Opens both, times them in turns, and returns how many times faster the second one is."""
        order = ("after", "before") if swapped else ("before", "after")
        sessions: dict[str, Session] = {name: open_session(getattr(self, name), self.settings) for name in order}
        feeds = {name: random_feeds(one, self.batch, {}, np.random.default_rng(0)) for name, one in sessions.items()}
        timings = time_interleaved(
            {name: one.runner(feeds[name]) for name, one in sessions.items()},
            rng=self.rng,
            seconds=OPENING_SECONDS,
            warmup_calls=self.warmup_calls,
        )
        slowest_ms = max(warmup.latency_ms for warmup in timings.warmup.values())
        if self.warmup_calls is None:
            fitting = _REWARM_AT_MOST if slowest_ms == 0 else int(_REWARM_MS / slowest_ms)
            self.warmup_calls = min(_REWARM_AT_MOST, max(_REWARM_AT_LEAST, fitting))
        return float(np.median(timings.times_ms["before"]) / np.median(timings.times_ms["after"]))


def compare(
    before: Path,
    after: Path,
    settings: SessionSettings,
    batch: int = 1,
    seed: int = 0,
    clock: Callable[[], float] = time.monotonic,
) -> Ratio:
    """How many times faster `after` runs than `before`, with a 95 % interval over openings of the two files.

    It takes about two seconds and the loading where the answer is clear, and up to twelve where it is not. Large models
    take longer to load; then what is not clear at the next look is left unclear, which counts as not faster.

    Args:
        before: The model that is compared with; it has no open dimension but the batch.
        after: The other one.
        settings: How both are opened.
        batch: Items per call.
        seed: Of the order of the calls.
        clock: Returns seconds.

    Raises:
        ModelFileError: If a file does not load or run.
    """
    pair = _Pair(before, after, settings, batch, np.random.default_rng(seed))
    ratios: list[float] = []
    begin = clock()
    for openings, quantile in LOOKS.items():
        if ratios and (clock() - begin) / len(ratios) * openings > SECONDS_AT_MOST:
            break
        while len(ratios) < openings:
            ratios.append(pair.opening(swapped=len(ratios) % 2 == 1))
        ratio = interval(ratios, quantile)
        if is_clear(ratio):
            break
    return ratio


def interval(ratios: list[float], quantile: float) -> Ratio:
    """The geometric mean of one ratio an opening, with Student's interval around it."""
    logs = np.log(ratios)
    error = quantile * float(np.std(logs, ddof=1)) / len(logs) ** 0.5
    middle = float(np.mean(logs))
    return Ratio(*(float(np.exp(value)) for value in (middle, middle - error, middle + error)))


def is_clear(ratio: Ratio) -> bool:
    """Whether more openings would hardly change the answer: the whole interval is on one side of what is needed."""
    return measurably_faster(ratio) or ratio.high < NEEDED_SPEEDUP


def measurably_faster(ratio: Ratio) -> bool:
    """True only if the whole 95 % interval lies above `NEEDED_SPEEDUP`."""
    return ratio.low > NEEDED_SPEEDUP


def describe(ratio: Ratio) -> str:
    """A speed-up in words, with its interval and what is demanded of it."""
    return (
        f"{ratio.value:.2f}× as fast (95 % interval {ratio.low:.3f} to {ratio.high:.3f}; "
        f"only what lies above {NEEDED_SPEEDUP:g} as a whole counts)"
    )
