"""What ONNX Runtime's profiler adds to the times that it reports, measured on nodes that do next to nothing.

It takes some microseconds a node, most of them inside the time of the node, which is as much as a small node takes.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from onnxdistill.device.onnxbytes import Node, Value, model_bytes
from onnxdistill.device.profiling.profiler import Call, Clock, quiet_mean, record
from onnxdistill.device.session import SessionSettings, open_session

_NS_PER_US, _US_PER_MS = 1e3, 1e3

# Chains of so many nodes, with one input each and with several.
_CHAIN, _WIDTHS, _SHAPE = 32, (1, 9), (1, 1, 1, 1)

_RUNS, _WARMUP = 25, 5


@dataclass(frozen=True)
class Cost:
    """What the profiler adds to a run, and what a node takes anyway; in microseconds.

    Attributes:
        node_us: Added to the recorded time of every node.
        tensor_us: Added to it for every input and output of the node.
        between_us: Added after every node but the last.
        run_us: Added once a run.
        call_us: What a node that has nothing to do takes without the profiler, with what comes before and after it.
    """

    node_us: float
    tensor_us: float
    between_us: float
    run_us: float
    call_us: float

    def inside_us(self, call: Call) -> float:
        """Added to the own time of one call, which for an If or Loop includes what is between the nodes inside."""
        tensors = len(call.operands.inputs) + len(call.operands.outputs)
        return self.node_us + self.tensor_us * tensors + self.between_us * call.inner

    def outside_us(self, nodes: int) -> float:
        """Added to a run outside its nodes, of which the main graph has so many."""
        return self.run_us + self.between_us * max(0, nodes - 1)


def measure_cost(threads: int, clock: Clock = time.perf_counter_ns) -> Cost:
    """Measures the profiler in a tenth of a second or so.

    Without the profiler, a chain that is longer by n nodes takes n times `call_us` longer. What the profile says of
    such a node beyond that is the profiler, which describes every input and output of a node within its time.

    Args:
        threads: Threads inside one operator.
        clock: Returns nanoseconds.
    """
    settings = SessionSettings(threads=threads)
    feeds = {"x": np.ones(_SHAPE, np.float32)}
    short_us = _time_us(open_session(_chain(1, 1), settings).runner(feeds), clock)
    inside_us, call_us, outside_us, between_us = [], [], [], []
    for width in _WIDTHS:
        chain = _chain(_CHAIN, width)
        plain = open_session(chain, settings)
        recording = record(chain, settings, plain, feeds, runs=_RUNS, warmup=_WARMUP, clock=clock)
        quiet = [recording.calls[run] for run in recording.quiet_runs()]
        own_us = [call.own_us for calls in quiet for call in calls]
        gaps_us = [after.begin_us - before.end_us for calls in quiet for before, after in itertools.pairwise(calls)]
        one_us = max(0.0, quiet_mean(recording.wall_ms) * _US_PER_MS - short_us) / (_CHAIN - 1)
        call_us.append(one_us)
        inside_us.append(max(0.0, float(np.mean(own_us)) - one_us))
        between_us.append(float(np.mean(gaps_us)))
        outside_us.append(quiet_mean(recording.outside_ms()) * _US_PER_MS)
    narrow, wide = _WIDTHS
    tensor_us = max(0.0, inside_us[1] - inside_us[0]) / (wide - narrow)
    return Cost(
        # A node of the narrow chain has one input and one output.
        node_us=max(0.0, inside_us[0] - (narrow + 1) * tensor_us),
        tensor_us=tensor_us,
        between_us=between_us[0],
        run_us=max(0.0, outside_us[0] - between_us[0] * (_CHAIN - 1) - (short_us - call_us[0])),
        call_us=call_us[0],
    )


def _time_us(runner: Callable[[], object], clock: Clock) -> float:
    times_ns = []
    for _ in range(_WARMUP + _RUNS):
        begin = clock()
        runner()
        times_ns.append(clock() - begin)
    return quiet_mean(times_ns[_WARMUP:]) / _NS_PER_US


def _chain(length: int, width: int) -> bytes:
    """`length` nodes one after the other, each the maximum of `width` times the same number."""
    names = ["x", *(f"v{index}" for index in range(length - 1)), "y"]
    nodes = [Node("Max", (before,) * width, (after,)) for before, after in itertools.pairwise(names)]
    return model_bytes(nodes, [Value("x", "float32", _SHAPE)], [Value("y", "float32", _SHAPE)], {})
