"""Whether one model is really faster, or slower, than another by some margin: sequential looks at openings.

The models are opened and timed side by side until the interval of their ratio is clear of the margin, or until it is
not worth going on. That takes about two seconds where the answer is plain.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from onnxdistill.device.cases import Case
from onnxdistill.device.feeds import InputSource
from onnxdistill.device.measuring.openings import Openings
from onnxdistill.device.measuring.statistics import Estimate, speedup
from onnxdistill.device.session import Array, SessionSettings

Until = Literal["clear", "close"]

NEEDED_SPEEDUP = 1.02
"""A gain that counts has its whole interval above this: 2 % is what is left of two equal files at their worst, and
less is not worth an approximation of the teacher."""

OPENING_SECONDS = 0.5
"""How long all cases are timed, together, in one opening."""

LOOKS = (4, 8, 20)
"""After so many openings there is a look at the interval, which ends the measurement if it is clear."""

LOOK_CONFIDENCE = 1 - 0.05 / len(LOOKS)
"""Several looks have more chances to err than one, so each gets its share of the 5 % (Bonferroni)."""

_CLOSE = 1.06

SECONDS_AT_MOST = 15.0
"""A next look that would come later than this after the start is left out."""

_SECONDS_UNTIL_CLOSE = 45.0
"""The same where the ratio itself is wanted: minutes are spent on what it leads to."""


def look(
    opening: Callable[[], None],
    is_clear: Callable[[], bool],
    seconds_at_most: float = SECONDS_AT_MOST,
    clock: Callable[[], float] = time.monotonic,
) -> int:
    """Makes openings until the answer is clear, or until the next look would come too late.

    Args:
        opening: Opens and times everything once.
        is_clear: Whether more openings would hardly change the answer.
        seconds_at_most: From the start to a last look; the first one is always taken.
        clock: Returns seconds.

    Returns:
        How many openings were made.
    """
    begin, made = clock(), 0
    for wanted in LOOKS:
        if made and (clock() - begin) / made * wanted > seconds_at_most:
            break
        while made < wanted:
            opening()
            made += 1
        if is_clear():
            break
    return made


def compare(
    before: Path,
    after: Path,
    settings: SessionSettings,
    batch: int = 1,
    seed: int = 0,
    clock: Callable[[], float] = time.monotonic,
    inputs: Mapping[str, Array] | None = None,
    until: Until = "clear",
) -> Estimate:
    """How many times faster `after` runs than `before`, with a 95 % interval over openings of the two files.

    It takes about two seconds and the loading where the answer is clear, and up to twelve where it is not. Large models
    take longer to load; then what is not clear at the next look is left unclear, which counts as not faster. A ratio
    that is to be known closely may take three times as long.

    Args:
        before: The model that is compared with.
        after: The other one.
        settings: How both are opened.
        batch: Items per call.
        seed: Of the order of the calls.
        clock: Returns seconds.
        inputs: Arrays by input name, of which the first items make a batch; random ones if left out, which do where no
            dimension but the batch is open.
        until: When to end: as soon as it is clear which of the two is faster, or as soon as the ratio is known closely.

    Raises:
        ModelFileError: If a file does not load or run.
    """
    rng = np.random.default_rng(seed)
    cases = {name: Case(name, path, settings, batch) for name, path in (("before", before), ("after", after))}
    openings = Openings(cases, InputSource({}, inputs, 0).feeds, rng)

    def opening() -> None:
        openings.open()
        openings.time(seconds=OPENING_SECONDS)

    def ratio() -> Estimate:
        timings = openings.timings
        return speedup(timings["before"].series, timings["after"].series, rng, LOOK_CONFIDENCE)

    seconds_at_most = SECONDS_AT_MOST if until == "clear" else _SECONDS_UNTIL_CLOSE
    look(opening, lambda: _ENDS[until](ratio()), seconds_at_most, clock)
    return ratio()


def is_close(ratio: Estimate) -> bool:
    """Whether a ratio is known well enough to go on from: its interval is 6 % wide at most."""
    return ratio.high <= _CLOSE * ratio.low


def is_clear(ratio: Estimate) -> bool:
    """Whether more openings would hardly change the answer: the whole interval is on one side of what is needed."""
    return measurably_faster(ratio) or ratio.high < NEEDED_SPEEDUP


_ENDS: dict[Until, Callable[[Estimate], bool]] = {"clear": is_clear, "close": is_close}


def measurably_faster(ratio: Estimate) -> bool:
    """True only if the whole 95 % interval lies above `NEEDED_SPEEDUP`."""
    return ratio.low > NEEDED_SPEEDUP


def describe(ratio: Estimate) -> str:
    """A speed-up in words, with its interval and what is demanded of it."""
    return (
        f"{ratio.value:.2f}× as fast (95 % interval {ratio.low:.3f} to {ratio.high:.3f}; "
        f"only what lies above {NEEDED_SPEEDUP:g} as a whole counts)"
    )
