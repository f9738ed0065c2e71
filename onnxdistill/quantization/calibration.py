"""Calibration: histograms of the activations that get quantized, from one pass over the samples.

The samples may come from an iterator that is read once. Memory does not grow with their number: a batch is run in parts
whose activations fit a budget, every part goes into the histograms, and is forgotten.
"""

from __future__ import annotations

import functools
import math
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

from onnxdistill.device.host import usable_cpus
from onnxdistill.device.session import Session, SessionSettings, open_session
from onnxdistill.errors import DataError
from onnxdistill.quantization.histogram import Histogram

QUANTIZABLE = frozenset(QLinearOpsRegistry) | frozenset(QDQRegistry)
"""Operator types that ONNX Runtime quantizes if it isn't told which."""

BUDGET_BYTES = 96 * 2**20
"""For the activations that one run gives back."""

CACHED_BYTES = 48 * 2**20
"""For those of a run of several samples: what is counted while it is still in a cache is counted sooner."""

FUNCTIONS = ("Relu", "Clip")
"""Activation functions that ONNX Runtime's quantizer takes for a range."""

Feeds = Mapping[str, NDArray[np.generic]]
Work = Callable[[], None]

_FLOATS: dict[int, np.dtype[Any]] = {TensorProto.FLOAT: np.dtype(np.float32), TensorProto.FLOAT16: np.dtype(np.float16)}
_MOST_WORKERS = 4  # more would only wait for their results to be counted


@dataclass(frozen=True)
class Activations:
    """The tensors of a graph that a quantizer asks ranges of.

    Attributes:
        types: Element types of all of them, in the order of the graph.
        same_as: Inputs of a Relu or a Clip that nothing else reads: ONNX Runtime quantizes them by the range of the
            output, and does without the node; see `is_range`. Maps them to other tensors, which are no keys here.
        bounded: Outputs of a Softmax, whose range is 0 to 1 by definition, and in ONNX Runtime.
    """

    types: dict[str, np.dtype[Any]]
    same_as: dict[str, str]
    bounded: frozenset[str]

    @property
    def observed(self) -> list[str]:
        """Those whose values have to be seen."""
        return [name for name in self.types if name not in self.same_as and name not in self.bounded]


def find_activations(model: onnx.ModelProto, op_types: Collection[str] = QUANTIZABLE) -> Activations:
    """Which tensors of a model get quantized: inputs and outputs of quantizable nodes that are no constants.

    Args:
        model: After shape inference; a tensor whose type is not known stays in float.
        op_types: Types of nodes that are quantized.
    """
    graph = model.graph
    known = {info.name: info.type.tensor_type.elem_type for info in (*graph.value_info, *graph.output, *graph.input)}
    constants = {tensor.name for tensor in graph.initializer}
    nodes = [node for node in graph.node if node.op_type in op_types]
    types: dict[str, np.dtype[Any]] = {}
    for node in nodes:
        for name in (*node.input, *node.output):
            if known.get(name) in _FLOATS and name not in constants:
                types[name] = _FLOATS[known[name]]
    reads = Counter(name for node in graph.node for name in node.input)
    same_as: dict[str, str] = {}
    for node in reversed(nodes):
        source, target = node.input[0], node.output[0]
        alone = node.op_type in FUNCTIONS and reads[source] == 1 and {source, target} <= types.keys()
        if alone and is_range(model, node):
            same_as[source] = same_as.get(target, target)
    bounded = {node.output[0] for node in nodes if node.op_type == "Softmax"}
    return Activations(types, same_as, frozenset(bounded & types.keys() - same_as.keys()))


def is_range(model: onnx.ModelProto, node: onnx.NodeProto) -> bool:
    """Whether a Relu or a Clip does no more to its input than a range that it is quantized by, which holds zero.

    Not if its bounds are computed, or on one side of zero; nor if its input is read as it is elsewhere, as an output of
    the model or in the body of a loop or a branch; nor if its output is read in one, where nothing is quantized.
    """
    source, inside = node.input[0], _captured(model.graph)
    if source in {port.name for port in model.graph.output} or inside.intersection((source, node.output[0])):
        return False
    bounds = [name for name in node.input[1:] if name]
    constants = {tensor.name: tensor for tensor in model.graph.initializer if tensor.name in bounds}
    if len(constants) < len(set(bounds)):
        return False
    low, high = ([*node.input[1:], "", ""])[:2]
    # A bound may have one dimension, of one element.
    return (not low or numpy_helper.to_array(constants[low]).item() <= 0) and (
        not high or numpy_helper.to_array(constants[high]).item() >= 0
    )


def _captured(graph: onnx.GraphProto) -> set[str]:
    """Names that the bodies of nodes read, their own ones included."""
    found: set[str] = set()
    for node in graph.node:
        for attribute in node.attribute:
            for body in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                found |= {name for inner in body.node for name in inner.input} | {port.name for port in body.output}
                found |= _captured(body)
    return found


def collect(
    model: onnx.ModelProto, names: Sequence[str], batches: Iterable[Feeds], budget_bytes: int = BUDGET_BYTES
) -> dict[str, Histogram]:
    """Runs a model on samples and counts the values of some of its tensors.

    Args:
        model: The float model, after shape inference.
        names: Tensors of float32 or float16: inputs, outputs, or what is between.
        batches: Inputs by name. The first dimension of every input is that of the samples, where the model does not
            fix it; a batch may then be run in parts.
        budget_bytes: For the values that one run gives back; a few runs go on side by side. Where a single sample has
            more, its tensors are looked at in groups, and it is run once for each.

    Returns:
        A histogram for every name; empty for a tensor that never had an element.

    Raises:
        DataError: If there is no batch.
        ModelFileError: If a value is NaN or infinite, or if the model does not run.
        UsageError: If an input is not what the model takes.
    """
    histograms = {name: Histogram(name) for name in names}
    fed = [port.name for port in model.graph.input if port.name in histograms]

    def count(tensors: dict[str, NDArray[Any]]) -> None:
        while tensors:  # what has been counted is freed
            name, values = tensors.popitem()
            histograms[name].add(values)

    def run(session: Session, part: Feeds) -> None:
        count(session.lend(part))

    def works() -> Iterator[Work]:
        watch: _Watch | None = None
        for feeds in batches:
            if watch is None:
                watch = _Watch(model, [name for name in names if name not in fed], feeds, budget_bytes)
            for part in watch.parts(feeds):
                yield functools.partial(count, {name: part[name] for name in fed if name in part})
                yield from (functools.partial(run, session, part) for session in watch.sessions)
        if watch is None:
            raise DataError("There is no calibration sample.", "Give at least one.")

    _side_by_side(works(), min(usable_cpus(), _MOST_WORKERS))
    return histograms


def with_outputs(model: onnx.ModelProto, names: Collection[str]) -> bytes:
    """The model with other outputs: any tensors whose types are known, in the order of `names`."""
    graph = model.graph
    infos = {info.name: info for info in (*graph.value_info, *graph.output)}
    return _variant(model, [], [infos[name] for name in names])


def _side_by_side(works: Iterator[Work], workers: int) -> None:
    """Does all works in threads; no more are begun than there are threads, so that few inputs are held."""
    with ThreadPoolExecutor(workers) as pool:
        begun: deque[Future[None]] = deque()
        for work in works:
            begun.append(pool.submit(work))
            if len(begun) > workers:
                begun.popleft().result()
        while begun:
            begun.popleft().result()


class _Watch:
    """Sessions of a model whose outputs are the tensors to look at, in groups that fit a budget.

    Args:
        model: The float model.
        names: Tensors that are not inputs.
        feeds: The first batch, for the sizes of the tensors.
        budget_bytes: For one group, of one part of a batch.
    """

    def __init__(self, model: onnx.ModelProto, names: list[str], feeds: Feeds, budget_bytes: int) -> None:
        self._divisible, self._samples = False, 1
        self.sessions: list[Session] = []
        if not names:
            return
        settings = SessionSettings(threads=1)  # runs go on side by side; threads within one would wait for each other
        inputs = [info.type.tensor_type.shape.dim for info in model.graph.input if info.name in feeds]
        self._divisible = all(dims and not dims[0].HasField("dim_value") for dims in inputs)
        sizes = _sizes(model, names, next(self._cut(feeds, 1)), settings)
        groups = list(_grouped(sizes, budget_bytes))
        if len(groups) == 1:
            self._samples = max(1, min(budget_bytes, CACHED_BYTES) // max(1, sum(sizes.values())))
        self.sessions = [open_session(with_outputs(model, group), settings) for group in groups]

    def parts(self, feeds: Feeds) -> Iterator[Feeds]:
        """A batch in parts whose tensors fit the budget."""
        return self._cut(feeds, self._samples)

    def _cut(self, feeds: Feeds, samples: int) -> Iterator[Feeds]:
        counts = {values.shape[0] if values.ndim else 0 for values in feeds.values()}
        if not self._divisible or len(counts) != 1 or (count := counts.pop()) <= samples:
            yield feeds
            return
        for start in range(0, count, samples):
            yield {name: values[start : start + samples] for name, values in feeds.items()}


def _grouped(sizes: Mapping[str, int], budget_bytes: int) -> Iterator[list[str]]:
    group: list[str] = []
    taken = 0
    for name, size in sizes.items():
        if group and taken + size > budget_bytes:
            yield group
            group, taken = [], 0
        group.append(name)
        taken += size
    if group:
        yield group


def _sizes(model: onnx.ModelProto, names: Sequence[str], feeds: Feeds, settings: SessionSettings) -> dict[str, int]:
    """Bytes of tensors for given inputs: by their shapes, if these are known, and else by a run."""
    known: dict[str, int] = {}
    infos = {info.name: info.type.tensor_type.shape.dim for info in (*model.graph.value_info, *model.graph.output)}
    lengths: dict[str, int] = {}
    for info in model.graph.input:
        dims = info.type.tensor_type.shape.dim
        if info.name in feeds and len(dims) == feeds[info.name].ndim:
            lengths |= dict(zip((dim.dim_param for dim in dims), feeds[info.name].shape, strict=True))
    lengths.pop("", None)
    for name in names:
        lengths_here = [dim.dim_value or lengths.get(dim.dim_param, 0) for dim in infos.get(name, [])]
        known[name] = math.prod(lengths_here) * 4 if infos.get(name) else 0
    if all(known.values()):
        return known
    # The sizes alone: with all tensors as outputs, even one sample's could be too many.
    session = open_session(_with_sizes(model, names), settings)
    return {name: int(size) * 4 for name, size in zip(names, session.run(feeds).values(), strict=True)}


def _with_sizes(model: onnx.ModelProto, names: Sequence[str]) -> bytes:
    outputs = [f"size of {name}" for name in names]
    nodes = [helper.make_node("Size", [name], [output]) for name, output in zip(names, outputs, strict=True)]
    infos = [helper.make_tensor_value_info(output, TensorProto.INT64, []) for output in outputs]
    return _variant(model, nodes, infos)


def _variant(model: onnx.ModelProto, nodes: list[onnx.NodeProto], outputs: list[onnx.ValueInfoProto]) -> bytes:
    variant = onnx.ModelProto()
    variant.CopyFrom(model)
    variant.graph.node.extend(nodes)
    del variant.graph.output[:]
    variant.graph.output.extend(outputs)
    return bytes(variant.SerializeToString())
