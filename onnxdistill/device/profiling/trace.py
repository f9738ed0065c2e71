"""Where the time of a run goes: a model's profile, node by node.

The profiler of ONNX Runtime takes some microseconds a node, most of them inside the time that it reports for the node,
which is as much as a small node takes. What it adds is measured on nodes that do next to nothing, and is taken off.
"""

from __future__ import annotations

import dataclasses
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxdistill.device import runtime
from onnxdistill.device.measuring.timing import settling_calls
from onnxdistill.device.profiling.profiler import (
    Clock,
    Key,
    Operands,
    Recording,
    Tensor,
    quiet_mean,
    read_operands,
    record,
)
from onnxdistill.device.profiling.profilercost import Cost, measure_cost
from onnxdistill.device.schema import reading
from onnxdistill.device.session import Array, SessionSettings, open_session
from onnxdistill.errors import UsageError

SCHEMA_VERSION = 1

_NS_PER_MS, _US_PER_MS, _MS_PER_S = 1e6, 1e3, 1e3

# Bounds of the number of runs where none is asked for, with the profiler and without it. Each comes after some that are
# not timed, whose calls of nodes the profiler writes down as well.
_SECONDS, _RUNS_AT_LEAST, _RUNS_AT_MOST, _CALLS_AT_MOST = 3.0, 10, 100, 100_000

# Below this, a microsecond more or less counts, and a preemption is rare.
_SHORT_US = 20.0

# Beyond this share of what the profile says, times of small nodes are mostly the correction.
_COSTLY = 0.25

# What a run takes and what its nodes come to may differ by this share and by so much before it is a reason for doubt.
_DISTURBED, _DISTURBED_MS = 0.1, 0.01


@dataclass(frozen=True)
class NodeTrace:
    """A node of the optimized graph, as it ran.

    Attributes:
        name: As the optimized graph calls it; operator and index where it has no name.
        op_type: Operator, also of a fused node.
        provider: Full name of the execution provider that ran it.
        depth: 0 in the main graph; one more for each If, Loop or Scan around it.
        inputs: Of the first call, without optional ones that are left out.
        outputs: Of the first call.
        activation_bytes: Size of the inputs that another node or the user provides.
        parameter_bytes: Size of the inputs that are constants.
        output_bytes: Size of the outputs.
        calls_per_run: How often a run executes it, on average.
        time_ms: What it takes in a run without the profiler, all calls together and without the nodes inside it:
            `counted_mean` over the runs, less the cost of the profiler.
        mean_ms: The same as it was recorded, mean of all runs.
        median_ms: As it was recorded, median, which is a whole number of microseconds.
    """

    name: str
    op_type: str
    provider: str
    depth: int
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    activation_bytes: int
    parameter_bytes: int
    output_bytes: int
    calls_per_run: float
    time_ms: float
    mean_ms: float
    median_ms: float


@dataclass(frozen=True)
class Trace:
    """A model's profile.

    Attributes:
        model: Its path, for messages.
        provider: Full name of the execution provider that was asked for.
        threads: Threads inside one operator.
        runs: Timed runs, with the profiler and without it.
        nodes: In the order of execution.
        wall_ms: One run without the profiler, median.
        profiled_ms: One run with the profiler, median.
        profiler_ms: What the profiler adds to the recorded times of all nodes of a run, taken off `time_ms`.
        overhead_ms: What a run takes outside its nodes, without the profiler: the call from Python, inputs and outputs.
        call_ms: What a node takes that has nothing to do: the price of calling any node.
        doubts: Reasons not to trust the times of the nodes; each is a sentence.
    """

    model: str
    provider: str
    threads: int
    runs: int
    nodes: tuple[NodeTrace, ...]
    wall_ms: float
    profiled_ms: float
    profiler_ms: float
    overhead_ms: float
    call_ms: float
    doubts: tuple[str, ...]

    @property
    def nodes_ms(self) -> float:
        """What all nodes of a run take together."""
        return sum(node.time_ms for node in self.nodes)

    @property
    def run_ms(self) -> float:
        """What a run comes to, and what shares refer to: its nodes and the overhead.

        On a machine that does nothing else it is `wall_ms`. Elsewhere it is less: what disturbs a run hits other nodes
        in every run, and their times hardly show it.
        """
        return self.nodes_ms + self.overhead_ms

    def share(self, time_ms: float) -> float:
        """Which part of the run that is, 0 to 1."""
        return time_ms / self.run_ms if self.run_ms else 0.0

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dump`."""
        return {
            "schema_version": SCHEMA_VERSION,
            **self.__dict__,
            "doubts": list(self.doubts),
            "nodes": [_node_to_json(node) for node in self.nodes],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Trace:
        """The inverse of `to_json`.

        Raises:
            DataError: If the data is of another schema version or is not a trace.
        """
        with reading("trace", data, SCHEMA_VERSION):
            values = {key: value for key, value in data.items() if key != "schema_version"}
            nodes = tuple(_node_from_json(node) for node in data["nodes"])
            return cls(**{**values, "nodes": nodes, "doubts": tuple(data["doubts"])})


def trace(
    model: Path | bytes,
    feeds: Mapping[str, Array],
    settings: SessionSettings | None = None,
    *,
    runs: int | None = None,
    warmup: int = 5,
    clock: Clock = time.perf_counter_ns,
) -> Trace:
    """Profiles a model.

    Args:
        model: An .onnx file, or its content.
        feeds: Its inputs by name.
        settings: How it is run; one thread on the CPU if left out.
        runs: How many runs are timed, with the profiler and without it; 10 to 100 of them if left out, as many as fit
            into three seconds.
        warmup: How many runs of each come first.
        clock: Returns nanoseconds.

    Raises:
        UsageError: If the inputs do not fit, or if there are more runs than the profiler can record.
        ModelFileError: If ONNX Runtime cannot load or run the model.
        ProviderError: If the provider is unknown or not usable here.
        MissingPackageError: If ONNX Runtime is not installed.
    """
    if runs is not None and runs < 1:
        raise UsageError(f"At least 1 run is needed, and {runs} were asked for.")
    if warmup < 0:
        raise UsageError(f"There is no warm-up of {warmup} runs.")
    settings = settings or SessionSettings()
    plain = open_session(model, settings)
    plain.run(feeds)
    operands = read_operands(model, settings, plain, feeds)
    one_ms = _one_ms(plain.runner(feeds), clock)
    settling = settling_calls(one_ms)
    if runs is None:
        runs = _fitting_runs(one_ms, settling, len(operands))
    recording = record(model, settings, plain, feeds, runs=runs, warmup=warmup, clock=clock, settling=settling)
    cost = measure_cost(settings.threads, clock)
    return summarize(recording, cost, operands, plain.label, plain.provider, settings)


def _one_ms(runner: Callable[[], object], clock: Clock) -> float:
    begin = clock()
    runner()
    return (clock() - begin) / _NS_PER_MS


def _fitting_runs(one_ms: float, settling: int, nodes: int) -> int:
    turn = settling + 1
    fitting = _RUNS_AT_MOST if one_ms == 0 else int(_SECONDS * _MS_PER_S / (2 * turn * one_ms))
    return max(_RUNS_AT_LEAST, min(_RUNS_AT_MOST, fitting, _CALLS_AT_MOST // (turn * max(1, nodes))))


def summarize(
    recording: Recording,
    cost: Cost,
    operands: Mapping[Key, Operands],
    model: str,
    provider: str,
    settings: SessionSettings,
) -> Trace:
    """Puts the times of all runs together.

    Args:
        recording: The runs.
        cost: What the profiler has added to them.
        operands: What the nodes work on.
        model: Path of the model.
        provider: Full name of the execution provider.
        settings: How it was run.
    """
    runs = len(recording.calls)
    nodes = tuple(_nodes(recording, cost, operands))
    profiler_ms = sum(cost.inside_us(call) for calls in recording.calls for call in calls) / runs / _US_PER_MS
    result = Trace(
        model=model,
        provider=provider,
        threads=settings.threads,
        runs=runs,
        nodes=nodes,
        wall_ms=float(np.median(recording.wall_ms)),
        profiled_ms=float(np.median(recording.profiled_ms)),
        profiler_ms=profiler_ms,
        overhead_ms=_overhead_ms(recording, cost, sum(node.time_ms for node in nodes)),
        call_ms=cost.call_us / _US_PER_MS,
        doubts=(),
    )
    return dataclasses.replace(result, doubts=tuple(_doubts(result)))


def _nodes(recording: Recording, cost: Cost, operands: Mapping[Key, Operands]) -> Iterator[NodeTrace]:
    """Every node, in the order in which they first ran."""
    runs = len(recording.calls)
    recorded: dict[Key, npt.NDArray[np.float64]] = {}
    added_ms: defaultdict[Key, float] = defaultdict(float)
    count: Counter[Key] = Counter()
    providers: dict[Key, str] = {}
    for run, calls in enumerate(recording.calls):
        for call in calls:
            recorded.setdefault(call.key, np.zeros(runs))[run] += call.own_us
            added_ms[call.key] += cost.inside_us(call) / runs / _US_PER_MS
            count[call.key] += 1
            providers[call.key] = call.provider
    quiet = recording.quiet_runs()
    for key, times_us in recorded.items():
        _, name, op_type = key[-1]
        yield NodeTrace(
            name=name,
            op_type=op_type,
            provider=providers[key],
            depth=len(key) - 1,
            **operands.get(key, Operands()).__dict__,
            calls_per_run=count[key] / runs,
            time_ms=max(0.0, counted_mean(times_us, quiet) / _US_PER_MS - added_ms[key]),
            mean_ms=float(times_us.mean()) / _US_PER_MS,
            median_ms=float(np.median(times_us)) / _US_PER_MS,
        )


def counted_mean(values_us: npt.NDArray[np.float64], quiet: npt.NDArray[np.intp]) -> float:
    """Mean of times that were counted in whole microseconds, one a run.

    That of the lower half; but of short times that of the quiet runs without the outermost of them, since the lower
    half of these is mostly the same microsecond, too low by up to half of one.

    Args:
        values_us: One for each run.
        quiet: Indices of the runs that took less than others as a whole.
    """
    if np.median(values_us) > _SHORT_US:
        return quiet_mean(values_us)
    ordered = np.sort(values_us[quiet])
    cut = len(ordered) // 10
    return float(ordered[cut : len(ordered) - cut].mean())


def _overhead_ms(recording: Recording, cost: Cost, nodes_ms: float) -> float:
    """What a run takes outside its nodes, of two estimates that both err to the high side.

    One is the part of a run without the profiler that its nodes do not explain, which has in it whatever disturbed the
    machine. The other is what was outside the nodes with the profiler, which has in it that the profiler needs memory.
    """
    added_us = [cost.outside_us(sum(len(call.key) == 1 for call in calls)) for calls in recording.calls]
    outside_ms = quiet_mean(recording.outside_ms() - np.array(added_us) / _US_PER_MS)
    return max(0.0, min(outside_ms, quiet_mean(recording.wall_ms) - nodes_ms))


def _doubts(trace: Trace) -> Iterator[str]:
    if trace.provider != "CPUExecutionProvider":
        yield (
            f"On {runtime.short_name(trace.provider)} the time of a node may be that of handing it over to the device; "
            f"what the device does then is not in it."
        )
    recorded_ms = trace.nodes_ms + trace.profiler_ms
    if recorded_ms and trace.profiler_ms > _COSTLY * recorded_ms:
        yield (
            f"The nodes are so small that {trace.profiler_ms / recorded_ms:.0%} of their recorded time is the "
            f"profiler, which was taken off: their times are good to half a microsecond, not better."
        )
    if abs(trace.wall_ms - trace.run_ms) > max(_DISTURBED * trace.wall_ms, _DISTURBED_MS):
        yield (
            f"Nodes and overhead come to {trace.run_ms:.3g} ms and a run without the profiler takes "
            f"{trace.wall_ms:.3g} ms: something else ran on this machine meanwhile."
        )


def _node_to_json(node: NodeTrace) -> dict[str, Any]:
    return {
        **node.__dict__,
        "inputs": [_tensor_to_json(tensor) for tensor in node.inputs],
        "outputs": [_tensor_to_json(tensor) for tensor in node.outputs],
    }


def _tensor_to_json(tensor: Tensor) -> dict[str, Any]:
    return {"dtype": tensor.dtype, "shape": list(tensor.shape)}


def _node_from_json(data: Mapping[str, Any]) -> NodeTrace:
    tensors = {
        key: tuple(Tensor(tensor["dtype"], tuple(tensor["shape"])) for tensor in data[key])
        for key in ("inputs", "outputs")
    }
    return NodeTrace(**{**data, **tensors})
