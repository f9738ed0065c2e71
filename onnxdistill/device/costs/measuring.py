"""How long layers of one kind take at some widths: their nodes in a probe, timed by ONNX Runtime's profiler."""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

from onnxdistill.device.costs.layers import LayerKind
from onnxdistill.device.costs.probes import WidthProbe, Widths, width_probe
from onnxdistill.device.profiling.profiler import Call, Clock, record_calls
from onnxdistill.device.profiling.profilercost import Cost, measure_cost
from onnxdistill.device.profiling.trace import counted_mean
from onnxdistill.device.runtime import short_name
from onnxdistill.device.session import SessionSettings, open_session
from onnxdistill.errors import ProviderError

# Layers share a probe while their weights stay so few that all of them are in the caches closest to the processor: what
# a network does to the caches is another matter, and is seen in the trace of the network.
_MOST_WEIGHTS, _MOST_LAYERS = 1 << 17, 64

# As many runs as fit into the time, within bounds.
_SECONDS, _FEWEST, _MOST, _WARMUP = 0.1, 6, 24, 3
_US_PER_MS, _NS_PER_S = 1e3, 1e9
_LAYER = re.compile(r"layer(\d+)\.")


class LayerClock:
    """Times layers in small models, without what the profiler adds.

    Args:
        settings: How they are run.
        activations: Type of what goes into layers of 8-bit integers.
        clock: Returns nanoseconds.
    """

    def __init__(self, settings: SessionSettings, activations: str, clock: Clock = time.perf_counter_ns) -> None:
        self._settings = settings
        self._activations = activations
        self._clock = clock
        self._cost: Cost = measure_cost(settings.threads, clock)

    def times_ms(self, kind: LayerKind, widths: Sequence[Widths]) -> dict[Widths, float]:
        """The time of a layer at each of the given widths.

        Raises:
            ModelFileError: If ONNX Runtime does not take such a layer.
            ProviderError: If the provider joins layers, so that the time of one cannot be seen.
        """
        measured: dict[Widths, float] = {}
        for part in _parts(kind, widths):
            probe = width_probe(kind, part, self._activations)
            # What is less than the price of calling a node is rounding of the profiler's clock.
            floor_ms = self._cost.call_us / _US_PER_MS
            measured |= {
                pair: max(time_ms, floor_ms) for pair, time_ms in zip(part, self._times_ms(probe), strict=True)
            }
        return measured

    def repeated_ms(self, kind: LayerKind, widths: Widths, count: int, pause_ms: float = 0.0) -> float:
        """The mean time of a layer in a model of so many of them, each with weights of its own; median of the runs.

        Args:
            kind: Of the layers.
            widths: Of each of them.
            count: How many there are.
            pause_ms: Between two runs, in which nothing of theirs is used.

        Raises:
            ModelFileError: If ONNX Runtime does not take such a layer.
        """
        probe = width_probe(kind, [widths] * count, self._activations)
        runs = record_calls(
            probe.content, self._settings, probe.feeds, runs=_MOST, warmup=_WARMUP, pause_ms=pause_ms, clock=self._clock
        )
        layers_us = [
            sum(call.own_us - self._cost.inside_us(call) for call in calls if _LAYER.search(call.key[-1][1]))
            for calls in runs
        ]
        return float(np.median(layers_us)) / count / _US_PER_MS

    def _times_ms(self, probe: WidthProbe) -> list[float]:
        """The times of the layers of a probe."""
        session = open_session(probe.content, self._settings)
        session.run(probe.feeds)
        begin = self._clock()
        session.run(probe.feeds)
        one_s = max(1e-9, (self._clock() - begin) / _NS_PER_S)
        count = min(_MOST, max(_FEWEST, int(_SECONDS / one_s)))
        runs = record_calls(probe.content, self._settings, probe.feeds, runs=count, warmup=_WARMUP)
        times_us: defaultdict[int, list[float]] = defaultdict(lambda: [0.0] * len(runs))
        added_us: defaultdict[int, float] = defaultdict(float)
        for index, calls in enumerate(runs):
            for call in calls:
                if place := _LAYER.search(call.key[-1][1]):
                    times_us[int(place[1])][index] += call.own_us
                    added_us[int(place[1])] += self._cost.inside_us(call) / len(runs)
        if len(times_us) < len(probe.widths):
            name = short_name(session.provider)
            raise ProviderError(
                f"The execution provider {name!r} runs layers as one, so that their times cannot be told apart.",
                "Profile, or plan, with the provider cpu; bench times whole models on any.",
            )
        quiet = np.argsort([_length_us(calls) for calls in runs], kind="stable")[: (len(runs) + 1) // 2]
        return [
            (counted_mean(np.array(times_us[place]), quiet) - added_us[place]) / _US_PER_MS
            for place in range(len(probe.widths))
        ]


def _length_us(calls: Sequence[Call]) -> int:
    return calls[-1].end_us - calls[0].begin_us


def _parts(kind: LayerKind, widths: Sequence[Widths]) -> Iterator[list[Widths]]:
    part: list[Widths] = []
    weights = 0
    for pair in widths:
        size = pair[0] * pair[1] * kind.kernel[0] * kind.kernel[1] // max(1, kind.groups)
        if part and (weights + size > _MOST_WEIGHTS or len(part) == _MOST_LAYERS):
            yield part
            part, weights = [], 0
        part.append(pair)
        weights += size
    if part:
        yield part
