"""What this machine can do at most, as far as ONNX Runtime gets it out: multiply-adds and memory, measured in a moment.

The probes are models of a few large nodes. Their best time counts, since a peak is what nothing may exceed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import log, prod
from typing import Any

import numpy as np

from onnxdistill.device.onnxbytes import Node, Value, model_bytes
from onnxdistill.device.session import Array, SessionSettings, open_session
from onnxdistill.errors import OnnxDistillError

Clock = Callable[[], int]

_NS_PER_S = 1e9

# How long one probe is repeated, and how often at least.
_PROBE_S, _RUNS_AT_LEAST, _WARMUP = 0.03, 5, 2

# Products of square matrices, and convolutions of 3x3 from the middle and the end of a ResNet, as channels and height:
# two in a row, so that what comes before and after them hardly counts. All of it takes a millisecond or so, since on a
# busy machine nothing longer is left undisturbed.
_DEPTH, _MATRIX, _IMAGES, _KERNEL = 2, 256, ((128, 28), (256, 7)), 3

# Bytes that one node of a bandwidth probe reads and writes; chains move about as much in all.
_MOVED = (1 << 16, 1 << 20, 1 << 23, 1 << 25)
_CHAIN_BYTES, _CHAIN_AT_LEAST, _CHAIN_AT_MOST = 1 << 24, 3, 64


@dataclass(frozen=True)
class Bandwidth:
    """How fast nodes of one size move what they work on.

    Attributes:
        moved_bytes: What a node reads and writes.
        gb_per_s: Gigabytes (1e9) read and written a second.
    """

    moved_bytes: int
    gb_per_s: float


@dataclass(frozen=True)
class Peaks:
    """What a machine does at most.

    Attributes:
        threads: Threads inside one operator.
        provider: Execution provider, as it was asked for.
        gmacs_per_s: 1e9 multiply-adds a second by precision: `float32`, and `int8`, which is unsigned activations by
            signed weights. What does not run on the provider is missing.
        bandwidths: From small nodes, which work in the caches, to large ones.
    """

    threads: int
    provider: str
    gmacs_per_s: dict[str, float]
    bandwidths: tuple[Bandwidth, ...]

    def gb_per_s(self, moved_bytes: float) -> float | None:
        """Bandwidth for a node that moves so much: between those measured, on a logarithmic scale of sizes."""
        if not self.bandwidths:
            return None
        sizes = [log(one.moved_bytes) for one in self.bandwidths]
        return float(np.interp(log(max(1.0, moved_bytes)), sizes, [one.gb_per_s for one in self.bandwidths]))

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dump`."""
        return {**self.__dict__, "bandwidths": [dict(one.__dict__) for one in self.bandwidths]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Peaks:
        """The inverse of `to_json`."""
        return cls(**{**data, "bandwidths": tuple(Bandwidth(**one) for one in data["bandwidths"])})


@dataclass(frozen=True)
class Probe:
    """A model that keeps a machine busy in one way.

    Attributes:
        content: Of the .onnx file.
        feeds: Its input.
        work: Multiply-adds or bytes of one run.
    """

    content: bytes
    feeds: dict[str, Array]
    work: int


def measure_peaks(settings: SessionSettings, clock: Clock = time.perf_counter_ns) -> Peaks:
    """Measures the peaks with the threads and on the provider of a session, in about half a second.

    Args:
        settings: Of the session that the peaks are for.
        clock: Returns nanoseconds.
    """
    compute = {
        "float32": [float_product_probe(), *(float_convolution_probe(*image) for image in _IMAGES)],
        "int8": [integer_product_probe(), *(integer_convolution_probe(*image) for image in _IMAGES)],
    }
    rates = {
        precision: [rate for probe in probes if (rate := _rate(probe, settings, clock)) is not None]
        for precision, probes in compute.items()
    }
    bandwidths = {moved: _rate(bandwidth_probe(moved), settings, clock) for moved in _MOVED}
    return Peaks(
        threads=settings.threads,
        provider=settings.provider,
        gmacs_per_s={precision: max(found) / 1e9 for precision, found in rates.items() if found},
        bandwidths=tuple(Bandwidth(moved, rate / 1e9) for moved, rate in bandwidths.items() if rate is not None),
    )


def float_product_probe() -> Probe:
    """Products of a matrix with constant matrices in float32."""
    x = _numbers((_MATRIX, _MATRIX))
    weight = _numbers((_MATRIX, _MATRIX)) / _MATRIX
    nodes = [Node("MatMul", (_name(index), "w"), (_name(index + 1),)) for index in range(_DEPTH)]
    return _probe(nodes, x, {"w": weight}, _DEPTH * _MATRIX**3)


def float_convolution_probe(channels: int, height: int) -> Probe:
    """Convolutions in float32, of square images with as many channels before as after."""
    x, weight = _image(channels, height).astype(np.float32), _numbers(_weight_shape(channels)) / channels
    nodes = [
        Node("Conv", (_name(index), "w"), (_name(index + 1),), {"pads": [_KERNEL // 2] * 4}) for index in range(_DEPTH)
    ]
    return _probe(nodes, x, {"w": weight}, _convolution_macs(channels, height))


def integer_product_probe() -> Probe:
    """Products of a matrix of uint8 with constant matrices of int8, the results rounded to uint8 again."""
    x = _bytes((_MATRIX, _MATRIX))
    names = ("s", "zx", "w", "s", "zw", "s", "zx")
    nodes = [Node("QLinearMatMul", (_name(index), *names), (_name(index + 1),)) for index in range(_DEPTH)]
    return _probe(nodes, x, _quantized(_bytes((_MATRIX, _MATRIX))), _DEPTH * _MATRIX**3)


def integer_convolution_probe(channels: int, height: int) -> Probe:
    """Convolutions of uint8 with int8, the results rounded to uint8 again."""
    names = ("s", "zx", "w", "s", "zw", "s", "zx")
    nodes = [
        Node("QLinearConv", (_name(index), *names), (_name(index + 1),), {"pads": [_KERNEL // 2] * 4})
        for index in range(_DEPTH)
    ]
    weights = _quantized(_bytes(_weight_shape(channels)))
    return _probe(nodes, _image(channels, height), weights, _convolution_macs(channels, height))


def bandwidth_probe(moved_bytes: int) -> Probe:
    """A chain of nodes that each negate an array, which is to read half of `moved_bytes` and to write the other."""
    length = min(_CHAIN_AT_MOST, max(_CHAIN_AT_LEAST, _CHAIN_BYTES // moved_bytes))
    nodes = [Node("Neg", (_name(index),), (_name(index + 1),)) for index in range(length)]
    return _probe(nodes, np.ones(moved_bytes // 8, np.float32), {}, length * moved_bytes)


def _probe(nodes: list[Node], x: Array, constants: Mapping[str, Array], work: int) -> Probe:
    """A model from `v0` to the last value, which has the shape of the first."""
    value = [Value(name, x.dtype.name, x.shape) for name in (_name(0), _name(len(nodes)))]
    return Probe(model_bytes(nodes, value[:1], value[1:], constants), {_name(0): x}, work)


def _rate(probe: Probe, settings: SessionSettings, clock: Clock) -> float | None:
    """Work a second in the best run; None if the provider does not take the probe."""
    try:
        session = open_session(probe.content, settings)
        session.run(probe.feeds)
    except OnnxDistillError:
        return None
    runner = session.runner(probe.feeds)
    for _ in range(_WARMUP):
        runner()
    times: list[int] = []
    while len(times) < _RUNS_AT_LEAST or sum(times) < _PROBE_S * _NS_PER_S:
        begin = clock()
        runner()
        times.append(max(1, clock() - begin))
    return probe.work * _NS_PER_S / min(times)


def _name(index: int) -> str:
    return f"v{index}"


def _numbers(shape: tuple[int, ...]) -> Array:
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def _bytes(shape: tuple[int, ...]) -> Array:
    return np.random.default_rng(0).integers(0, 128, shape, dtype=np.uint8)


def _image(channels: int, height: int) -> Array:
    return _bytes((1, channels, height, height))


def _weight_shape(channels: int) -> tuple[int, ...]:
    return (channels, channels, _KERNEL, _KERNEL)


def _convolution_macs(channels: int, height: int) -> int:
    return _DEPTH * height**2 * prod(_weight_shape(channels))


def _quantized(weight: Array) -> dict[str, Array]:
    return {
        "w": weight.astype(np.int8),
        "s": np.array(0.05, np.float32),
        "zx": np.array(128, np.uint8),
        "zw": np.array(0, np.int8),
    }
