"""What an operator of ONNX Runtime does with its tensors: its kind, its precision, multiply-adds and bytes moved.

All of it is read off the operator's name and the shapes in a trace, where attributes are missing. Fused operators and
those of ONNX Runtime's own domains are known by name.
"""

from __future__ import annotations

from math import prod
from typing import Literal, Protocol

from onnxdistill.device.profiling.profiler import CONTROL_FLOW, Tensor
from onnxdistill.device.profiling.trace import NodeTrace

Kind = Literal["integer", "float", "conversion", "layout", "copy", "view", "control flow", "other"]
"""What a node is there for: `conversion` is between float and integers, `layout` reorders what is in memory, `copy` is
between the memories of two devices, and `view` only calls the same numbers by another shape."""

CONVERSIONS = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"}
LAYOUT = {"ReorderInput", "ReorderOutput", "Transpose"}
COPIES = {"MemcpyToHost", "MemcpyFromHost"}
_VIEWS = {"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"}

# Where the kernel of a convolution is among the inputs.
_CONVOLUTIONS = {
    "Conv": 1,
    "FusedConv": 1,
    "NhwcConv": 1,
    "NhwcFusedConv": 1,
    "ConvInteger": 1,
    "QLinearConv": 3,
}
_TRANSPOSED_CONVOLUTIONS = {"ConvTranspose": 1, "QLinearConvTranspose": 3}
# Their first matrix may be transposed, which only an attribute tells.
_TRANSPOSABLE = {"Gemm", "FusedGemm", "QGemm", "FusedMatMul", "FusedMatMulActivation"}
_MATRIX_PRODUCTS = {"MatMul", "QLinearMatMul", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul"}
_INTEGER = {
    "ConvInteger",
    "QGemm",
    "MatMulInteger",
    "MatMulIntegerToFloat",
    "DynamicQuantizeMatMul",
    "QAttention",
}
# What operators are called that hold products; those of several layers at once among them.
_OF_PRODUCTS = ("Attention", "MatMul", "Gemm", "Conv", "LSTM", "GRU", "RNN")
_BYTES = {"uint8", "int8"}
_FLOATS = {"float32", "float16", "bfloat16", "float64"}


class Operation(Protocol):
    """An operator with the tensors that it works on."""

    @property
    def op_type(self) -> str:
        """The operator, also a fused one."""
        ...

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """Without optional ones that are left out."""
        ...

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """All of them."""
        ...


def multiplies(op_type: str) -> bool:
    """Whether it is a convolution or a matrix product, of whatever precision."""
    return op_type in {*_CONVOLUTIONS, *_TRANSPOSED_CONVOLUTIONS, *_TRANSPOSABLE, *_MATRIX_PRODUCTS}


def may_hold_layers(op_type: str) -> bool:
    """Whether it is a convolution or a matrix product, or an operator that ONNX Runtime has made of some."""
    return any(part in op_type for part in _OF_PRODUCTS)


def kind(node: NodeTrace) -> Kind:
    """What the node is there for; what works on 8-bit integers counts as `integer`, also a pooling."""
    named: dict[Kind, set[str]] = {
        "conversion": CONVERSIONS,
        "layout": LAYOUT,
        "copy": COPIES,
        "view": _VIEWS,
        "control flow": CONTROL_FLOW,
    }
    for name, op_types in named.items():
        if node.op_type in op_types:
            return name
    if node.op_type.startswith("QLinear") or node.op_type in _INTEGER:
        return "integer"
    if node.inputs and node.inputs[0].dtype in _BYTES:
        return "integer"
    return "float" if any(tensor.dtype in _FLOATS for tensor in node.outputs) else "other"


def precision(node: NodeTrace) -> str:
    """What it computes in: `int8` for 8-bit integers of either sign, else the type of what comes out of it."""
    if kind(node) == "integer":
        return "int8"
    return node.outputs[0].dtype if node.outputs else ""


def macs(node: Operation) -> int | None:
    """Multiply-adds of one call.

    None for an operator that is no convolution and no matrix product, and where the trace lacks the shapes. A
    convolution of a blocked layout counts with the channels that it is padded to, since it computes them.
    """
    if not node.outputs or not node.inputs:
        return None
    first, out = node.inputs[0].shape, node.outputs[0].shape
    if node.op_type in _CONVOLUTIONS:
        weight = _weight(node, _CONVOLUTIONS[node.op_type])
        # [output channels, input channels of a group, *kernel]: what one output value adds up.
        return None if weight is None else prod(out) * prod(weight.shape[1:])
    if node.op_type in _TRANSPOSED_CONVOLUTIONS:
        weight = _weight(node, _TRANSPOSED_CONVOLUTIONS[node.op_type])
        # [input channels, output channels of a group, *kernel]: what one input value is spread over.
        return None if weight is None else prod(first) * prod(weight.shape[1:])
    return prod(out) * summed(node) if node.op_type in {*_TRANSPOSABLE, *_MATRIX_PRODUCTS} else None


def summed(node: Operation) -> int:
    """How many products a matrix product adds up for every value that comes out."""
    first, out = node.inputs[0].shape, node.outputs[0].shape
    if node.op_type in _TRANSPOSABLE:
        # [..., rows, summed], or the other way round.
        return first[-1] if first[-2] == out[-2] else first[-2]
    return first[-1]


def moved_bytes(node: NodeTrace) -> int:
    """What one call has to read and write at least: every input and output once; nothing for a `view`."""
    if kind(node) == "view":
        return 0
    return node.activation_bytes + node.parameter_bytes + node.output_bytes


def _weight(node: Operation, position: int) -> Tensor | None:
    """The kernel of a convolution, which a trace of packed weights lacks."""
    if len(node.inputs) <= position:
        return None
    weight = node.inputs[position]
    return weight if len(weight.shape) == len(node.inputs[0].shape) else None
