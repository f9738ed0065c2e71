"""ONNX Runtime's own profiler: runs a model with it switched on, and reads what it wrote."""

from __future__ import annotations

import bisect
import json
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxdistill.device.session import Array, Session, SessionSettings, open_session
from onnxdistill.errors import ModelFileError, UsageError

Clock = Callable[[], int]

_NS_PER_MS, _US_PER_MS = 1e6, 1e3

# Operators that run graphs of their own, whose nodes the profile reports as well.
CONTROL_FLOW = {"If", "Loop", "Scan", "BeamSearch", "GreedySearch", "Sampling"}

_DTYPES = {"float": "float32", "double": "float64"}

Key = tuple[tuple[int, str, str], ...]
"""Index, name and operator of a node, behind those of the nodes whose graphs it is in."""


@dataclass(frozen=True)
class Tensor:
    """What goes into a node or comes out of it.

    Attributes:
        dtype: `float32`, `uint8`, …; what numpy has no name for is called as in ONNX Runtime.
        shape: Sizes, in the memory layout that the node works in.
    """

    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class Operands:
    """What a node works on.

    Attributes:
        inputs: Without optional ones that are left out.
        outputs: All of them.
        activation_bytes: Size of the inputs that another node or the user provides.
        parameter_bytes: Size of the inputs that are constants.
        output_bytes: Size of the outputs.
    """

    inputs: tuple[Tensor, ...] = ()
    outputs: tuple[Tensor, ...] = ()
    activation_bytes: int = 0
    parameter_bytes: int = 0
    output_bytes: int = 0


@dataclass
class Call:
    """One execution of a node.

    Attributes:
        key: Tells the node from all others.
        provider: Full name of the execution provider.
        begin_us: When it began, whole microseconds from the start of the profile.
        end_us: When it ended.
        operands: What it worked on, as the profile has it: without weights that the kernel has packed for itself.
        own_us: How long it took, without the calls inside it.
        inner: How many calls are directly inside it.
    """

    key: Key
    provider: str
    begin_us: int
    end_us: int
    operands: Operands
    own_us: int
    inner: int = 0

    @property
    def op_type(self) -> str:
        """The operator."""
        return self.key[-1][2]


@dataclass(frozen=True)
class Recording:
    """Runs of a model that were timed in turns, without the profiler and with it.

    Attributes:
        wall_ms: Every run without the profiler, as long as the caller waits for it; of shape `(runs,)`.
        profiled_ms: Every run with it.
        calls: Of every run with it, in the order of their beginnings.
    """

    wall_ms: npt.NDArray[np.float64]
    profiled_ms: npt.NDArray[np.float64]
    calls: list[list[Call]]

    def quiet_runs(self) -> npt.NDArray[np.intp]:
        """Indices of the quicker half of the runs with the profiler."""
        order = np.argsort(self.profiled_ms, kind="stable")
        return order[: (len(order) + 1) // 2]

    def outside_ms(self) -> npt.NDArray[np.float64]:
        """What every run with the profiler took outside the nodes of the main graph; of shape `(runs,)`."""
        inside_us = [sum(call.end_us - call.begin_us for call in calls if len(call.key) == 1) for calls in self.calls]
        return self.profiled_ms - np.array(inside_us) / _US_PER_MS


def quiet_mean(values: npt.ArrayLike) -> float:
    """Mean of the lower half of the values, since other load only ever adds."""
    ordered = np.sort(np.asarray(values, np.float64))
    return float(ordered[: (len(ordered) + 1) // 2].mean())


def record(
    model: Path | bytes,
    settings: SessionSettings,
    plain: Session,
    feeds: Mapping[str, Array],
    *,
    runs: int,
    warmup: int,
    clock: Clock,
    settling: int = 1,
) -> Recording:
    """Times a model in turns without and with the profiler.

    Args:
        model: An .onnx file, or its content.
        settings: How it is opened.
        plain: The model, opened without the profiler.
        feeds: Its inputs by name, which it has run with.
        runs: How many runs of each are timed.
        warmup: How many runs of each come first.
        clock: Returns nanoseconds.
        settling: How many runs come before each timed one, since the other session has emptied the caches.

    Raises:
        UsageError: If there are more runs than the profiler can record.
        ModelFileError: If the profile cannot be read.
    """
    wall_ms, profiled_ms = np.empty(runs), np.empty(runs)
    with tempfile.TemporaryDirectory(prefix="onnxdistill-") as folder:
        profiled = _open(model, settings, Path(folder), packed=True)
        try:
            without, with_profiler = plain.runner(feeds), profiled.runner(feeds)
            for _ in range(warmup):
                without()
                with_profiler()
            for run in range(runs):
                wall_ms[run] = _settled_ms(without, settling, clock)
                profiled_ms[run] = _settled_ms(with_profiler, settling, clock)
        finally:
            file = profiled.end_profiling()
        calls = read_profile(file, plain.label)
    # A runner with fixed places for its outputs has run once more, to find their shapes.
    skipped = warmup + (1 if settings.io_binding else 0)
    turn = settling + 1
    if len(calls) != skipped + turn * runs:
        wanted = skipped + turn * runs
        raise UsageError(
            f"{plain.label}: the profiler of ONNX Runtime has no room for {wanted} runs of so many nodes.",
            f"Ask for fewer runs; {max(1, (len(calls) - skipped) // turn)} fit.",
        )
    return Recording(wall_ms, profiled_ms, calls[skipped + settling :: turn])


def record_calls(
    model: Path | bytes,
    settings: SessionSettings,
    feeds: Mapping[str, Array],
    *,
    runs: int,
    warmup: int,
    pause_ms: float = 0.0,
    clock: Clock = time.perf_counter_ns,
) -> list[list[Call]]:
    """The calls of every run with the profiler, where nobody asks what a run takes without it.

    Args:
        model: An .onnx file, or its content.
        settings: How it is opened.
        feeds: Its inputs by name.
        runs: How many runs are recorded.
        warmup: How many runs come first.
        pause_ms: Before each run, in which the processor is kept awake.
        clock: Returns nanoseconds.

    Raises:
        UsageError: If the inputs do not fit, or if there are more runs than the profiler can record.
        ModelFileError: If ONNX Runtime cannot load or run the model, or if the profile cannot be read.
    """
    with tempfile.TemporaryDirectory(prefix="onnxdistill-") as folder:
        profiled = _open(model, settings, Path(folder), packed=True)
        try:
            profiled.check_feeds(feeds)
            runner = profiled.runner(feeds)
            for _ in range(warmup + runs):
                end = clock() + pause_ms * _NS_PER_MS
                while pause_ms and clock() < end:
                    pass
                runner()
        finally:
            file = profiled.end_profiling()
        calls = read_profile(file, profiled.label)
    if len(calls) < warmup + runs:
        raise UsageError(f"{profiled.label}: the profiler of ONNX Runtime has no room for {warmup + runs} runs.")
    return calls[-runs:]


def read_operands(
    model: Path | bytes, settings: SessionSettings, plain: Session, feeds: Mapping[str, Array]
) -> dict[Key, Operands]:
    """What every node works on, with all weights: from one run of the same graph in which no kernel packs any.

    Args:
        model: An .onnx file, or its content.
        settings: How it is opened.
        plain: The model, opened without the profiler.
        feeds: Its inputs by name, which it has run with.

    Raises:
        ModelFileError: If the profile cannot be read.
    """
    with tempfile.TemporaryDirectory(prefix="onnxdistill-") as folder:
        profiled = _open(model, settings, Path(folder), packed=False)
        try:
            profiled.run(feeds)
        finally:
            file = profiled.end_profiling()
        runs = read_profile(file, plain.label)
    operands: dict[Key, Operands] = {}
    for call in (call for run in runs for call in run):
        operands.setdefault(call.key, call.operands)
    return operands


def _settled_ms(runner: Callable[[], object], settling: int, clock: Clock) -> float:
    for _ in range(settling):
        runner()
    begin = clock()
    runner()
    return (clock() - begin) / _NS_PER_MS


def _open(model: Path | bytes, settings: SessionSettings, folder: Path, *, packed: bool) -> Session:
    """The same model again, with the profiler on."""
    config = {} if packed else {"session.disable_prepacking": "1"}
    return open_session(model, settings, profile=folder / "profile", config=config)


def read_profile(file: Path, label: str) -> list[list[Call]]:
    """The calls of every run that was recorded to its end, each told what is around it and what is inside it.

    Args:
        file: What the profiler wrote: JSON with one event a line, which is read without holding all of it in memory.
        label: The path of the model, for messages.

    Raises:
        ModelFileError: If it cannot be read.
    """
    calls: list[Call] = []
    begins_us: list[int] = []
    known: dict[Operands, Operands] = {}
    with file.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            text = line.strip().rstrip(",")
            if not text.startswith("{"):
                continue
            try:
                event = json.loads(text)
            except json.JSONDecodeError as error:
                raise ModelFileError(
                    f"{label}: the profile of ONNX Runtime cannot be read ({error}).",
                    "Rename nodes that have quotes or backslashes in their names, or install a newer ONNX Runtime.",
                ) from error
            if event["cat"] == "Node" and event["name"].endswith("_kernel_time"):
                call = _call(event)
                call.operands = known.setdefault(call.operands, call.operands)
                calls.append(call)
            elif event["cat"] == "Session" and event["name"] == "model_run":
                begins_us.append(event["ts"])
    # Of those in the same microsecond, what can have others inside began first, and the longest is outermost.
    calls.sort(key=lambda call: (call.begin_us, call.op_type not in CONTROL_FLOW, -call.end_us))
    begins_us.sort()
    _nest(calls)
    runs: list[list[Call]] = [[] for _ in begins_us]
    for call in calls:
        run = bisect.bisect_right(begins_us, call.begin_us) - 1
        if run >= 0:
            runs[run].append(call)
    return runs


def _call(event: Mapping[str, Any]) -> Call:
    args = event["args"]
    return Call(
        key=((int(args["node_index"]), event["name"].removesuffix("_kernel_time"), args["op_name"]),),
        provider=args["provider"],
        begin_us=event["ts"],
        end_us=event["ts"] + event["dur"],
        operands=Operands(
            inputs=_tensors(args["input_type_shape"]),
            outputs=_tensors(args["output_type_shape"]),
            activation_bytes=int(args["activation_size"]),
            parameter_bytes=int(args["parameter_size"]),
            output_bytes=int(args["output_size"]),
        ),
        own_us=event["dur"],
    )


def _tensors(described: Iterable[Mapping[str, Sequence[int]]]) -> tuple[Tensor, ...]:
    return tuple(
        Tensor(_DTYPES.get(dtype, dtype), tuple(shape)) for tensor in described for dtype, shape in tensor.items()
    )


def _nest(calls: Iterable[Call]) -> None:
    """Tells calls, in the order of their beginnings, which of them are inside others."""
    around: list[Call] = []
    for call in calls:
        while around and call.begin_us >= around[-1].end_us:
            around.pop()
        if around:
            call.key = (*around[-1].key, *call.key)
            around[-1].own_us -= call.end_us - call.begin_us
            around[-1].inner += 1
        if call.op_type in CONTROL_FLOW:
            around.append(call)
