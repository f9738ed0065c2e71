from __future__ import annotations

import gc
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from onnxdistill.device.timing import time_interleaved

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


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_times_are_those_of_the_clock() -> None:
    clock = FakeTime()
    runners = {"a": clock.runner("a", 2.0), "b": clock.runner("b", 5.0)}
    timings = time_interleaved(runners, rng=rng(), calls=10, warmup_calls=3, clock=clock)
    # 5 ms fit twice into a turn of 10 ms.
    assert timings.times_ms["a"].shape == (5, 2)
    assert np.all(timings.times_ms["a"] == 2.0)
    assert np.all(timings.times_ms["b"] == 5.0)
    assert timings.warmup["a"].calls == 3
    assert timings.warmup["b"].latency_ms == 5.0


def test_every_round_runs_each_function_in_a_random_order() -> None:
    clock = FakeTime()
    runners = {name: clock.runner(name, 50.0) for name in "abc"}
    time_interleaved(runners, rng=rng(), calls=30, warmup_calls=1, clock=clock)
    measured = clock.calls[3:]
    # A turn is one call that is not timed and one that is.
    rounds = [tuple(measured[start : start + 6 : 2]) for start in range(0, len(measured), 6)]
    assert len(rounds) == 30
    assert all(sorted(order) == ["a", "b", "c"] for order in rounds)
    assert len(set(rounds)) > 3
    assert measured[::2] == measured[1::2]


def test_a_single_function_needs_no_call_to_settle() -> None:
    clock = FakeTime()
    time_interleaved({"a": clock.runner("a", 1.0)}, rng=rng(), calls=16, warmup_calls=0, clock=clock)
    assert len(clock.calls) == 16


@pytest.mark.parametrize("calls", [1, 7, 12, 97])
def test_exactly_the_calls_that_were_asked_for(calls: int) -> None:
    clock = FakeTime()
    runners = {"a": clock.runner("a", 0.1), "b": clock.runner("b", 0.2)}
    timings = time_interleaved(runners, rng=rng(), calls=calls, warmup_calls=1, clock=clock)
    assert {times.size for times in timings.times_ms.values()} == {calls}


def test_seconds_bound_the_time() -> None:
    clock = FakeTime()
    timings = time_interleaved({"a": clock.runner("a", 20.0)}, rng=rng(), seconds=1.0, warmup_calls=1, clock=clock)
    assert timings.times_ms["a"].shape == (50, 1)


def test_seconds_too_short_still_make_five_rounds_and_long_ones_end() -> None:
    clock = FakeTime()
    slow = time_interleaved({"a": clock.runner("a", 9000.0)}, rng=rng(), seconds=1.0, warmup_calls=1, clock=clock)
    assert slow.times_ms["a"].size == 5
    fast = time_interleaved({"a": clock.runner("a", 0.001)}, rng=rng(), seconds=99.0, warmup_calls=1, clock=clock)
    assert fast.times_ms["a"].size == 10_000


def test_warm_up_goes_on_until_the_time_is_steady() -> None:
    clock = FakeTime()
    falling = (max(1.0, 30.0 - step) for step in range(10_000))
    timings = time_interleaved({"a": clock.runner("a", falling)}, rng=rng(), calls=8, clock=clock)
    warmup = timings.warmup["a"]
    assert warmup.settled
    assert warmup.latency_ms == 1.0
    assert 40 <= warmup.calls <= 60
    assert np.all(timings.times_ms["a"] == 1.0)


def test_warm_up_that_never_settles_ends_and_says_so() -> None:
    clock = FakeTime()
    growing = (0.001 * 1.01**step for step in range(10_000))
    warmup = time_interleaved({"a": clock.runner("a", growing)}, rng=rng(), calls=1, clock=clock).warmup["a"]
    assert not warmup.settled
    assert warmup.calls == 500


def test_warm_up_of_a_slow_function_is_bounded_in_time() -> None:
    clock = FakeTime()
    warmup = time_interleaved({"a": clock.runner("a", 1000.0)}, rng=rng(), calls=1, clock=clock).warmup["a"]
    assert warmup.calls == 3


def test_progress_is_told_outside_of_the_timed_calls() -> None:
    clock = FakeTime()
    heard: list[tuple[float, float]] = []

    def on_round(done: float, total: float) -> None:
        clock.now_ns += 1000 * MS
        heard.append((done, total))

    timings = time_interleaved(
        {"a": clock.runner("a", 10.0)}, rng=rng(), calls=3, warmup_calls=1, clock=clock, on_round=on_round
    )
    assert heard == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert np.all(timings.times_ms["a"] == 10.0)


def test_no_garbage_collection_meanwhile_and_again_afterwards() -> None:
    seen: list[bool] = []
    time_interleaved({"a": lambda: seen.append(gc.isenabled())}, rng=rng(), calls=2, warmup_calls=1)
    assert seen == [False, False, False]
    assert gc.isenabled()


def test_garbage_collection_comes_back_after_an_exception() -> None:
    def fails() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        time_interleaved({"a": fails}, rng=rng(), calls=1, warmup_calls=0)
    assert gc.isenabled()


@pytest.mark.parametrize("how", [{}, {"calls": 1, "seconds": 1.0}])
def test_calls_or_seconds(how: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="exactly one"):
        time_interleaved({"a": lambda: None}, rng=rng(), **how)  # type: ignore[arg-type]  # one of the options
