"""Saturation in 16 bits: what int8 layers compute on x86-64 processors without VNNI, and where that is wrong.

Without VNNI, ONNX Runtime multiplies uint8 activations by int8 weights with `vpmaddubsw`, which adds two neighbouring
products in signed 16 bits, saturates, and is widened to 32 bits only then. 2 * 255 * 127 = 64,770 does not fit, so that
the same file has other answers than on a processor with VNNI (onnxruntime#5849, #14642). Weights of 7 bits always fit:
2 * 255 * 64 = 32,640.

Neighbours are the products 2i and 2i + 1 of a sum, whatever the number of rows and columns, the kernel (AVX2,
AVX512BW) and the way to it. A matrix product adds along K. A convolution adds over the positions of its kernel, and
within one over the channels of the group; where their number is odd, pairs reach over to the next position. These
layers are exact:

- depthwise convolutions with one output for each channel, whose kernels add in 32 bits;
- layers of int8 activations, or of uint8 weights. But int8 activations become uint8 ones as a rule: where a
  `QuantizeLinear` has a single reader, ONNX Runtime adds 128 to them. Layers of all others it computes in float.

ONNX Runtime 1.32 agrees with this description bit by bit, with the kernels for AVX2 (the tests run them) and with those
for AVX512BW: in all 203 layers of six networks, among them MobileNetV3-small and RegNet, in 6.7 million values. Its own
way out, the session option `session.x64quantprecision`, is uint8 weights: exact and slower, with VNNI too, where
ResNet-56 for CIFAR-10 takes at least twice as long.
"""

from __future__ import annotations

import math
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from onnx import TensorProto, helper

from onnxdistill.device.modelfile import explain_load_failure
from onnxdistill.device.session import Session, open_session
from onnxdistill.errors import DataError, ModelFileError
from onnxdistill.quantization.calibration import Feeds
from onnxdistill.quantization.constants import add_constant, constant, input_of

LEAST, MOST = -(2**15), 2**15 - 1
"""Between which the sum of two products stays as it is."""

Integers = NDArray[np.integer[Any]]
Sums = NDArray[np.int64]
Floats = NDArray[np.float64]

_LARGEST_ACTIVATION = 255
_ANY_WEIGHT = np.array([127, -128])
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
# Sums of two products at once: some copies of them have to fit into memory.
_PIECE = 1 << 21


@dataclass(frozen=True, eq=False)
class IntegerLayer(ABC):
    """A layer that adds products of uint8 and int8 in pairs.

    Attributes:
        name: Of the node in the quantized model.
        activation: The uint8 tensor that it reads, in the graph that ONNX Runtime makes of the model.
        weight: The int8 tensor there.
        weights: Its values, as the operator takes them; None if they are computed.
        most: What no activation exceeds, as far as the graph tells; at most 255.
        zero_point: Of the activations; padding has this value.
        weight_zero_point: A number, or one for every output channel or column.
        weight_scale: Like it.
        attributes: Of the operator.
        top_level: Whether it is not in a branch of an `If` or the body of a `Loop`.
    """

    name: str
    activation: str
    weight: str
    weights: Integers | None
    most: int
    zero_point: int
    weight_zero_point: Sums
    weight_scale: Floats
    attributes: Mapping[str, Any] = field(repr=False)
    top_level: bool = True

    def share_saturating(self) -> float:
        """Share of the pairs of weights whose sum can leave 16 bits; 0 is a proof that none ever does.

        For every pair, the worst activations are tried: the largest one for weights of one sign, 0 for the others.
        Weights that are computed may be anything.
        """
        first, second = (_ANY_WEIGHT, _ANY_WEIGHT) if self.weights is None else _halves(self.matrices(self.weights))
        pairs = _can_saturate(first, second, self.most)
        return float(pairs.mean()) if pairs.size else 0.0

    def compute(self, activations: Integers, weights: Integers | None = None, *, saturating: bool = True) -> Sums:
        """The layer's sums of products, before bias and scales.

        Args:
            activations: uint8, as the operator takes them.
            weights: Only if they are computed.
            saturating: As without VNNI; else exact.

        Returns:
            Integers in the shape of the layer's output.
        """
        given = self.known(weights)
        parts = []
        for left, right in self.products(activations, given):
            sums = self.exact(left, right)
            parts.append(sums - _taken(left, right)[0] if saturating else sums)
        return self.assemble(parts, activations, given)

    def known(self, weights: Integers | None) -> Integers:
        """The layer's own weights, or those that are given."""
        chosen = weights if self.weights is None else self.weights
        if chosen is None:
            raise ValueError(f"The weights of {self.name} are computed, and have to be given.")
        return chosen

    def exact(self, left: Integers, right: Integers) -> Sums:
        """The exact sums of a product of matrices [G, M, K] and [G, K, N], with zero points.

        Below 2 ** 53, integers are exact in float64, whose products of matrices are many times faster.
        """
        centred = right.astype(np.float64) - self.over_columns(self.weight_zero_point, right)
        product: Sums = ((left.astype(np.float64) - self.zero_point) @ centred).astype(np.int64)
        return product

    @abstractmethod
    def matrices(self, weights: Integers) -> Integers:
        """Weights as [G, K, N], K in the order in which products are added."""

    @abstractmethod
    def products(self, activations: Integers, weights: Integers) -> Iterator[tuple[Integers, Integers]]:
        """The layer as products of matrices [G, M, K] and [G, K, N]."""

    @abstractmethod
    def assemble(self, parts: list[Sums], activations: Integers, weights: Integers) -> Sums:
        """The layer's output from those of the products, [G, M, N] each."""

    @abstractmethod
    def over_columns(self, numbers: NDArray[Any], right: Integers) -> NDArray[Any]:
        """Numbers of output channels or columns, for all of [G, M, N]."""


class _MatrixProduct(IntegerLayer):
    """`MatMul` and `Gemm`."""

    def matrices(self, weights: Integers) -> Integers:
        matrix = self._right(weights)
        return matrix.reshape(-1, *matrix.shape[-2:])

    def products(self, activations: Integers, weights: Integers) -> Iterator[tuple[Integers, Integers]]:
        left, right = self._left(activations), self._right(weights)
        if right.ndim == 2:
            yield left.reshape(1, -1, left.shape[-1]), right[np.newaxis]
            return
        stack = np.broadcast_shapes(left.shape[:-2], right.shape[:-2])
        stacked = (np.broadcast_to(each, stack + each.shape[-2:]) for each in (left, right))
        first, second = (each.reshape(-1, *each.shape[-2:]) for each in stacked)
        yield first, second

    def assemble(self, parts: list[Sums], activations: Integers, weights: Integers) -> Sums:
        left, right = self._left(activations), self._right(weights)
        stack = np.broadcast_shapes(left.shape[:-2], right.shape[:-2])
        rows = left.shape[-2:-1] if activations.ndim > 1 else ()
        columns = right.shape[-1:] if weights.ndim > 1 else ()
        return parts[0].reshape(stack + rows + columns)

    def over_columns(self, numbers: NDArray[Any], right: Integers) -> NDArray[Any]:
        return numbers.reshape(-1, 1, right.shape[2] if numbers.size > 1 else 1)

    def _left(self, activations: Integers) -> Integers:
        matrix = activations if activations.ndim > 1 else activations[np.newaxis]
        return matrix.T if self.attributes.get("transA", 0) else matrix

    def _right(self, weights: Integers) -> Integers:
        matrix = weights if weights.ndim > 1 else weights[:, np.newaxis]
        return matrix.T if self.attributes.get("transB", 0) else matrix


class _Convolution(IntegerLayer):
    """`Conv` of any rank, groups too; as a product of matrices for every image, with G groups and M places."""

    def matrices(self, weights: Integers) -> Integers:
        groups = self.attributes.get("group", 1)
        rows = np.moveaxis(weights, 1, -1).reshape(groups, len(weights) // groups, -1)
        return np.swapaxes(rows, 1, 2)

    def products(self, activations: Integers, weights: Integers) -> Iterator[tuple[Integers, Integers]]:
        right = self.matrices(weights)
        window = _Window.of(self.attributes, activations.shape[2:], weights.shape[2:])
        for image in activations:
            padded = np.pad(image, [(0, 0), *window.pads], constant_values=self.zero_point)
            seen = window.over(padded).reshape(-1, math.prod(weights.shape[2:]), len(right), weights.shape[1])
            yield seen.transpose(2, 0, 1, 3).reshape(len(right), len(seen), -1), right

    def assemble(self, parts: list[Sums], activations: Integers, weights: Integers) -> Sums:
        sizes = _Window.of(self.attributes, activations.shape[2:], weights.shape[2:]).places
        return np.stack([np.swapaxes(part, 1, 2).reshape(-1, *sizes) for part in parts])

    def over_columns(self, numbers: NDArray[Any], right: Integers) -> NDArray[Any]:
        return numbers.reshape((len(right), 1, right.shape[2]) if numbers.size > 1 else (1, 1, 1))


@dataclass(frozen=True)
class _Window:
    """How the kernel of a convolution goes over an image.

    Attributes:
        pads: Before and behind, of every dimension.
        extents: From the first position in the kernel to the last.
        strides: Between places.
        dilations: Between positions in the kernel.
        places: How many there are, along every dimension.
    """

    pads: list[tuple[int, int]]
    extents: list[int]
    strides: list[int]
    dilations: list[int]
    places: list[int]

    @classmethod
    def of(cls, attributes: Mapping[str, Any], sizes: tuple[int, ...], kernel: tuple[int, ...]) -> _Window:
        """Of a convolution with these attributes, for an image and a kernel of these sizes."""
        strides, dilations = (list(attributes.get(name, [1] * len(kernel))) for name in ("strides", "dilations"))
        extents = [(size - 1) * step + 1 for size, step in zip(kernel, dilations, strict=True)]
        given, automatic = attributes.get("pads", [0] * 2 * len(kernel)), attributes.get("auto_pad", "NOTSET")
        pads = list(zip(given[: len(kernel)], given[len(kernel) :], strict=True))
        if automatic.startswith("SAME"):
            places = [math.ceil(size / step) for size, step in zip(sizes, strides, strict=True)]
            needed = [(count - 1) * step + extent for count, step, extent in zip(places, strides, extents, strict=True)]
            missing = [max(0, need - size) for need, size in zip(needed, sizes, strict=True)]
            halves = [(each // 2, each - each // 2) for each in missing]
            pads = [pad if automatic == "SAME_UPPER" else pad[::-1] for pad in halves]
        padded = [size + sum(pad) for size, pad in zip(sizes, pads, strict=True)]
        places = [(size - extent) // step + 1 for size, extent, step in zip(padded, extents, strides, strict=True)]
        return cls(pads, extents, strides, dilations, places)

    def over(self, padded: Integers) -> Integers:
        """What the kernel sees of an image [C, ...]: [*places, *positions, C]."""
        rank = len(self.extents)
        windows = sliding_window_view(padded, self.extents, tuple(range(1, rank + 1)))
        steps = (slice(None, None, step) for step in (*self.strides, *self.dilations))
        return np.moveaxis(windows[(slice(None), *steps)], 0, -1)


@dataclass(frozen=True)
class Saturation:
    """How often a layer saturates on given inputs, and what that does to its outputs.

    Attributes:
        sums: Sums of two products that were computed.
        saturated: How many of them left 16 bits.
        outputs: Values that the layer returned.
        changed: How many of them are wrong.
        relative_error: Root of the mean square of what is wrong over that of the exact outputs, without the bias.
    """

    sums: int
    saturated: int
    outputs: int
    changed: int
    relative_error: float


def find_integer_layers(model: onnx.ModelProto) -> tuple[IntegerLayer, ...]:
    """The layers of a quantized model that add products of uint8 and int8 in pairs, where there is no VNNI.

    They are read off the graph that ONNX Runtime makes of the model for x86-64, on whatever machine this runs.

    Args:
        model: Quantized statically, by Q/DQ pairs or integer operators.

    Raises:
        ModelFileError: If ONNX Runtime cannot load the model, or if a layer is quantized dynamically.
    """
    return _layers_of(_as_run(model))


def saturating_layers(model: onnx.ModelProto) -> dict[str, float]:
    """Which layers can saturate where there is no VNNI, for some input.

    Args:
        model: Quantized statically, by Q/DQ pairs or integer operators.

    Returns:
        The share of the pairs of weights that can, by the names of the layers. Empty: a proof that no sum ever
        saturates, so that answers are those of a processor with VNNI.

    Raises:
        ModelFileError: If ONNX Runtime cannot load the model, or if a layer is quantized dynamically.
    """
    shares = {layer.name: layer.share_saturating() for layer in find_integer_layers(model)}
    return {name: share for name, share in shares.items() if share > 0}


def count_saturation(model: onnx.ModelProto, batches: Iterable[Feeds]) -> dict[str, Saturation]:
    """How often layers saturate on given inputs, every layer by itself: its own inputs are exact.

    Args:
        model: Quantized statically, by Q/DQ pairs or integer operators.
        batches: Inputs by name; read once. A batch is in memory with the inputs of all layers that can saturate.

    Returns:
        By the names of the layers that can saturate; not of those in branches and loops.

    Raises:
        DataError: If there is no batch.
        ModelFileError: If ONNX Runtime cannot load the model, or if a layer is quantized dynamically.
        UsageError: If an input is not what the model takes.
    """
    as_run = _as_run(model)
    layers = [layer for layer in _layers_of(as_run) if layer.top_level and layer.share_saturating() > 0]
    if not layers:
        return {}
    counts = {layer.name: _Count(layer) for layer in layers}
    session = _open_exact(as_run, layers)
    seen = False
    for feeds in batches:
        seen = True
        tensors = {**feeds, **session.run(feeds)}
        for layer in layers:
            counts[layer.name].add(tensors[layer.activation], tensors.get(layer.weight))
    if not seen:
        raise DataError("There is no sample to count saturation on.", "Give at least one.")
    return {name: count.result() for name, count in counts.items()}


class _Count:
    """What `Saturation` holds, while it is counted."""

    def __init__(self, layer: IntegerLayer) -> None:
        self._layer = layer
        self._sums = self._saturated = self._outputs = self._changed = 0
        self._wrong = self._all = 0.0

    def add(self, activations: Integers, weights: Integers | None) -> None:
        layer = self._layer
        for left, right in layer.products(activations, layer.known(weights)):
            taken, saturated = _taken(left, right)
            scale = layer.over_columns(layer.weight_scale, right)
            self._sums += taken.size * (left.shape[2] // 2)
            self._saturated += saturated
            self._outputs += taken.size
            self._changed += int(np.count_nonzero(taken))
            self._wrong += float(np.square(taken * scale).sum())
            self._all += float(np.square(layer.exact(left, right) * scale).sum())

    def result(self) -> Saturation:
        error = math.sqrt(self._wrong / self._all) if self._all else math.inf if self._wrong else 0.0
        return Saturation(self._sums, self._saturated, self._outputs, self._changed, error)


def _halves(weights: Integers) -> tuple[Integers, Integers]:
    """The first and the second weight of every pair, [G, pairs, N]. The last one of an odd K is alone, and fits."""
    return weights[:, : weights.shape[1] // 2 * 2 : 2], weights[:, 1::2]


def _can_saturate(first: Integers, second: Integers, most: int) -> NDArray[np.bool_]:
    wide = [half.astype(np.int32) for half in (first, second)]
    highest = most * sum(np.maximum(half, 0) for half in wide)
    lowest = most * sum(np.minimum(half, 0) for half in wide)
    return np.asarray((highest > MOST) | (lowest < LEAST))


def _taken(left: Integers, right: Integers) -> tuple[Sums, int]:
    """What saturation takes from the sums of products, and how many sums of two products it happens to.

    Only the pairs of weights that can saturate are looked at: of trained weights, few.

    Args:
        left: uint8, [G, M, K].
        right: int8, [G, K, N].

    Returns:
        [G, M, N], and the number.
    """
    groups, rows, _depth = left.shape
    taken: Sums = np.zeros((groups, rows, right.shape[2]), np.int64)
    saturated = 0
    first, second = _halves(right)
    possible = _can_saturate(first, second, _LARGEST_ACTIVATION)
    for group in range(groups):
        columns, pairs = np.nonzero(possible[group].T)  # column by column
        if not columns.size:
            continue
        starts = np.flatnonzero(np.diff(columns, prepend=-1))
        weights = [half[group, pairs, columns].astype(np.int32) for half in (first, second)]
        step = max(1, _PIECE // columns.size)
        for row in range(0, rows, step):
            part = left[group, row : row + step]
            sums = part[:, 2 * pairs] * weights[0] + part[:, 2 * pairs + 1] * weights[1]
            excess = sums - np.clip(sums, LEAST, MOST)
            saturated += int(np.count_nonzero(excess))
            taken[group][row : row + step, columns[starts]] = np.add.reduceat(excess, starts, axis=1)
    return taken, saturated


def _as_run(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph that ONNX Runtime makes of a model for x86-64, but for changes of layout."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.log_severity_level = 4
    options.add_session_config_entry("session.qdqisint8allowed", "0")  # which is the default on x86-64
    with tempfile.TemporaryDirectory(prefix="onnxdistill-") as folder:
        path = Path(folder) / "as-run.onnx"
        options.optimized_model_filepath = str(path)
        try:
            onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime raises classes of its own, one for each of its status codes
            raise explain_load_failure(None, error, onnxruntime.__version__) from error
        return onnx.load(path)


def _open_exact(as_run: onnx.ModelProto, layers: list[IntegerLayer]) -> Session:
    """A session that returns what layers read, and saturates on no processor: with uint8 weights."""
    rewritten = ir.from_proto(as_run)
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


def _layers_of(as_run: onnx.ModelProto) -> tuple[IntegerLayer, ...]:
    graph = ir.from_proto(as_run).graph
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
    return (_Convolution if convolution else _MatrixProduct)(
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
        return _LARGEST_ACTIVATION
    if node.op_type in _KEEPING:
        return _largest(node.inputs[0])
    limit = _limit(node.inputs[0]) if node.op_type == "QuantizeLinear" else math.inf
    scale, zero = constant(input_of(node, 1)), constant(input_of(node, 2))
    if limit == math.inf or scale is None:
        return _LARGEST_ACTIVATION
    offset = 0 if zero is None else int(zero.item())
    return int(np.clip(np.rint(limit * (1 + _ROUNDING) / scale.item()) + offset, 0, _LARGEST_ACTIVATION))


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
