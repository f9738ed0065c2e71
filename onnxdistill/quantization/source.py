"""A float ONNX file as somebody brings it: whether it can be quantized, and what is in it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto

from onnxdistill.device.modelfile import external_files, read_model_file
from onnxdistill.errors import ModelFileError

LARGEST_BYTES = 2**31 - 1
"""Of protobuf, and so of a model in one piece."""

_LAYERS = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
_FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE}
_CONVERSIONS = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulNBits"}
_MATRIX_DIMENSIONS = 2


@dataclass(frozen=True)
class Source:
    """A float model that can be quantized.

    Attributes:
        path: One file with all of its weights.
        parameters: Elements of its float initializers.
        metadata: What the file says of itself, by key.
    """

    path: Path
    parameters: int
    metadata: dict[str, str]


def take_source(path: Path, place: Path) -> Source:
    """Copies a float model into one file, with the weights that may lie beside it.

    Args:
        path: The .onnx file, which ONNX Runtime loads.
        place: Where the copy goes.

    Raises:
        ModelFileError: If it is missing, too large, no ONNX file, quantized already, or has nothing to quantize.
    """
    size_bytes = read_model_file(path).size_bytes
    if size_bytes > LARGEST_BYTES:
        raise ModelFileError(
            f"{path} has {size_bytes / 1e9:.1f} GB, and models can be quantized up to 2 GB.",
            "Quantize a smaller model, or parts of this one.",
        )
    try:
        model = onnx.load(path, format="protobuf")
    except DecodeError as error:
        raise ModelFileError(f"{path} is not in the format of ONNX files.", "Name the exported .onnx file.") from error
    _check(path, model)
    if external_files(path):
        onnx.save_model(model, place)
    else:
        shutil.copyfile(path, place)
    parameters = sum(prod(one.dims) for one in model.graph.initializer if one.data_type in _FLOATS)
    return Source(place, parameters, {entry.key: entry.value for entry in model.metadata_props})


def _check_inputs(path: Path, graph: onnx.GraphProto) -> None:
    inputs = {port.name for port in graph.input} - {constant.name for constant in graph.initializer}
    if not inputs:
        raise ModelFileError(
            f"{path} has no inputs, so that every call gives the same.", "Export the model with its inputs."
        )
    for port in graph.output:
        if port.name in inputs:
            raise ModelFileError(
                f"{path} gives its input {port.name!r} back as an output, which quantizers of ONNX Runtime refuse.",
                "Export the model without that output.",
            )


def _check(path: Path, model: onnx.ModelProto) -> None:
    graphs = list(_graphs(model.graph))
    nodes = [node for part in (*graphs, *model.functions) for node in part.node]
    quantized = [node for node in nodes if _works_on_integers(node.op_type)]
    if quantized:
        raise ModelFileError(
            f"{path} is quantized already: it has {len(quantized)} nodes such as {quantized[0].op_type}.",
            "Name the float model that it was made from.",
        )
    _check_inputs(path, model.graph)
    tensors = [tensor for graph in graphs for tensor in graph.initializer]
    tensors += [attribute.t for node in nodes if node.op_type == "Constant" for attribute in node.attribute]
    types = {one.data_type for one in tensors if len(one.dims) >= _MATRIX_DIMENSIONS} & _FLOATS
    if types and TensorProto.FLOAT not in types:
        raise ModelFileError(
            f"{path} has weights of {TensorProto.DataType.Name(min(types)).lower()}, and int8 is made of float32.",
            "Export the model in float32.",
        )
    if not types or _LAYERS.isdisjoint(node.op_type for node in nodes):
        raise ModelFileError(
            f"{path} has no float weights to quantize: no convolution and no matrix product with constants.",
            "int8 would make nothing of it faster.",
        )


def _works_on_integers(op_type: str) -> bool:
    return op_type in _CONVERSIONS or op_type.startswith("QLinear") or op_type.endswith("Integer")


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph, and those inside its branches and loops."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _graphs(inner)
