"""How far the weights of a network push each other out of the processor's caches, by their size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxdistill.device.costs.layers import LayerKind
from onnxdistill.device.costs.measuring import LayerClock

# Layers that do little with many weights, and how many of them a model has.
_KIND = LayerKind("float32", (3, 3), (1, 1), 1, (1, 2, 2))
_WIDTHS = (256, 256)
_LAYER_BYTES = 256 * 256 * 9 * 4
_COUNTS = (1, 2, 4, 6, 8, 12, 16, 24)

# Below this gain there are no caches to speak of, or the weights are elsewhere.
_LEAST_GAIN = 1.1


@dataclass(frozen=True)
class Coldness:
    """Between 0, where all weights stay in the caches from one run to the next, and 1, where none do.

    Attributes:
        sizes_bytes: Of all weights of a network.
        shares: How cold weights are then; rising.
        ms_per_byte: What a byte of a layer's weights costs where none stay.
    """

    sizes_bytes: Sequence[float]
    shares: Sequence[float]
    ms_per_byte: float = 0.0

    def at(self, weight_bytes: float) -> float:
        """Of a network with so many bytes of weights."""
        return float(np.interp(weight_bytes, self.sizes_bytes, self.shares)) if self.shares else 0.0

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dump`."""
        shares, sizes = list(self.shares), list(self.sizes_bytes)
        return {"sizes_bytes": sizes, "shares": shares, "ms_per_byte": self.ms_per_byte}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Coldness:
        """The inverse of `to_json`."""
        sizes, shares = (tuple(map(float, data[key])) for key in ("sizes_bytes", "shares"))
        return cls(sizes, shares, float(data["ms_per_byte"]))


def measure_coldness(clock: LayerClock) -> Coldness:
    """Times a layer beside more and more others like it, each with weights of its own."""
    times_ms = np.maximum.accumulate([clock.repeated_ms(_KIND, _WIDTHS, count) for count in _COUNTS])
    if times_ms[-1] < _LEAST_GAIN * times_ms[0]:
        return Coldness((), ())
    shares = (times_ms - times_ms[0]) / (times_ms[-1] - times_ms[0])
    sizes = tuple(float(count * _LAYER_BYTES) for count in _COUNTS)
    return Coldness(sizes, tuple(map(float, shares)), float(times_ms[-1] - times_ms[0]) / _LAYER_BYTES)
