"""The layers whose widths can change: convolutions along one or two axes, and matrix products, as a model runs them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, Literal

from onnxdistill.device.profiling.operators import Operation, summed
from onnxdistill.device.profiling.profiler import Operands, read_operands
from onnxdistill.device.session import Array, SessionSettings, open_session

Precision = Literal["float32", "int8"]

DEPTHWISE = 0
"""In the place of a number of groups: as many as there are channels."""

# In which precision, and where the weights are among the inputs.
_CONVOLUTIONS: dict[str, tuple[Precision, int]] = {
    "Conv": ("float32", 1),
    "FusedConv": ("float32", 1),
    "NhwcConv": ("float32", 1),
    "NhwcFusedConv": ("float32", 1),
    "QLinearConv": ("int8", 3),
}
_PRODUCTS: dict[str, tuple[Precision, int]] = {
    "Gemm": ("float32", 1),
    "FusedGemm": ("float32", 1),
    "MatMul": ("float32", 1),
    "FusedMatMul": ("float32", 1),
    "QGemm": ("int8", 3),
    "QLinearMatMul": ("int8", 3),
}
# What is written transposed has no kernel for 8-bit integers on a CPU.
_TRANSPOSED: dict[str, tuple[Precision, int]] = {"ConvTranspose": ("float32", 1)}
_SEQUENCE_RANK, _IMAGE_RANK, _MATRIX_RANK = 3, 4, 2

# Of channels, which ONNX Runtime's own layout of memory fills up.
_BLOCK, _COLOURS = 16, 4


@dataclass(frozen=True)
class LayerKind:
    """All of a layer that its widths leave open.

    Attributes:
        precision: What it computes in.
        kernel: Height and width; 1 and 1 of a matrix product.
        stride: Down and across; of a transposed convolution, of what comes out.
        groups: Of channels that do not meet; `DEPTHWISE` if every channel is one of its own.
        places: Samples, height and width of what goes in; of a matrix product rows, 1 and 1.
        product: Whether it is a matrix product.
        made: Height and width of what comes out, if paddings don't keep the size at stride 1, or if a transposed
            convolution does not make it larger by the stride.
        transposed: Whether it is a transposed convolution.
        sequence: Whether it is a convolution along one axis, which is the width here; the height of all is 1.
    """

    precision: Precision
    kernel: tuple[int, int]
    stride: tuple[int, int]
    groups: int
    places: tuple[int, int, int]
    product: bool = False
    made: tuple[int, int] | None = None
    transposed: bool = False
    sequence: bool = False

    def __str__(self) -> str:
        if self.product:
            return f"{self.precision} product of {self.places[0]} rows"
        first = 1 if self.sequence else 0
        groups = {1: "", DEPTHWISE: " depthwise"}.get(self.groups, f" in {self.groups} groups")
        transposed = " transposed" if self.transposed else ""
        stride = "" if self.stride == (1, 1) else f" stride {_times(self.stride[first:])}"
        batch = "" if self.places[0] == 1 else f"{self.places[0]} of "
        made = "" if self.made is None else f" to {_times(self.made[first:])}"
        kernel, size = _times(self.kernel[first:]), _times(self.places[1 + first :])
        return f"{self.precision} {kernel}{transposed}{groups}{stride} on {batch}{size}{made}"

    @property
    def outputs(self) -> tuple[int, int]:
        """Height and width of what comes out."""
        return self.made or _usual_size(self.places[1:], self.stride, transposed=self.transposed)

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """What such layers can compute in."""
        return ("float32",) if self.transposed else ("float32", "int8")

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dump`."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> LayerKind:
        """The inverse of `to_json`."""
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in data.items()
        }
        return cls(**values)


@dataclass(frozen=True)
class Layer:
    """A layer of a model.

    Attributes:
        name: As the model calls the node.
        kind: What its widths leave open.
        inputs: Channels that go in.
        outputs: Channels that come out.
    """

    name: str
    kind: LayerKind
    inputs: int
    outputs: int

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dump`."""
        return {"name": self.name, "kind": self.kind.to_json(), "inputs": self.inputs, "outputs": self.outputs}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Layer:
        """The inverse of `to_json`."""
        return cls(data["name"], LayerKind.from_json(data["kind"]), data["inputs"], data["outputs"])

    @property
    def weights(self) -> int:
        """How many there are."""
        groups = self.inputs if self.kind.groups == DEPTHWISE else self.kind.groups
        return self.inputs // groups * self.outputs * prod(self.kind.kernel)

    @property
    def weight_bytes(self) -> int:
        """Size of its weights."""
        return self.weights * (1 if self.kind.precision == "int8" else 4)

    @property
    def output_values(self) -> int:
        """How many numbers come out."""
        return self.outputs * self.kind.places[0] * (1 if self.kind.product else prod(self.kind.outputs))

    @property
    def macs(self) -> int:
        """Multiply-adds of one call."""
        kind = self.kind
        # A value that goes into a transposed convolution meets as many weights as one that comes out of another.
        sizes = kind.places[1:] if kind.transposed else kind.outputs
        return self.weights * kind.places[0] * (1 if kind.product else prod(sizes))


def pair_of(layer: Layer, rank: int, *, spatial: bool) -> tuple[Layer, Layer]:
    """The two layers of a low-rank pair that stand for a layer.

    Args:
        layer: In one group.
        rank: Channels between the two.
        spatial: Whether the first one has the kernel's height and the second one its width; else the first one has all
            of it, and the second one is 1x1.
    """
    kind = layer.kind
    if kind.product:
        return replace(layer, outputs=rank), replace(layer, inputs=rank)
    batch, _, width = kind.places
    if spatial:
        made = None if kind.made is None else (kind.made[0], width)
        first = replace(kind, kernel=(kind.kernel[0], 1), stride=(kind.stride[0], 1), made=made)
        between = (batch, kind.outputs[0], width)
        second = replace(kind, kernel=(1, kind.kernel[1]), stride=(1, kind.stride[1]), places=between)
    else:
        places = (batch, *kind.outputs)
        first, second = kind, replace(kind, kernel=(1, 1), stride=(1, 1), places=places, made=None)
    return replace(layer, kind=first, outputs=rank), replace(layer, kind=second, inputs=rank)


@dataclass(frozen=True)
class Exported:
    """A model as it was exported.

    Attributes:
        layers: In the order in which they run.
        sizes: How many numbers every node makes, layers included, by its name.
    """

    layers: tuple[Layer, ...]
    sizes: Mapping[str, int]


def read_exported(model: Path | bytes, feeds: Mapping[str, Array]) -> Exported:
    """What a model does before ONNX Runtime rewrites it.

    What is neither a convolution along one or two axes nor a product with a matrix of weights is no layer. A dilation
    cannot be told from a trace: such a layer counts as one without, and is measured as one where padding leads to its
    size.

    Args:
        model: An .onnx file, in float or with Q/DQ pairs, or its content.
        feeds: Its inputs by name.

    Raises:
        UsageError: If the inputs do not fit.
        ModelFileError: If ONNX Runtime cannot load or run the model, or if its profile cannot be read.
    """
    settings = SessionSettings(optimization_level="disabled")
    operands = read_operands(model, settings, open_session(model, settings), feeds)
    nodes = {key[-1][1]: (key[-1][2], one) for key, one in operands.items() if len(key) == 1}
    found = (layer_of(name, op_type, one) for name, (op_type, one) in nodes.items())
    sizes = {name: sum(prod(out.shape) for out in one.outputs) for name, (_, one) in nodes.items()}
    return Exported(tuple(layer for layer in found if layer is not None), sizes)


def layer_of(name: str, op_type: str, operands: Operands) -> Layer | None:
    """A node as a layer; None if it is something else.

    Args:
        name: Of the node.
        op_type: Of the node; also a fused one.
        operands: What it works on, in the layout of the standard.
    """
    if op_type in _CONVOLUTIONS:
        return _convolution(name, *_CONVOLUTIONS[op_type], operands)
    if op_type in _TRANSPOSED:
        return _convolution(name, *_TRANSPOSED[op_type], operands, transposed=True)
    if op_type in _PRODUCTS:
        return _product(name, *_PRODUCTS[op_type], operands)
    return None


@dataclass(frozen=True)
class Work:
    """What tells a layer from others wherever it is found, whatever the memory layout and the precision.

    Attributes:
        kernel: Height and width.
        inputs: Channels that one output reads, in blocks.
        outputs: Channels that come out, in blocks.
        places: Of the output, all samples together.
        axes: That a convolution goes along; none of a matrix product.
        transposed: Whether it is a transposed convolution.
    """

    kernel: tuple[int, int]
    inputs: int
    outputs: int
    places: int
    axes: int
    transposed: bool = False


def work_of_layer(layer: Layer) -> Work:
    """The work of a layer."""
    kind = layer.kind
    groups = layer.inputs if kind.groups == DEPTHWISE else kind.groups
    places = kind.places[0] if kind.product else kind.places[0] * prod(kind.outputs)
    axes = 0 if kind.product else 1 if kind.sequence else 2
    inputs, outputs = _blocks(layer.inputs // groups), _blocks(layer.outputs)
    return Work(kind.kernel, inputs, outputs, places, axes, kind.transposed)


def work_of_node(node: Operation) -> tuple[Precision, Work] | None:
    """The precision and the work of a node of an optimized graph, whose channels may have been filled up.

    None if it is no layer, or if the trace lacks its weights.
    """
    if node.op_type in {**_CONVOLUTIONS, **_TRANSPOSED}:
        precision, place = {**_CONVOLUTIONS, **_TRANSPOSED}[node.op_type]
        if len(node.inputs) > place and len(weight := node.inputs[place].shape) in (_SEQUENCE_RANK, _IMAGE_RANK):
            outputs, inputs, *kernel = weight
            if transposed := node.op_type in _TRANSPOSED:
                # [inputs, outputs of a group, *kernel]; on a CPU its layout is that of the standard.
                whole_inputs, outputs = weight[0], node.outputs[0].shape[1]
                inputs = whole_inputs * weight[1] // outputs
            places = prod(node.outputs[0].shape) // outputs
            work = Work(_two_axes(kernel), _blocks(inputs), _blocks(outputs), places, len(kernel), transposed)
            return precision, work
    if node.op_type in _PRODUCTS:
        precision, place = _PRODUCTS[node.op_type]
        if len(node.inputs) > place and len(node.inputs[place].shape) == _MATRIX_RANK:
            out = node.outputs[0].shape
            return precision, Work((1, 1), _blocks(summed(node)), _blocks(out[-1]), prod(out[:-1]), axes=0)
    return None


def _blocks(channels: int) -> int:
    """Whole blocks; 0 for the colours of an image, whose layout is never blocked."""
    return 0 if channels <= _COLOURS else -(-channels // _BLOCK)


def _convolution(
    name: str, precision: Precision, place: int, operands: Operands, *, transposed: bool = False
) -> Layer | None:
    shapes = [tensor.shape for tensor in operands.inputs]
    if len(shapes) <= place or len(shapes[0]) not in (_SEQUENCE_RANK, _IMAGE_RANK):
        return None
    if len(shapes[place]) != len(shapes[0]):
        return None
    (batch, inputs, *size), weight, (_, outputs, *made) = shapes[0], shapes[place], operands.outputs[0].shape
    groups = outputs // weight[1] if transposed else inputs // weight[1]
    kernel, places, comes_out = _two_axes(weight[2:]), _two_axes(size), _two_axes(made)
    stride_of = _transposed_stride if transposed else _stride
    down, across = (stride_of(*each) for each in zip(places, comes_out, kernel, strict=True))
    usual = _usual_size(places, (down, across), transposed=transposed)
    kind = LayerKind(
        precision=precision,
        kernel=kernel,
        stride=(down, across),
        groups=DEPTHWISE if groups == inputs == outputs and groups > 1 else groups,
        places=(batch, *places),
        made=None if comes_out == usual else comes_out,
        transposed=transposed,
        sequence=len(size) == 1,
    )
    return Layer(name, kind, inputs, outputs)


def _two_axes(sizes: Sequence[int]) -> tuple[int, int]:
    """Height and width; the only one is the width."""
    return (1, sizes[0]) if len(sizes) == 1 else (sizes[0], sizes[1])


def _stride(size: int, made: int, kernel: int) -> int:
    """The stride that leads from one size to the other, if possible with the padding that keeps the size at stride 1.

    Else it is the smallest one with a padding of less than the kernel.
    """
    for stride in range(1, size + 1):
        if -(-size // stride) == made:
            return stride
    for stride in range(1, size + 1):
        if -stride < (made - 1) * stride + kernel - size < kernel:
            return stride
    return 1


def _transposed_stride(size: int, made: int, kernel: int) -> int:
    """The stride that leads from one size to the other, if possible with the padding that multiplies the size by it.

    Else it is the smallest one with a padding of less than the kernel on either side.
    """
    if made % size == 0 and made >= size:
        return made // size
    for stride in range(1, made + 1):
        if -stride < (size - 1) * stride + kernel - made <= 2 * (kernel - 1):
            return stride
    return 1


def _usual_size(sizes: tuple[int, int], stride: tuple[int, int], *, transposed: bool) -> tuple[int, int]:
    """What comes out with paddings that keep the size at stride 1."""
    (height, width), (down, across) = sizes, stride
    if transposed:
        return height * down, width * across
    return -(-height // down), -(-width // across)


def _product(name: str, precision: Precision, place: int, operands: Operands) -> Layer | None:
    shapes = [tensor.shape for tensor in operands.inputs]
    if len(shapes) <= place or len(shapes[place]) != _MATRIX_RANK or len(shapes[0]) < _MATRIX_RANK:
        return None
    inputs, out = shapes[0][-1], operands.outputs[0].shape
    kind = LayerKind(precision, (1, 1), (1, 1), 1, (prod(shapes[0][:-1]), 1, 1), product=True)
    return Layer(name, kind, inputs, out[-1])


def _times(sizes: tuple[int, ...]) -> str:
    return "x".join(map(str, sizes))
