"""How far the weights of a network have left the processor's caches when they are used again.

They push each other out where they are too large for the caches. And where several machines share a processor, the
others push them out with time: a virtual machine that reads 9 MB of weights every millisecond finds them in the last
cache, and every 4 ms it finds none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxdistill.device.costs.layers import LayerKind
from onnxdistill.device.costs.measuring import LayerClock

# Layers that do little with many weights, and how many of them a model has.
_KIND = LayerKind("float32", (3, 3), (1, 1), 1, (1, 2, 2))
_WIDTHS = (256, 256)
_LAYER_BYTES = 256 * 256 * 9 * 4
_COUNTS = (1, 2, 4, 6, 8, 12, 16, 24)

# What is left of some of them after so long.
_RESTING_COUNT = 4
_PAUSES_MS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0)

# Below this gain there are no caches to speak of, or the weights are elsewhere.
_LEAST_GAIN = 1.1


@dataclass(frozen=True)
class CacheLoad:
    """What a network asks of the caches.

    Attributes:
        weight_bytes: Size of all of its weights.
        latency_ms: What a run takes, after which each weight is used again.
    """

    weight_bytes: int
    latency_ms: float


@dataclass(frozen=True)
class Coldness:
    """Between 0, where all weights stay in the caches from one run to the next, and 1, where none do.

    Attributes:
        sizes_bytes: Of all weights of a network.
        shares: How cold weights are then; rising.
        intervals_ms: Between two runs.
        interval_shares: How cold weights are then that would have stayed by their size; rising.
        ms_per_byte: What a byte of a layer's weights costs where none stay.
    """

    sizes_bytes: Sequence[float]
    shares: Sequence[float]
    intervals_ms: Sequence[float] = ()
    interval_shares: Sequence[float] = ()
    ms_per_byte: float = 0.0

    def at(self, load: CacheLoad) -> float:
        """In a network."""
        staying = 1.0
        for value, known, shares in (
            (load.weight_bytes, self.sizes_bytes, self.shares),
            (load.latency_ms, self.intervals_ms, self.interval_shares),
        ):
            staying *= 1 - float(np.interp(value, known, shares)) if shares else 1.0
        return 1 - staying

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dump`."""
        return {
            "sizes_bytes": list(self.sizes_bytes),
            "shares": list(self.shares),
            "intervals_ms": list(self.intervals_ms),
            "interval_shares": list(self.interval_shares),
            "ms_per_byte": self.ms_per_byte,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Coldness:
        """The inverse of `to_json`."""
        names = ("sizes_bytes", "shares", "intervals_ms", "interval_shares")
        sizes, shares, intervals, interval_shares = (tuple(map(float, data[name])) for name in names)
        return cls(sizes, shares, intervals, interval_shares, float(data["ms_per_byte"]))


def measure_coldness(clock: LayerClock) -> Coldness:
    """Times a layer beside more and more others like it, each with weights of its own, and after longer and longer."""
    times_ms = np.maximum.accumulate([clock.repeated_ms(_KIND, _WIDTHS, count) for count in _COUNTS])
    rested_ms = np.maximum.accumulate([clock.repeated_ms(_KIND, _WIDTHS, _RESTING_COUNT, ms) for ms in _PAUSES_MS])
    warm_ms, cold_ms = float(times_ms[0]), float(max(times_ms[-1], rested_ms[-1]))
    if warm_ms <= 0 or cold_ms < _LEAST_GAIN * warm_ms:
        return Coldness((), ())
    return Coldness(
        sizes_bytes=tuple(float(count * _LAYER_BYTES) for count in _COUNTS),
        shares=_shares(times_ms, cold_ms),
        intervals_ms=tuple(map(float, np.array(_PAUSES_MS) + _RESTING_COUNT * rested_ms)),
        # Without a pause it is their size alone, and the pauses are about what that leaves.
        interval_shares=_shares(rested_ms, cold_ms),
        ms_per_byte=(cold_ms - warm_ms) / _LAYER_BYTES,
    )


def _shares(rising_ms: NDArray[np.float64], most_ms: float) -> tuple[float, ...]:
    """How far times are on the way from the first of them to another one."""
    way_ms = most_ms - rising_ms[0]
    return tuple(map(float, (rising_ms - rising_ms[0]) / way_ms if way_ms > 0 else np.zeros_like(rising_ms)))
