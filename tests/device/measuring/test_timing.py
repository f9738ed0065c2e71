from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from onnxdistill.device.measuring.timing import Runner, time_interleaved, warm_up

MS = 1_000_000


class FakeTime:
    """A clock that only the timed functions move."""

    def __init__(self) -> None:
        self.now_ns = 0
        self.calls: list[str] = []

    def __call__(self) -> int:
        return self.now_ns

    def runner(self, name: str, times_ms: Iterator[float] | float) -> Callable[[], object]:
        def run() -> None:
            self.calls.append(name)
            self.now_ns += int((times_ms if isinstance(times_ms, float) else next(times_ms)) * MS)

        return run


def timed(runners: dict[str, Runner], *, warmup_calls: int | None = None, **how: object) -> dict[str, np.ndarray]:
    clock = how.get("clock", time.perf_counter_ns)
    warmup = warm_up(runners, warmup_calls, clock)  # type: ignore[arg-type]  # one of the options
    return time_interleaved(runners, warmup, rng=np.random.default_rng(0), **how)  # type: ignore[arg-type]


def test_times_are_those_of_the_clock() -> None:
    clock = FakeTime()
    runners = {"a": clock.runner("a", 2.0), "b": clock.runner("b", 5.0)}
    times = timed(runners, calls=10, warmup_calls=3, clock=clock)
    # 5 ms fit twice into a turn of 10 ms, but so few calls are better told apart in rounds of one.
    assert times["a"].shape == (10, 1)
    assert timed(runners, calls=20, warmup_calls=3, clock=clock)["a"].shape == (10, 2)
    assert np.all(times["a"] == 2.0)
    assert np.all(times["b"] == 5.0)
    warmup = warm_up(runners, 3, clock)
    assert warmup["a"].calls == 3
    assert warmup["b"].latency_ms == 5.0


def test_every_round_runs_each_function_in_a_random_order() -> None:
    clock = FakeTime()
    runners = {name: clock.runner(name, 50.0) for name in "abc"}
    timed(runners, calls=30, warmup_calls=1, clock=clock)
    measured = clock.calls[3:]
    # A turn is one call that is not timed and one that is.
    rounds = [tuple(measured[start : start + 6 : 2]) for start in range(0, len(measured), 6)]
    assert len(rounds) == 30
    assert all(sorted(order) == ["a", "b", "c"] for order in rounds)
    assert len(set(rounds)) > 3
    assert measured[::2] == measured[1::2]


def test_a_turn_begins_once_the_caches_are_its_own_again() -> None:
    clock = FakeTime()
    calls_since_other = 0

    def large() -> None:
        nonlocal calls_since_other
        calls_since_other = 0
        clock.now_ns += 9 * MS

    def small() -> None:
        nonlocal calls_since_other
        calls_since_other += 1
        # What the other one has read stays for seven calls.
        clock.now_ns += (3 if calls_since_other <= 7 else 2) * MS

    times = timed({"large": large, "small": small}, calls=40, clock=clock)
    assert np.all(times["small"] == 2.0)
    assert np.all(times["large"] == 9.0)


def test_a_single_function_settles_once() -> None:
    clock = FakeTime()
    timed({"a": clock.runner("a", 1.0)}, calls=16, warmup_calls=0, clock=clock)
    assert len(clock.calls) == 17


@pytest.mark.parametrize("calls", [1, 7, 12, 97])
def test_exactly_the_calls_that_were_asked_for(calls: int) -> None:
    clock = FakeTime()
    runners = {"a": clock.runner("a", 0.1), "b": clock.runner("b", 0.2)}
    times = timed(runners, calls=calls, warmup_calls=1, clock=clock)
    assert {series.size for series in times.values()} == {calls}


def test_seconds_bound_the_time() -> None:
    clock = FakeTime()
    times = timed({"a": clock.runner("a", 20.0)}, seconds=1.0, warmup_calls=1, clock=clock)
    assert times["a"].shape == (25, 2)  # turns of 40 ms


def test_seconds_too_short_still_make_five_rounds_and_long_ones_end() -> None:
    clock = FakeTime()
    slow = timed({"a": clock.runner("a", 9000.0)}, seconds=1.0, warmup_calls=1, clock=clock)
    assert slow["a"].size == 5
    fast = timed({"a": clock.runner("a", 0.001)}, seconds=99.0, warmup_calls=1, clock=clock)
    assert fast["a"].size == 40_000


def test_warm_up_goes_on_until_the_time_is_steady() -> None:
    clock = FakeTime()
    falling = (max(1.0, 30.0 - step) for step in range(10_000))
    warmup = warm_up({"a": clock.runner("a", falling)}, clock=clock)["a"]
    assert warmup.settled
    assert warmup.latency_ms == 1.0
    assert 40 <= warmup.calls <= 60


def test_warm_up_that_never_settles_ends_and_says_so() -> None:
    clock = FakeTime()
    growing = (0.001 * 1.01**step for step in range(10_000))
    warmup = warm_up({"a": clock.runner("a", growing)}, clock=clock)["a"]
    assert not warmup.settled
    assert warmup.calls == 500


def test_warm_up_of_a_slow_function_is_bounded_in_time() -> None:
    clock = FakeTime()
    warmup = warm_up({"a": clock.runner("a", 1000.0)}, clock=clock)["a"]
    assert warmup.calls == 3


def test_progress_is_told_outside_of_the_timed_calls() -> None:
    clock = FakeTime()
    heard: list[tuple[float, float]] = []

    def on_round(done: float, total: float) -> None:
        clock.now_ns += 1000 * MS
        heard.append((done, total))

    times = timed({"a": clock.runner("a", 10.0)}, calls=3, warmup_calls=1, clock=clock, on_round=on_round)
    assert heard == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert np.all(times["a"] == 10.0)


def test_no_garbage_collection_meanwhile_and_again_afterwards() -> None:
    seen: list[bool] = []
    timed({"a": lambda: seen.append(gc.isenabled())}, calls=2, warmup_calls=1)
    assert seen == [False] * 4
    assert gc.isenabled()


def test_garbage_collection_comes_back_after_an_exception() -> None:
    def fails() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        timed({"a": fails}, calls=1, warmup_calls=0)
    assert gc.isenabled()


@pytest.mark.parametrize("how", [{}, {"calls": 1, "seconds": 1.0}])
def test_calls_or_seconds(how: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="exactly one"):
        timed({"a": lambda: None}, **how)  # type: ignore[arg-type]  # one of the options
