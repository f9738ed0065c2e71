"""For how long cases are timed: a number of calls, a time, until it is precise, or until an answer is clear."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf

import numpy as np

from onnxdistill.device.cases import Case
from onnxdistill.device.measuring.compare import LOOK_CONFIDENCE, LOOKS, OPENING_SECONDS, look
from onnxdistill.device.measuring.openings import Feeds, Openings
from onnxdistill.device.measuring.statistics import CONFIDENCE, Estimate, speedup, summarize, unpaired_speedup
from onnxdistill.device.session import Session
from onnxdistill.errors import UsageError

OnProgress = Callable[[str, float, float], None]

_DEFAULT_SECONDS = 10.0
_DEFAULT_PRECISE_SECONDS = 60.0
_DEFAULT_GATE_SECONDS = 20.0

# Of the time for timing, that loading the models again and again may take; and how often that is worth it.
_LOADING_SHARE, _OPENINGS = 0.5, (5, 3)
EARLIER_RUNS_NEEDED = 30
"""Compared with an earlier measurement, there are always several openings."""

# What nobody minds to wait for, however short the timing itself is.
_SHORT_S = 1.0
# With fewer calls, what is gained by openings is lost by short rounds.
_CALLS_PER_OPENING = 10
# A measurement that ends when it is precise enough has at least so many openings, of so many seconds a case.
_PRECISE_OPENINGS, _PRECISE_SECONDS = 5, 0.25


@dataclass(frozen=True)
class Effort:
    """How much to measure; see `bench`.

    Attributes:
        runs: Timed calls of each case.
        seconds: For how long to time, all cases together.
        precision: Half-width of the intervals, as a share, at which to end.
        max_regression: The share by which a case may be slower than its baseline; ends when that is clear.
        warmup: Calls of each case before the first timing.
        seed: Of the order of the calls and of the intervals.
        fewest_calls: Of each case, before a precision or a limit on regressions ends it, as long as there is time.
    """

    runs: int | None = None
    seconds: float | None = None
    precision: float | None = None
    max_regression: float | None = None
    warmup: int | None = None
    seed: int = 0
    fewest_calls: int = 0

    def check(self) -> None:
        """Makes sure that it can be done.

        Raises:
            UsageError: If a number is out of range, or if two contradict each other.
        """
        if self.seed < 0:
            raise UsageError(f"A seed is a whole number from 0 on, and {self.seed} was given.")
        if self.runs is not None and self.seconds is not None:
            raise UsageError("Both a number of runs and a number of seconds were given.", "Give one of them.")
        if self.runs is not None and (self.precision is not None or self.max_regression is not None):
            raise UsageError(
                "A number of runs was given, and something that decides how many are needed.",
                "Leave out --runs; --seconds says how long it may take at most.",
            )
        if self.precision is not None and self.max_regression is not None:
            raise UsageError(
                "Both a precision and a limit on regressions were given, and each decides when to end.",
                "Give one of them.",
            )
        if self.runs is not None and self.runs < 1:
            raise UsageError(f"At least 1 run is needed, and {self.runs} were asked for.")
        if self.seconds is not None and not 0 < self.seconds < inf:
            raise UsageError(f"The time must be above 0 seconds and end, and {self.seconds:g} were asked for.")
        if self.warmup is not None and self.warmup < 0:
            raise UsageError(f"There is no warm-up of {self.warmup} runs.")
        if self.precision is not None and not 0 < self.precision < 1:
            raise UsageError(f"A precision is above 0 and below 100 %, and {self.precision:.3%} was asked for.")
        if self.max_regression is not None and not self.max_regression >= 0:
            raise UsageError(f"A regression to accept is 0 % or more, and {self.max_regression:.3%} was given.")

    @property
    def time_s(self) -> float:
        """Seconds of timing, or at most so many if something ends it."""
        if self.seconds is not None:
            return float(self.seconds)
        if self.max_regression is not None:
            return _DEFAULT_GATE_SECONDS
        return _DEFAULT_SECONDS if self.precision is None else _DEFAULT_PRECISE_SECONDS


class Measurement:
    """Cases that are opened and timed for as long as it takes.

    Args:
        cases: By name.
        compared: Per case the name of the one that it is compared with.
        effort: How much to measure.
        feeds: Gives the inputs of a case whose session is open.
        on_progress: Called between rounds with the phase, what of it is done, and the total.
        earlier: For cases that are compared with an earlier measurement, the median of each of its openings, in ms.

    Attributes:
        openings: What was measured.
        rng: Draws the order of the calls and the intervals.
    """

    def __init__(
        self,
        cases: Mapping[str, Case],
        compared: Mapping[str, str],
        effort: Effort,
        feeds: Callable[[Case, Session], Feeds],
        on_progress: OnProgress,
        earlier: Mapping[str, list[float]],
    ) -> None:
        self._cases = cases
        self._compared = compared
        self._effort = effort
        self._on_progress = on_progress
        self._earlier = earlier
        self.rng = np.random.default_rng(effort.seed)
        self.openings = Openings(cases, feeds, self.rng, effort.warmup)

    def open(self) -> None:
        """The first opening: what cannot be done shows up here."""
        self.openings.open(lambda done, total: self._on_progress("load", done, total))

    def time(self) -> None:
        """All the timing, by the rule for its end that was asked for."""
        if self._effort.max_regression is not None:
            begin = time.monotonic()
            look(self._opening_of_the_gate, self._is_clear, self._effort.time_s)
            while not self._has_enough_calls() and time.monotonic() - begin < self._effort.time_s:
                self._opening_of_the_gate()
        elif self._effort.precision is not None:
            self._until_precise(self._effort.precision)
        else:
            self._for_as_long_as_asked()
        self._on_progress("time", 1.0, 1.0)

    def speedup(self, name: str) -> Estimate:
        """How many times faster an item is than in the case that this one is compared with."""
        # Several looks at the gate have more chances to err than one.
        confidence = CONFIDENCE if self._effort.max_regression is None else LOOK_CONFIDENCE
        series = self.openings.timings[name].series
        if name in self._earlier:
            return unpaired_speedup(self._earlier[name], [float(np.median(one)) for one in series], confidence)
        other = self._compared[name]
        ratio = speedup(self.openings.timings[other].series, series, self.rng, confidence)
        items = self._cases[name].batch / self._cases[other].batch
        return Estimate(ratio.value * items, ratio.low * items, ratio.high * items)

    def limited(self) -> list[str]:
        """The cases that are compared with something else than themselves."""
        return [name for name, other in self._compared.items() if name in self._earlier or name != other]

    def _for_as_long_as_asked(self) -> None:
        self.openings.warm_up()
        count = self._affordable_openings()
        for done in range(count):
            if done:
                self.openings.open()
            share = self._progress_of(done / count, 1 / count)
            if self._effort.runs is None:
                self.openings.time(seconds=self._effort.time_s / count, on_round=share)
            else:
                calls = self._effort.runs // count + (done < self._effort.runs % count)
                self.openings.time(calls=calls, on_round=share)

    def _affordable_openings(self) -> int:
        timings = self.openings.timings.values()
        total_s, most = self._effort.time_s, max(_OPENINGS)
        if self._effort.runs is not None:
            total_s = max(_SHORT_S, self._effort.runs * sum(one.warmup.latency_ms for one in timings) / 1e3)
            most = self._effort.runs // _CALLS_PER_OPENING
        if self._earlier:  # what opening changes is all that is known of the difference
            return max(_OPENINGS) if most >= max(_OPENINGS) else min(_OPENINGS)
        loading_s = sum(one.load_ms[0] + one.first_run_ms[0] for one in timings) / 1e3
        fitting = (one for one in _OPENINGS if one <= most and (one - 1) * loading_s <= _LOADING_SHARE * total_s)
        return next(fitting, 1)

    def _until_precise(self, precision: float) -> None:
        begin = time.monotonic()
        self.openings.warm_up()
        while True:
            self.openings.time(seconds=_PRECISE_SECONDS * len(self._cases))
            elapsed_s = time.monotonic() - begin
            self._on_progress("time", min(elapsed_s, self._effort.time_s), self._effort.time_s)
            steady = len(self.openings) >= _PRECISE_OPENINGS and self._has_enough_calls()
            enough = steady and self._is_precise(precision)
            if enough or elapsed_s >= self._effort.time_s:
                return
            self.openings.open()

    def _has_enough_calls(self) -> bool:
        counts = [sum(map(np.size, one.series)) for one in self.openings.timings.values()]
        return min(counts) >= self._effort.fewest_calls

    def _is_precise(self, precision: float) -> bool:
        return all(
            summarize(one.series, self.rng).median.uncertainty <= precision
            and self.speedup(name).uncertainty <= precision
            for name, one in self.openings.timings.items()
        )

    def _opening_of_the_gate(self) -> None:
        if len(self.openings):
            self.openings.open()
        most = LOOKS[-1]
        done = min(len(self.openings), most - 1)
        self.openings.time(
            seconds=OPENING_SECONDS / 2 * len(self._cases), on_round=self._progress_of(done / most, 1 / most)
        )

    def _is_clear(self) -> bool:
        assert self._effort.max_regression is not None
        bound = 1 / (1 + self._effort.max_regression)
        ratios = [self.speedup(name) for name in self.limited()]
        return all(ratio.high < bound or ratio.low > bound for ratio in ratios)

    def _progress_of(self, before: float, share: float) -> Callable[[float, float], None]:
        return lambda done, total: self._on_progress("time", before + share * done / total, 1.0)
