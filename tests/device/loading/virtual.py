"""Loads of known functions, in a time that only these functions and waiting move."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from onnxdistill.device.loading.openloop import OpenLoopResult, open_loop

MS, S = 1_000_000, 1_000_000_000


class VirtualTime:
    """A clock that only waiting and the timed functions move."""

    def __init__(self) -> None:
        self.now_ns = 0

    def __call__(self) -> int:
        return self.now_ns

    def wait(self, moment_ns: int) -> None:
        self.now_ns = max(self.now_ns, moment_ns)

    def server(self, service_ms: float) -> Callable[[], object]:
        def run() -> None:
            self.now_ns += int(service_ms * MS)

        return run


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def virtual_open_loop(service_ms: float, *, rate_per_s: float, seconds: float, seed: int = 0) -> OpenLoopResult:
    clock = VirtualTime()
    server = clock.server(service_ms)
    return open_loop(server, rate_per_s=rate_per_s, seconds=seconds, rng=rng(seed), clock=clock, wait=clock.wait)
