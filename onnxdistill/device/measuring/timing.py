"""Timing several functions side by side, so that whatever drifts meanwhile drifts for all of them.

One after the other, the first model is timed on a cool processor and the last on a hot one. Here every round
calls every function, in a new random order. Another function's turn empties the caches, which a deployed
model does not share; so each turn begins with calls that are not timed.
"""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Runner = Callable[[], object]
Clock = Callable[[], int]
OnRound = Callable[[float, float], None]

_NS_PER_MS, _NS_PER_S = 1e6, 1e9

# A turn is several calls, which makes those cheap that are not timed.
_TURN_NS, _CALLS_PER_TURN = 40e6, 8

# A cache of the last level keeps what another model has read for a while: a model of 16 MB that comes after one of 60
# takes 2.9 ms, then 2.5, and 2.1 only after seven calls.
_SETTLE_MS, _SETTLE_CALLS = 20.0, 8

# Bounds of a measurement that is limited by seconds.
_ROUNDS_AT_LEAST, _CALLS_AT_MOST = 5, 40_000

# With fewer rounds than this, longer turns would leave too few of them to tell how much they differ.
_ROUNDS_WANTED = 10

# The warm-up ends when the medians of two successive windows of calls differ by less than this share.
_WINDOW, _SETTLED, _WARMUP_CALLS, _WARMUP_NS = 10, 0.02, 500, 3e9


@dataclass(frozen=True)
class Warmup:
    """The calls before the timing starts.

    Attributes:
        calls: How many were made.
        settled: Whether the time of a call had become steady by then.
        latency_ms: Median of the last calls.
    """

    calls: int
    settled: bool
    latency_ms: float


def warm_up(
    runners: Mapping[str, Runner], calls: int | None = None, clock: Clock = time.perf_counter_ns
) -> dict[str, Warmup]:
    """Calls every function until its time is steady, one function after the other.

    Args:
        runners: The functions by name.
        calls: How many calls of each; until the time is steady if left out, and at most 500 calls or 3 seconds.
        clock: Returns nanoseconds.
    """
    with no_garbage_collection():
        return {name: _warm_up(runner, calls, clock) for name, runner in runners.items()}


def settling_calls(latency_ms: float) -> int:
    """How many calls it takes until a function has the caches to itself again, after the turn of another one."""
    fitting = _SETTLE_CALLS if latency_ms == 0 else int(_SETTLE_MS / latency_ms)
    return max(1, min(_SETTLE_CALLS, fitting))


def time_interleaved(
    runners: Mapping[str, Runner],
    warmup: Mapping[str, Warmup],
    *,
    rng: np.random.Generator,
    calls: int | None = None,
    seconds: float | None = None,
    clock: Clock = time.perf_counter_ns,
    on_round: OnRound | None = None,
) -> dict[str, npt.NDArray[np.float64]]:
    """Times every function often, in rounds; the garbage collector is off meanwhile.

    Args:
        runners: The functions by name.
        warmup: How they warmed up, by name.
        rng: Draws the order within each round.
        calls: How many calls of each function are timed.
        seconds: Instead of `calls`: for how long to go on, all functions together. At least five rounds are
            timed, and at most 40,000 calls of each.
        clock: Returns nanoseconds.
        on_round: Called between rounds with what is done and the total, in calls or in seconds.

    Returns:
        Milliseconds, per name, of shape `(rounds, calls)` in the order of the calls.

    Raises:
        ValueError: If not exactly one of `calls` and `seconds` is given, or if there is nothing to time.
    """
    if (calls is None) == (seconds is None) or not runners:
        raise ValueError("runners and exactly one of calls and seconds are needed")
    with no_garbage_collection():
        per_turn = _calls_per_turn(warmup, calls)
        names = list(runners)
        settling = {name: settling_calls(warmup[name].latency_ms) if len(names) > 1 else 0 for name in names}
        times_ns: dict[str, list[list[int]]] = {name: [] for name in names}
        progress = _progress(calls, seconds, per_turn, clock)
        if len(names) == 1:  # other code may have run since the warm-up; of several, every turn settles the caches
            runners[names[0]]()
        for done, total in progress:
            for position in rng.permutation(len(names)):
                name = names[position]
                times_ns[name].append(_turn(runners[name], per_turn, clock, settling[name]))
            if on_round is not None:
                on_round(min(done, total), total)
    if on_round is not None:
        on_round(total, total)
    return {name: np.array(times_ns[name]) / _NS_PER_MS for name in names}


def _turn(runner: Runner, calls: int, clock: Clock, settling: int = 0) -> list[int]:
    times = [0] * calls
    for _ in range(settling):
        runner()
    for index in range(calls):
        begin = clock()
        runner()
        end = clock()
        times[index] = end - begin
    return times


def _progress(calls: int | None, seconds: float | None, per_turn: int, clock: Clock) -> Iterator[tuple[float, float]]:
    """Yields what is done and the total before each round, until there is enough."""
    if calls is not None:
        for done in range(0, calls, per_turn):
            yield float(done), float(calls)
    elif seconds is not None:
        begin = clock()
        for rounds in range(_CALLS_AT_MOST // per_turn):
            elapsed_s = (clock() - begin) / _NS_PER_S
            if rounds >= _ROUNDS_AT_LEAST and elapsed_s >= seconds:
                return
            yield elapsed_s, seconds


def _calls_per_turn(warmup: Mapping[str, Warmup], calls: int | None) -> int:
    slowest_ns = max(one.latency_ms for one in warmup.values()) * _NS_PER_MS
    fitting = _CALLS_PER_TURN if slowest_ns == 0 else int(_TURN_NS / slowest_ns)
    wanted = max(1, min(_CALLS_PER_TURN, fitting))
    if calls is None:
        return wanted
    wanted = max(1, min(wanted, calls // _ROUNDS_WANTED))
    # Rounds are whole: the largest turn that makes exactly the calls that were asked for.
    return next(turn for turn in range(wanted, 0, -1) if calls % turn == 0)


def _warm_up(runner: Runner, calls: int | None, clock: Clock) -> Warmup:
    times: list[int] = []
    begin = clock()
    settled = False
    while not settled:
        if calls is not None and len(times) >= calls:
            break
        if calls is None and (len(times) >= _WARMUP_CALLS or clock() - begin >= _WARMUP_NS):
            break
        times.extend(_turn(runner, 1, clock))
        settled = calls is None and _is_settled(times)
    # The calls that were asked for are believed to be enough.
    latency_ms = float(np.median(times[-_WINDOW:])) / _NS_PER_MS if times else 0.0
    return Warmup(len(times), settled or calls is not None, latency_ms)


def _is_settled(times: list[int]) -> bool:
    if len(times) < 2 * _WINDOW or len(times) % _WINDOW:
        return False
    before, now = np.median(times[-2 * _WINDOW : -_WINDOW]), np.median(times[-_WINDOW:])
    return bool(abs(now - before) <= _SETTLED * before)


@contextlib.contextmanager
def no_garbage_collection() -> Iterator[None]:
    """None within the block, nor before it: beside torch, looking for garbage takes 0.3 seconds."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
