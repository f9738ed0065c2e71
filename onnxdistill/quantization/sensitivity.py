"""Which layers of a network int8 hurts most, for the time that it saves on them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxdistill.device.profiling.profiler import quiet_mean, record
from onnxdistill.device.session import Session, SessionSettings, open_session
from onnxdistill.errors import ModelFileError, UsageError
from onnxdistill.quantization.calibration import Feeds
from onnxdistill.quantization.workshop import Form, Workshop

# What moves values and does not change them; and what is part of the node that it follows.
_MOVES = frozenset({"Flatten", "Gather", "Pad", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"})
_ACTIVATIONS = frozenset({"Relu", "Clip"})
_RUNS, _WARMUP, _US_PER_MS = 20, 3, 1e3
# Layers of microseconds are not worth more for each of them.
_LEAST_SHARE, _LEAST_MS = 0.002, 1e-6
_SAMPLES = 64


@dataclass(frozen=True)
class OperatorLoss:
    """What int8 costs and saves in one layer, or in one operator between layers.

    Attributes:
        nodes: Names of the layer and of its activation function.
        error: Mean squared error of the network's outputs if nothing but this is in int8, as a share of their mean
            square.
        latency_ms: How long it takes in float.
    """

    nodes: frozenset[str]
    error: float
    latency_ms: float


def rank_operators(workshop: Workshop, form: Form, on_progress: Callable[[int, int], None]) -> list[OperatorLoss]:
    """Layers and other operators in the order in which they should go back to float.

    Each in turn is the only one in int8, and the outputs of the network are compared with those of the float network on
    calibration samples: those come first whose error costs most for a millisecond that int8 can save at most. One alone
    in float would not do: the tensor between two layers is rounded as long as either is in int8.

    Args:
        workshop: Makes forms of the float model.
        form: The form that loses too much.
        on_progress: Gets layers done and in all.
    """
    model = workshop.float_model(form.equalization)
    session = open_session(model.SerializeToString(), SessionSettings())
    pairs = [(feeds, session.run(feeds)) for feeds in _first(workshop.calibration(), _SAMPLES)]
    times_ms = _node_times_ms(model, _least(model, pairs[0][0]))
    whole_ms = sum(times_ms.values())
    every = frozenset(node.name for node in model.graph.node if node.op_type in form.scheme.operators)
    layers = [nodes for nodes in _layers(model, form.scheme.operators) if not nodes & form.scheme.float_nodes]
    found = []
    for done, nodes in enumerate(layers):
        on_progress(done, len(layers))
        alone = replace(form, scheme=replace(form.scheme, float_nodes=every - nodes))
        error = _error(workshop, alone, pairs)
        found.append(OperatorLoss(nodes, error, sum(times_ms.get(name, 0.0) for name in nodes)))
    return sorted(found, key=lambda layer: -layer.error / max(layer.latency_ms, _LEAST_SHARE * whole_ms, _LEAST_MS))


def _layers(model: onnx.ModelProto, operators: Collection[str]) -> Iterator[frozenset[str]]:
    """Each node that computes something, with the activation function that it alone feeds and that alone reads it."""
    graph = model.graph
    reads = Counter(name for node in graph.node for name in node.input)
    reads.update(port.name for port in graph.output)
    readers = {name: node for node in graph.node for name in node.input}
    taken: set[str] = set()
    for node in graph.node:
        if node.op_type not in operators or node.op_type in _MOVES or node.name in taken:
            continue
        names = {node.name}
        reader = readers.get(node.output[0])
        if reader is not None and reader.op_type in _ACTIVATIONS and reads[node.output[0]] == 1:
            names.add(reader.name)
        taken |= names
        yield frozenset(names)


def _error(workshop: Workshop, form: Form, pairs: Sequence[tuple[Feeds, Feeds]]) -> float:
    """Mean squared error of the outputs, each as a share of its own mean square, so that they count alike."""
    session = open_session(workshop.make(form).model.SerializeToString(), SessionSettings())
    errors = []
    for feeds, expected in pairs:
        given = session.run(feeds)
        errors.append(np.mean([_relative(expected[name], given[name]) for name in expected]))
    return float(np.mean(errors))


def _relative(expected: NDArray[np.generic], given: NDArray[np.generic]) -> float:
    if expected.dtype.kind != "f" or expected.shape != given.shape or not expected.size:
        return 0.0
    # Where the float network has no number itself, nothing can be wrong; no number where it has one is all wrong.
    finite = np.isfinite(expected)
    wide, other = expected[finite].astype(np.float64), given[finite].astype(np.float64)
    scale = max(float(np.mean(wide**2)), np.finfo(np.float32).tiny) if wide.size else 1.0
    squares = np.where(np.isfinite(other), (np.nan_to_num(other) - wide) ** 2, wide**2 + scale)
    return float(np.mean(squares) / scale) if wide.size else 0.0


def _first(batches: Iterable[Feeds], samples: int) -> Iterator[Feeds]:
    """The first batches, with so many samples or some more."""
    count = 0
    for feeds in batches:
        yield feeds
        count += len(next(iter(feeds.values())))
        if count >= samples:
            return


def _least(model: onnx.ModelProto, feeds: Feeds) -> Feeds:
    """One sample of a batch; or all, if the model takes so many at once and no other number."""
    ports = [port.type.tensor_type.shape for port in model.graph.input if port.name in feeds]
    fixed = any(shape.dim and shape.dim[0].HasField("dim_value") for shape in ports)
    return feeds if fixed else {name: values[:1] for name, values in feeds.items()}


def _node_times_ms(model: onnx.ModelProto, feeds: Feeds) -> Mapping[str, float]:
    """How long every node takes, by name, for one sample; nothing if that cannot be known.

    At a level of optimization that keeps the names.
    """
    settings = SessionSettings(optimization_level="basic")
    content = model.SerializeToString()
    plain: Session = open_session(content, settings)
    try:
        recording = record(content, settings, plain, feeds, runs=_RUNS, warmup=_WARMUP, clock=time.perf_counter_ns)
    except (UsageError, ModelFileError):  # a model that the profiler has no room for, or whose names it garbles
        return {}
    times: dict[str, list[float]] = {}
    for calls in recording.calls:
        for call in calls:
            times.setdefault(call.key[-1][1], []).append(call.own_us / _US_PER_MS)
    return {name: quiet_mean(values) for name, values in times.items()}
