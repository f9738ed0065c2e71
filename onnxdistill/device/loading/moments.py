"""Moments of a clock, in nanoseconds: waiting for one, and the time between two."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from onnxdistill.device.measuring.timing import Clock

Wait = Callable[[int], None]
"""Returns at a moment of the clock, in nanoseconds; at once if it has passed."""

Times = npt.NDArray[np.int64]
"""Moments of the clock, in nanoseconds."""

_NS_PER_S = 1e9

# A sleep ends about 100 microseconds too late on Linux, where the kernel gathers timers; the rest of a wait is spun.
_SPIN_NS = 300_000


def _give_way() -> None:
    """Lets other threads go on, of this process and of others, without sleeping."""
    if sys.platform == "win32":
        time.sleep(0)
    else:
        # Here, a sleep of no time takes as long as the shortest sleep. A loop that never lets others go on is put aside
        # for milliseconds at some point, which may be just when a request arrives, and keeps Python's lock until then.
        os.sched_yield()


def wait_until(
    moment_ns: int,
    *,
    clock: Clock = time.perf_counter_ns,
    sleep: Callable[[float], None] = time.sleep,
    yield_cpu: Callable[[], None] = _give_way,
) -> None:
    """Waits to the microsecond, on a machine that isn't busy: sleeps until shortly before, then looks at the clock.

    Args:
        moment_ns: When to return.
        clock: Returns nanoseconds.
        sleep: Takes seconds.
        yield_cpu: Called between looks at the clock.
    """
    while (left_ns := moment_ns - clock()) > 0:
        if left_ns > _SPIN_NS:
            sleep((left_ns - _SPIN_NS) / _NS_PER_S)
        else:
            yield_cpu()


def seconds_between(begin_ns: int, end_ns: int) -> float:
    """Never 0, which a clock with coarse steps would make of a short call."""
    return max(1, int(end_ns) - int(begin_ns)) / _NS_PER_S
