"""The integer layers of a quantized model, in the graph that ONNX Runtime makes of it for x86-64."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import TensorProto, helper

from onnxdistill.device.session import Session, open_session
from onnxdistill.errors import ModelFileError
from onnxdistill.quantization.constants import add_constant, constant, input_of
from onnxdistill.quantization.optimized import optimized
from onnxdistill.quantization.pairsums import LARGEST_ACTIVATION, Convolution, IntegerLayer, MatrixProduct

# What ONNX Runtime makes of quantized layers; where activation, its zero point, weight, its scale and zero point are.
_PLACES = {
    "QLinearConv": (0, 2, 3, 4, 5),
    "QGemm": (0, 2, 3, 4, 5),
    "QLinearMatMul": (0, 2, 3, 4, 5),
    "MatMulIntegerToFloat": (0, 4, 1, 3, 5),
}
# Integer layers whose activations get their scale only while they run.
_DYNAMIC = frozenset(
    {
        "MatMulInteger",
        "ConvInteger",
        "DynamicQuantizeMatMul",
        "DynamicQuantizeLSTM",
        "QAttention",
        "MatMulNBits",
    }
)
# Hand on what they get, or some of it, or a mean of it and of zeros.
_KEEPING = frozenset(
    {"MaxPool", "AveragePool", "GlobalAveragePool", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice"}
)
_AT_MOST_ONE = frozenset({"Sigmoid", "HardSigmoid", "Softmax"})
# Float kernels may go beyond such a limit by as much, relatively.
_ROUNDING = 1e-4


def find_integer_layers(model: onnx.ModelProto) -> tuple[IntegerLayer, ...]:
    """The layers of a quantized model that add products of uint8 and int8 in pairs, where there is no VNNI.

    They are read off the graph that ONNX Runtime makes of the model for x86-64, on whatever machine this runs.

    Args:
        model: Quantized statically, by Q/DQ pairs or integer operators.

    Raises:
        ModelFileError: If ONNX Runtime cannot load the model, or if a layer is quantized dynamically.
    """
    return layers_of(as_run(model))


def as_run(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph that ONNX Runtime makes of a model for x86-64, but for changes of layout.

    Raises:
        ModelFileError: If ONNX Runtime cannot load the model.
    """
    # Signed activations become unsigned, which is the default on x86-64.
    return optimized(model, "extended", {"session.qdqisint8allowed": "0"})


def open_exact(model: onnx.ModelProto, layers: list[IntegerLayer]) -> Session:
    """A session that returns what layers read, and saturates on no processor: with uint8 weights.

    Args:
        model: As `as_run` returns it.
        layers: Some of its layers.
    """
    rewritten = ir.from_proto(model)
    for node in rewritten.graph.all_nodes():
        if node.op_type in _PLACES and _layer_of(node, rewritten.graph) is not None:
            _take_uint8_weights(node, rewritten.graph)
    extended = ir.to_proto(rewritten)
    known = {port.name for port in extended.graph.input} - {tensor.name for tensor in extended.graph.initializer}
    known |= {port.name for port in extended.graph.output}
    wanted = {layer.activation: TensorProto.UINT8 for layer in layers}
    wanted |= {layer.weight: TensorProto.INT8 for layer in layers if layer.weights is None}
    for name in wanted.keys() - known:
        extended.graph.output.append(helper.make_tensor_value_info(name, wanted[name], None))
    return open_session(bytes(extended.SerializeToString()))


def _take_uint8_weights(node: ir.Node, graph: ir.Graph) -> None:
    _, _, at, _, zero_at = _PLACES[node.op_type]
    weight, zero = input_of(node, at), input_of(node, zero_at)
    weights, offset = constant(weight), constant(zero)
    if weight is None or zero is None or weights is None or offset is None:  # computed: they stay as they are
        return
    for place, value, numbers in ((at, weight, weights), (zero_at, zero, offset)):
        moved = (numbers.astype(np.int16) + 128).astype(np.uint8)
        node.replace_input_with(place, add_constant(graph, f"{value.name} as uint8", moved))


def layers_of(model: onnx.ModelProto) -> tuple[IntegerLayer, ...]:
    """The integer layers of what `as_run` returns, with different names.

    Raises:
        ModelFileError: If a layer is quantized dynamically.
    """
    graph = ir.from_proto(model).graph
    layers: dict[str, IntegerLayer] = {}
    for node in graph.all_nodes():
        if node.op_type in _DYNAMIC:
            raise _dynamic(node)
        layer = _layer_of(node, graph) if node.op_type in _PLACES else None
        if layer is not None:
            unique = layer.name if layer.name and layer.name not in layers else str(node.outputs[0].name)
            layers[unique] = replace(layer, name=unique)
    return tuple(layers.values())


def _layer_of(node: ir.Node, graph: ir.Graph) -> IntegerLayer | None:
    """None if its products are added in 32 bits."""
    activation, zero_point, weight, scale, weight_zero_point = (input_of(node, at) for at in _PLACES[node.op_type])
    zero = _numbers(node, zero_point, np.zeros(1, np.uint8))
    weight_zero = _numbers(node, weight_zero_point, np.zeros(1, np.uint8))
    weights = constant(weight)
    if zero.dtype != np.uint8 or (weight_zero if weights is None else weights).dtype != np.int8:
        return None
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    convolution = node.op_type == "QLinearConv"
    if convolution and weights is not None and weights.shape[1] == 1 and len(weights) == attributes.get("group", 1):
        return None
    if activation is None or weight is None:  # neither is optional
        return None
    return (Convolution if convolution else MatrixProduct)(
        name=node.name or "",
        activation=str(activation.name),
        weight=str(weight.name),
        weights=weights,
        most=max(_largest(activation), int(zero.item())),
        zero_point=int(zero.item()),
        weight_zero_point=weight_zero.astype(np.int64),
        weight_scale=_numbers(node, scale, np.ones(1, np.float32)).astype(np.float64),
        attributes=attributes,
        top_level=node.graph is graph,
    )


def _numbers(node: ir.Node, value: ir.Value | None, default: NDArray[Any]) -> NDArray[Any]:
    if value is None:
        return default
    numbers = constant(value)
    if numbers is None:
        raise _dynamic(node)
    return numbers


def _dynamic(node: ir.Node) -> ModelFileError:
    return ModelFileError(
        f"The layer {node.name or node.outputs[0].name!r} is quantized while it runs ({node.op_type}), and how it "
        "saturates is not known here.",
        "Quantize the model statically: ranges of activations are then part of it.",
    )


def _largest(quantized: ir.Value) -> int:
    """What no value of a uint8 tensor exceeds, as far as the graph tells."""
    node = quantized.producer()
    if node is None or node.inputs[0] is None:
        return LARGEST_ACTIVATION
    if node.op_type in _KEEPING:
        return _largest(node.inputs[0])
    limit = _limit(node.inputs[0]) if node.op_type == "QuantizeLinear" else math.inf
    scale, zero = constant(input_of(node, 1)), constant(input_of(node, 2))
    if limit == math.inf or scale is None:
        return LARGEST_ACTIVATION
    offset = 0 if zero is None else int(zero.item())
    return int(np.clip(np.rint(limit * (1 + _ROUNDING) / scale.item()) + offset, 0, LARGEST_ACTIVATION))


def _limit(value: ir.Value) -> float:
    """What no value of a float tensor exceeds, as far as the graph tells; at least 0, and infinite if unknown."""
    node = value.producer()
    if node is None or node.inputs[0] is None:
        return math.inf
    if node.op_type in _AT_MOST_ONE:
        return 1.0
    if node.op_type == "Clip":
        most = constant(input_of(node, 2))
        return math.inf if most is None else max(0.0, float(most.item()))
    return _limit(node.inputs[0]) if node.op_type in _KEEPING else math.inf
