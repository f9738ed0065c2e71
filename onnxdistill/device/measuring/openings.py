"""Models opened anew again and again, and timed side by side in every opening; see `statistics` for why."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from onnxdistill.device.cases import Case
from onnxdistill.device.measuring.statistics import Series
from onnxdistill.device.measuring.timing import OnRound, Warmup, time_interleaved, warm_up
from onnxdistill.device.session import Array, Session, open_session

Feeds = dict[str, Array]
OnOpen = Callable[[float, float], None]

# A model that was warm before needs only the memory and the caches of its new session filled.
_REWARM_MS, _REWARM_AT_LEAST, _REWARM_AT_MOST = 50.0, 3, 2000


@dataclass
class CaseTimings:
    """What was measured of a case, opening by opening.

    Attributes:
        series: Milliseconds of every timed call, of shape `(rounds, calls)` in each opening.
        load_ms: From the file to a session that is ready.
        first_run_ms: The first run, which allocates memory and more.
        warmup: Before the first timing.
    """

    series: list[Series] = field(default_factory=list)
    load_ms: list[float] = field(default_factory=list)
    first_run_ms: list[float] = field(default_factory=list)
    warmup: Warmup = field(default_factory=lambda: Warmup(0, False, 0.0))


class Openings:
    """Opens cases, times them in turns, and does so again as often as it is asked.

    Args:
        cases: By name.
        feeds: Gives the inputs of a case whose session is open for the first time.
        rng: Draws the order of the calls.
        warmup_calls: How many calls of each case come before the first timing; until the time is steady if left out.

    Attributes:
        timings: What was measured so far, by name.
        sessions: Those that are open now, by name.
        feeds: The inputs, by name; the same in every opening.
    """

    def __init__(
        self,
        cases: Mapping[str, Case],
        feeds: Callable[[Case, Session], Feeds],
        rng: np.random.Generator,
        warmup_calls: int | None = None,
    ) -> None:
        self._cases = dict(cases)
        self._make_feeds = feeds
        self._rng = rng
        self._warmup_calls = warmup_calls
        self._done = 0
        self._warm = False
        self.timings = {name: CaseTimings() for name in self._cases}
        self.sessions: dict[str, Session] = {}
        self.feeds: dict[str, Feeds] = {}

    def __len__(self) -> int:
        """How many openings were timed."""
        return self._done

    def open(self, on_open: OnOpen | None = None) -> None:
        """Closes what is open, then opens every case and runs it once; every second time in the other order.

        Raises:
            ModelFileError: If ONNX Runtime cannot load or run a model.
            ProviderError: If its provider does not take it.
            UsageError: If the inputs do not fit.
        """
        self.sessions.clear()
        if not self._done:  # what came before may have left much, and the timing collects none of it
            gc.collect()
        order = list(self._cases)
        for count, name in enumerate(reversed(order) if self._done % 2 else order):
            if on_open is not None:
                on_open(count, len(order))
            self._open(name, self._cases[name])
        self.sessions = {name: self.sessions[name] for name in order}
        self._warm = False

    def warm_up(self) -> dict[str, Warmup]:
        """Warms up what is open; a short time is enough for cases that have been timed before."""
        calls = self._warmup_calls
        if self._done and calls is None:
            calls = _rewarming(max(one.warmup.latency_ms for one in self.timings.values()))
        runners = {name: session.runner(self.feeds[name]) for name, session in self.sessions.items()}
        warmup = warm_up(runners, calls)
        for name, one in warmup.items():
            if not one.calls:  # asked for none: one call tells how long the turns may become
                warmup[name] = replace(one, latency_ms=warm_up({name: runners[name]}, 1)[name].latency_ms)
        if not self._done:
            for name, one in warmup.items():
                self.timings[name].warmup = one
        self._warm = True
        return warmup

    def time(self, *, calls: int | None = None, seconds: float | None = None, on_round: OnRound | None = None) -> None:
        """Times what is open, and opens it before, if nothing is.

        Args:
            calls: How many calls of each case are timed.
            seconds: Instead of `calls`: for how long, all cases together.
            on_round: See `time_interleaved`.
        """
        if not self.sessions:
            self.open()
        if not self._warm:
            self.warm_up()
        runners = {name: session.runner(self.feeds[name]) for name, session in self.sessions.items()}
        warmup = {name: one.warmup for name, one in self.timings.items()}
        times_ms = time_interleaved(runners, warmup, rng=self._rng, calls=calls, seconds=seconds, on_round=on_round)
        for name, series in times_ms.items():
            self.timings[name].series.append(series)
        self._done += 1

    def _open(self, name: str, case: Case) -> None:
        begin = time.perf_counter_ns()
        session = open_session(case.path, case.settings)
        loaded = time.perf_counter_ns()
        self.timings[name].load_ms.append((loaded - begin) / 1e6)
        self.sessions[name] = session
        if name not in self.feeds:
            self.feeds[name] = self._make_feeds(case, session)
            session.check_feeds(self.feeds[name])
        begin = time.perf_counter_ns()
        session.run(self.feeds[name])
        self.timings[name].first_run_ms.append((time.perf_counter_ns() - begin) / 1e6)


def _rewarming(slowest_ms: float) -> int:
    fitting = _REWARM_AT_MOST if slowest_ms == 0 else int(_REWARM_MS / slowest_ms)
    return min(_REWARM_AT_MOST, max(_REWARM_AT_LEAST, fitting))
