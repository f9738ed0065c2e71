"""Clients that work at the same time: how many there can be, their threads, and what ends them."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for_futures
from math import isfinite
from typing import TypeVar

from onnxdistill.errors import UsageError

_T = TypeVar("_T")

_CLIENTS_AT_MOST = 1000

# How often the caller, who waits for the clients, looks whether the measurement was ended.
_POLL_S = 0.2

# A thread that comes back from ONNX Runtime waits for Python's lock for as long as this, if another one computes.
_SWITCH_S = 1e-4


def check_load(seconds: float, clients: int) -> None:
    """Makes sure that so many clients can work for some seconds.

    Raises:
        UsageError: If a number is out of range.
    """
    if not (isfinite(seconds) and seconds > 0):
        raise UsageError(f"The time must be above 0 seconds, and {seconds:g} were asked for.")
    if not 1 <= clients <= _CLIENTS_AT_MOST:
        raise UsageError(f"There can be 1 to {_CLIENTS_AT_MOST} clients, and {clients} were asked for.")


def in_parallel(work: Callable[[threading.Event], _T], clients: int) -> list[_T]:
    """Does the work once for each client, at the same time; the first error, also one of the caller, ends them all.

    A single client works in the calling thread.

    Args:
        work: Is to return soon when the event is set.
        clients: How many.

    Returns:
        What each client's work returned.

    Raises:
        BaseException: Whatever the work raises, after all clients have stopped.
    """
    stop = threading.Event()
    if clients == 1:
        return [work(stop)]
    with ThreadPoolExecutor(clients, "client") as pool:
        try:
            futures = [pool.submit(work, stop) for _ in range(clients)]
            running: set[Future[_T]] = set(futures)
            while running:
                # Without a timeout, Windows would hold an interrupt back until the end.
                done, running = wait_for_futures(running, _POLL_S, FIRST_EXCEPTION)
                for future in done:
                    future.result()
        finally:
            stop.set()
    return [future.result() for future in futures]


@contextlib.contextmanager
def quick_switches(clients: int) -> Iterator[None]:
    """Lets Python's threads get their turn sooner, if there are several."""
    before_s = sys.getswitchinterval()
    if clients > 1:
        sys.setswitchinterval(_SWITCH_S)
    try:
        yield
    finally:
        sys.setswitchinterval(before_s)
