"""ONNX Runtime's static quantizer, behind a scheme and ranges of our own."""

from __future__ import annotations

import io
import logging
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout

import onnx
from onnxruntime.quantization import QDQQuantizer, QuantType
from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData

from onnxdistill.quantization.calibration import FUNCTIONS, find_activations, is_range
from onnxdistill.quantization.ranges import Range
from onnxdistill.quantization.scheme import Scheme

_WITH_BIAS, _BIAS = ("Conv", "ConvTranspose", "Gemm", "LayerNormalization"), 2
_WHOLE = "all axes"
_TYPES = {"uint8": QuantType.QUInt8, "int8": QuantType.QInt8}


def insert_qdq(prepared: onnx.ModelProto, ranges: Mapping[str, Range], scheme: Scheme) -> onnx.ModelProto:
    """A model whose weights are integers and whose activations are rounded to integers, in QDQ form.

    Args:
        prepared: The float model, as `prepare` makes it. It is not changed.
        ranges: Of the activations, by the names of their tensors; those of some nodes may be missing, which then stay
            in float.
        scheme: What becomes an integer, and of which kind.
    """
    model = onnx.ModelProto()
    model.CopyFrom(prepared)
    types = find_activations(model, scheme.operators).types
    unseen = [name for name in types if name not in ranges]
    data = {
        name: TensorData(lowest=kind.type(ranges[name].low), highest=kind.type(ranges[name].high))
        for name, kind in types.items()
        if name in ranges
    }
    with quiet_quantizer():
        # What quantize_static does with the ranges of its own calibrators.
        quantizer = QDQQuantizer(
            model,
            scheme.per_channel,
            scheme.weight_bits == 7,
            QuantType.QInt8,
            _TYPES[scheme.activations],
            TensorsData(CalibrationMethod.MinMax, data),
            [],
            [
                *_nodes_around(model, unseen),
                *sorted(scheme.float_nodes),
                *_fatal(model, scheme),
            ],
            sorted(scheme.operators),
            {
                "ActivationSymmetric": scheme.symmetric,
                "QuantizeBias": not scheme.symmetric,
                "TensorQuantOverrides": {name: [{}] for name in _of_one_scale(model)} if scheme.per_channel else {},
            },
        )
        quantizer.quantize_model()
        quantizer.model.topological_sort()
    quantized: onnx.ModelProto = quantizer.model.model
    _sort_by_bodies(quantized.graph)
    if scheme.symmetric:
        _join_activations(quantized, find_activations(prepared, scheme.operators).same_as)
    return quantized


def _sort_by_bodies(graph: onnx.GraphProto) -> None:
    """Puts nodes behind what their bodies read; the quantizer's own sorting looks at their inputs alone."""
    made = {name for node in graph.node for name in node.output if name}  # what is left out has none
    placed: set[str] = set()
    waiting, ordered = list(graph.node), list[onnx.NodeProto]()
    while waiting:
        left = []
        for node in waiting:
            if made.intersection((*node.input, *_read_in_bodies(node))) <= placed:
                ordered.append(node)
                placed.update(node.output)
            else:
                left.append(node)
        if len(left) == len(waiting):  # as it was, for what checks it to tell
            ordered += left
            break
        waiting = left
    del graph.node[:]
    graph.node.extend(ordered)


def _read_in_bodies(node: onnx.NodeProto) -> set[str]:
    """Names that the bodies of a node read and do not define: an inner name may be that of something outside, later."""
    found: set[str] = set()
    for attribute in node.attribute:
        for body in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
            own = {port.name for port in body.input} | {tensor.name for tensor in body.initializer}
            own |= {name for inner in body.node for name in inner.output}
            read = {port.name for port in body.output}
            for inner in body.node:
                read |= {*inner.input, *_read_in_bodies(inner)}
            found |= read - own
    return found


def _join_activations(model: onnx.ModelProto, before: Collection[str]) -> None:
    """Takes out the rounding between a layer and its activation function, which TensorRT fuses."""
    graph = model.graph
    rounding = {node.output[0]: node for node in graph.node if node.op_type == "QuantizeLinear"}
    pairs = {
        node.output[0]: rounding[node.input[0]].input[0]
        for node in graph.node
        if node.op_type == "DequantizeLinear"
        and node.input[0] in rounding
        and rounding[node.input[0]].input[0] in before
    }
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = pairs.get(name, name)
    for kind in ("DequantizeLinear", "QuantizeLinear"):
        read = {name for node in graph.node for name in node.input} | {port.name for port in graph.output}
        for node in [node for node in graph.node if node.op_type == kind and node.output[0] not in read]:
            graph.node.remove(node)


@contextmanager
def quiet_quantizer() -> Iterator[None]:
    """The quantizer logs advice to run a preparation that has been run, and prints its own progress."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        root.setLevel(level)


def _nodes_around(model: onnx.ModelProto, tensors: Collection[str]) -> list[str]:
    nodes = [node for node in model.graph.node if not {*node.input, *node.output}.isdisjoint(tensors)]
    for index, node in enumerate(nodes):
        node.name = node.name or f"unnamed node {index}"  # the quantizer leaves out nodes by name
    return [node.name for node in nodes]


def _fatal(model: onnx.ModelProto, scheme: Scheme) -> list[str]:
    """Names of nodes that the quantizer (1.32) fails at, or gets wrong.

    With scales for channels it raises "operands could not be broadcast together" at a `ConvTranspose` with groups and
    a bias, since channels of all groups share scales. On CPUs, no `ConvTranspose` has an integer kernel. A `Relu` or a
    `Clip` it leaves out in favour of the range that is quantized, whether or not that does the same.
    """
    names = []
    for index, node in enumerate(model.graph.node):
        groups = next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
        broadcast = scheme.per_channel and node.op_type == "ConvTranspose" and groups > 1 and len(node.input) > 2
        if broadcast or (node.op_type in FUNCTIONS and not is_range(model, node)):
            node.name = node.name or f"unnamed function {index}"
            names.append(node.name)
    return names


def _of_one_scale(model: onnx.ModelProto) -> set[str]:
    """Constants that no axis has a scale of its own for; no biases, which get theirs from other tensors.

    Of matrices in stacks, and of those on the left, ONNX Runtime's kernels take one scale only. Of a
    `LayerNormalization` over several axes, the quantizer fails to divide the bias by the scales. And nodes that want
    different axes of one constant would get the one that was asked for last.
    """
    dimensions = {tensor.name: len(tensor.dims) for tensor in model.graph.initializer}
    axes: dict[str, set[int | str]] = {}
    biases = set()
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            if name in dimensions:
                if node.op_type in _WITH_BIAS and place == _BIAS:
                    biases.add(name)
                else:
                    axes.setdefault(name, set()).add(_axis(node, place, dimensions[name]))
    return {name for name, wanted in axes.items() if name not in biases and (_WHOLE in wanted or len(wanted) > 1)}


def _axis(node: onnx.NodeProto, place: int, dimensions: int) -> int | str:
    """That a constant gets scales along, for a node that reads it; of other kinds of nodes, what tells them apart."""
    match node.op_type, place:
        case "Conv", 1:
            return 0
        case "ConvTranspose", 1:
            return 1
        case "Gemm", 1:
            return 0 if any(attribute.name == "transB" and attribute.i for attribute in node.attribute) else 1
        case "MatMul", _:
            return 1 if place == 1 and dimensions <= 2 else _WHOLE
        case "LayerNormalization", 1:
            return 0 if dimensions <= 1 else _WHOLE
    return str(node.op_type)
