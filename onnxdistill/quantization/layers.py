"""The layers of a quantized model: their integers, next to the float layers that these came from."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import numpy_helper
from onnx_ir.passes.common import RemoveUnusedNodesPass

from onnxdistill.device.host import usable_cpus
from onnxdistill.device.session import Session, SessionSettings, open_session
from onnxdistill.errors import DataError
from onnxdistill.quantization.calibration import BUDGET_BYTES, Feeds
from onnxdistill.quantization.constants import constant, input_of

_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_BYTES = (np.dtype(np.int8), np.dtype(np.uint8))
_MOST_THREADS = 4


@dataclass(frozen=True, eq=False)
class Integers:
    """A constant that a model stores as integers; its value is `(values - zero_point) * scale`.

    Attributes:
        name: Of the initializer.
        values: The integers, int8 or uint8 for a weight and int32 for a bias.
        scale: A number, or one for each channel; broadcasts over `values`, as `zero_point` does.
        zero_point: The integer that stands for zero.
    """

    name: str
    values: NDArray[Any] = field(repr=False)
    scale: NDArray[np.float64] = field(repr=False)
    zero_point: NDArray[np.int64] = field(repr=False)

    def dequantized(self) -> NDArray[np.float64]:
        """The values that they stand for."""
        dequantized: NDArray[np.float64] = (self.values.astype(np.int64) - self.zero_point) * self.scale
        return dequantized

    def bounds(self) -> tuple[int, int]:
        """The least and the largest integer that the weight's scheme has, read off the integers themselves.

        A scale is made so that the value that is farthest from zero is the scheme's last integer: 127, or 64 where
        weights have 7 bits so that sums of 16 bits do not saturate. Where zero is in the middle, the other side ends
        as far from it.
        """
        least, most = int(self.values.min()), int(self.values.max())
        if np.any(self.zero_point):
            return least, most
        farthest = min(max(-least, most), int(np.iinfo(self.values.dtype).max))
        return max(-farthest, int(np.iinfo(self.values.dtype).min)), farthest


@dataclass(frozen=True, eq=False)
class QuantizedLayer:
    """A layer whose weight is stored as integers.

    Attributes:
        name: Of the node, in both models.
        op_type: `Conv`, `ConvTranspose`, `Gemm` or `MatMul`.
        attributes: Of the quantized model's node.
        weight: The second input.
        bias: The third input; None if there is none, or if it is not int32.
        shared: Whether other nodes read the weight as well.
        float_weight: The weight in the float model, in the same shape.
        input: First input in the float model.
        output: In the float model, before any activation function.
        quantized_input: First input in the quantized model: dequantized if it is quantized.
        quantized_output: In the quantized model, dequantized if it is quantized: what the next nodes read.
        output_range: The least and the largest value that it can have. ONNX Runtime's quantizer leaves out a `Relu` or
            a `Clip` behind the layer, and takes this range for it.
    """

    name: str
    op_type: str
    attributes: Mapping[str, Any] = field(repr=False)
    weight: Integers
    bias: Integers | None
    shared: bool
    float_weight: NDArray[Any] = field(repr=False)
    input: str
    output: str
    quantized_input: str
    quantized_output: str
    output_range: tuple[float, float]


def find_layers(quantized: onnx.ModelProto, prepared: onnx.ModelProto) -> list[QuantizedLayer]:
    """The quantized layers of a model, each after those that its input depends on.

    Args:
        quantized: In QDQ form, as ONNX Runtime's quantizer makes it of `prepared`: weights and biases are integers
            behind `DequantizeLinear`.
        prepared: The float model; layers are found in it by their nodes' names.

    Returns:
        Without those that are in float, or whose weight is not constant.
    """
    nodes = {node.name: node for node in ir.from_proto(quantized).graph if node.op_type in _LAYERS}
    pairs = ((node, nodes.get(node.name)) for node in ir.from_proto(prepared).graph if node.op_type in _LAYERS)
    layers = (_layer(node, other) for node, other in pairs if node.name and other is not None)
    return [layer for layer in layers if layer is not None]


def with_integers(model: onnx.ModelProto, values: Mapping[str, NDArray[Any]]) -> onnx.ModelProto:
    """A copy of a model in which some initializers have other values, of the same type and shape."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    for tensor in changed.graph.initializer:
        if tensor.name in values:
            dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
            array = np.ascontiguousarray(values[tensor.name].reshape(tuple(tensor.dims)), dtype)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return changed


def observe(
    model: onnx.ModelProto,
    names: Collection[str],
    batches: Iterable[Feeds],
    nodes: Sequence[onnx.NodeProto] = (),
    budget_bytes: int = BUDGET_BYTES,
) -> Iterator[dict[str, NDArray[Any]]]:
    """Runs a model on samples, with all of ONNX Runtime's optimizations, and looks at some of its tensors.

    Args:
        model: Is not changed. What the tensors do not depend on is not run.
        names: Of the tensors; inputs of the model, too.
        batches: Inputs by name. The first dimension of every input is that of the samples, where the model does not
            fix it; a batch is then run in parts.
        nodes: Added to the end of the graph; their outputs may be among the tensors.
        budget_bytes: For the tensors of one part.

    Yields:
        The tensors of the next part of a batch, by name.

    Raises:
        DataError: If there is no batch.
        ModelFileError: If the model does not run.
        UsageError: If an input is not what the model takes.
    """
    fed = {port.name for port in model.graph.input}
    session = _open_observed(model, [name for name in names if name not in fed], nodes)
    divisible = all(port.shape and isinstance(port.shape[0], str) for port in session.inputs)
    samples, found = 1, False  # one sample first, to see how large it is
    for feeds in batches:
        found = True
        sizes = {values.shape[0] if values.ndim else 0 for values in feeds.values()}
        whole = not divisible or len(sizes) > 1
        start, count = 0, 1 if whole else sizes.pop()
        while start < count:
            stop = min(start + samples, count)
            part = feeds if whole else {name: values[start:stop] for name, values in feeds.items()}
            outputs = session.run(part)
            taken = sum(values.nbytes for values in outputs.values())
            yield {name: outputs[name] if name in outputs else part[name] for name in names}
            samples = max(1, int(budget_bytes * (stop - start) // max(1, taken)))
            start = stop
    if not found:
        raise DataError("There is no calibration sample.", "Give at least one.")


def _open_observed(model: onnx.ModelProto, names: Sequence[str], nodes: Sequence[onnx.NodeProto]) -> Session:
    observed = onnx.ModelProto()
    observed.CopyFrom(model)
    observed.graph.node.extend(nodes)
    if names:
        del observed.graph.output[:]
        observed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    needed = RemoveUnusedNodesPass()(ir.from_proto(observed)).model
    settings = SessionSettings(threads=min(usable_cpus(), _MOST_THREADS))
    return open_session(ir.to_proto(needed).SerializeToString(), settings)


def _layer(node: ir.Node, quantized: ir.Node) -> QuantizedLayer | None:
    float_weight, weight = constant(input_of(node, 1)), _integers(input_of(quantized, 1))
    first, quantized_first = node.inputs[0], quantized.inputs[0]
    if float_weight is None or weight is None or first is None or quantized_first is None:
        return None
    if weight.values.dtype not in _BYTES or weight.values.shape != float_weight.shape:
        return None
    bias = input_of(quantized, 2)
    bias_integers = None if bias is None or _readers(bias) > 1 else _integers(bias)
    if bias_integers is not None and bias_integers.values.dtype != np.int32:
        bias_integers = None
    output, limits = _as_read(quantized.outputs[0])
    return QuantizedLayer(
        name=str(node.name),
        op_type=node.op_type,
        attributes={name: attribute.value for name, attribute in quantized.attributes.items()},
        weight=weight,
        bias=bias_integers,
        shared=_readers(quantized.inputs[1]) > 1,
        float_weight=float_weight,
        input=str(first.name),
        output=str(node.outputs[0].name),
        quantized_input=str(quantized_first.name),
        quantized_output=str(output.name),
        output_range=limits,
    )


def _as_read(output: ir.Value) -> tuple[ir.Value, tuple[float, float]]:
    """What is read of a layer's output, and between which values it is."""
    quantize = next((use.node for use in output.uses() if use.node.op_type == "QuantizeLinear"), None)
    if quantize is None:
        return output, (-math.inf, math.inf)
    uses = quantize.outputs[0].uses()
    dequantize = next((use.node for use in uses if use.node.op_type == "DequantizeLinear"), None)
    scale, zero = constant(quantize.inputs[1]), constant(input_of(quantize, 2))
    if dequantize is None or scale is None or zero is None or scale.size != 1:
        return output, (-math.inf, math.inf)
    limits = np.iinfo(zero.dtype)
    low, high = (float((limit - zero.item()) * scale.item()) for limit in (limits.min, limits.max))
    return dequantize.outputs[0], (low, high)


def _integers(value: ir.Value | None) -> Integers | None:
    dequantize = None if value is None else value.producer()
    if dequantize is None or dequantize.op_type != "DequantizeLinear" or dequantize.inputs[0] is None:
        return None
    values, scale, zero = (constant(input_of(dequantize, index)) for index in range(3))
    if values is None or scale is None or scale.ndim > 1:  # of two dimensions: one for each block of values
        return None
    shape = [1] * values.ndim
    if scale.size > 1:
        axis = dequantize.attributes.get("axis")
        shape[1 if axis is None else axis.as_int()] = scale.size
    zero = np.zeros(scale.size, np.int64) if zero is None else zero.astype(np.int64)
    return Integers(
        str(dequantize.inputs[0].name), values, scale.astype(np.float64).reshape(shape), zero.reshape(shape)
    )


def _readers(value: ir.Value | None) -> int:
    """How many nodes read a constant behind a DequantizeLinear, by it or by another one."""
    dequantize = None if value is None else value.producer()
    if value is None or dequantize is None or dequantize.inputs[0] is None:
        return 0
    return max(len(value.uses()), len(dequantize.inputs[0].uses()))
