"""Cross-layer equalization: channels of a tensor get ranges alike, so that one scale fits all of them.

Source: Nagel et al. 2019, "Data-Free Quantization through Weight Equalization and Bias Correction", section 4.1.
Between two layers W1 and W2 with a function f between them for which f(x / s) = f(x) / s, channel i can be divided by
any s_i > 0 in W1 and its bias, and multiplied by it in W2. With

    s_i = sqrt(r1_i / r2_i),        r1_i = max |W1[i, :]|,        r2_i = max |W2[:, i]|

both weights have the range sqrt(r1_i r2_i) there. Without this, a channel that is a hundred times smaller than the next
has one level of 8 bits for itself where a tensor has one scale, as activations always do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from onnxdistill.quantization.constants import add_constant, constant, input_of, is_number, number_of, replace

# Between them and their inputs, a factor for each channel may change places.
_HOMOGENEOUS = frozenset({"Relu", "LeakyRelu", "PRelu", "Identity"})
_POOLING = frozenset({"MaxPool", "AveragePool", "GlobalMaxPool", "GlobalAveragePool"})
_FLATTENING = frozenset({"Flatten", "Reshape", "Squeeze"})
_MOST_ROUNDS = 50
# The logarithm of a factor below which another round isn't worth it.
_CONVERGED = 1e-3
# A channel is scaled by this at most: beyond, it is an outlier that a factor will not cure.
_LARGEST_FACTOR = 2.0**20
# By so much larger a bias, for the weights of its channel, than the layer's median says that the channel is nearly
# nothing but its bias. Scaled by its weights alone, it would be the outlier among the activations.
_BIAS_OUTLIER = 16.0

Array = NDArray[np.float64]


@dataclass(eq=False)
class _Layer:
    """A layer, and by what its channels are scaled.

    Attributes:
        node: `Conv`, `ConvTranspose` or `Gemm`.
        ranges: Largest magnitudes over the positions of the kernel, [groups, outputs, inputs].
        bias: Magnitudes, one for each output; None without a bias.
        outputs: What the channels of its output are divided by.
        inputs: What the channels of its input are multiplied by.
    """

    node: ir.Node
    ranges: Array
    bias: Array | None
    outputs: Array = field(init=False)
    inputs: Array = field(init=False)

    def __post_init__(self) -> None:
        groups, outputs, inputs = self.ranges.shape
        self.outputs, self.inputs = np.ones(groups * outputs), np.ones(groups * inputs)

    def scaled(self, blocks: Array) -> Array:
        """Weights or their ranges, [groups, outputs, inputs, ...], after scaling."""
        groups, outputs, inputs = self.ranges.shape
        rest = (1,) * (blocks.ndim - 3)
        scaled: Array = (
            blocks / self.outputs.reshape(groups, outputs, 1, *rest) * self.inputs.reshape(groups, 1, inputs, *rest)
        )
        return scaled

    def output_ranges(self) -> Array:
        """Of the weights, for every output channel, after scaling."""
        ranges: Array = self.scaled(self.ranges).max(axis=2).ravel()
        return ranges

    def input_ranges(self) -> Array:
        """Of the weights, for every input channel, after scaling."""
        ranges: Array = self.scaled(self.ranges).max(axis=1).ravel()
        return ranges

    def with_bias(self, ranges: Array) -> Array:
        """The ranges of the output channels, larger where a channel is nearly nothing but its bias.

        How large a bias is for the weights of its channel does not change by scaling: what is unusual is, too.
        """
        if self.bias is None:
            return ranges
        bias = self.bias / self.outputs
        live = (ranges > 0) & (bias > 0)
        if not live.any():
            return ranges
        usual = float(np.median(bias[live] / ranges[live]))
        return np.maximum(ranges, bias / (_BIAS_OUTLIER * usual))


class _Pair(NamedTuple):
    """Two layers with nothing between them that a factor could not pass.

    Attributes:
        first: Its output channels are scaled.
        second: Its input channels are scaled back.
        repeats: How many neighbouring inputs of the second layer a channel has: its pixels, once it is flattened.
        bounded: `Clip` nodes between them whose upper bound is in the way.
    """

    first: _Layer
    second: _Layer
    repeats: int
    bounded: tuple[ir.Node, ...]


def equalize(prepared: onnx.ModelProto, *, relu6_as_relu: bool = False) -> onnx.ModelProto:
    """Scales the channels between layers so that the weights on both sides have the same ranges.

    Between two layers may be `Relu`, `LeakyRelu`, `PRelu`, `Clip` from 0 without an upper bound, pooling and
    flattening, each read by one node alone. A layer may be in two pairs, as in the chains of MobileNets; these are gone
    through until nothing changes any more.

    A channel stays as it is if all of its weights in either layer are zero. A channel is scaled by 2 ** 20 at most.
    Where nearly nothing but its bias is left of a channel, as batch norms with a factor near zero leave it, the bias
    counts as a weight, so that it isn't made the largest of all activations.

    Args:
        prepared: The float model as `prepare` makes it, with batch norms folded and shapes known. It is not changed.
        relu6_as_relu: Pass through `Clip` with an upper bound as well, and drop the bound, as the paper does with the
            ReLU6 of MobileNetV2. Then outputs do change where the bound was in use.

    Returns:
        A model whose outputs are equal up to rounding in float32, with the same names.
    """
    model = ir.from_proto(prepared)
    pairs = _find_pairs(model.graph, relu6_as_relu)
    for _ in range(_MOST_ROUNDS if pairs else 0):
        if max(_balance(pair) for pair in pairs) < _CONVERGED:
            break
    for layer in {id(layer): layer for pair in pairs for layer in (pair.first, pair.second)}.values():
        _write(model.graph, layer)
    for node in (node for pair in pairs for node in pair.bounded):
        replace(model.graph, node, ir.node("Relu", [node.inputs[0]]))
    return ir.to_proto(model)


def find_pairs(prepared: onnx.ModelProto, *, relu6_as_relu: bool = False) -> list[tuple[str, str]]:
    """Names of the layers between which `equalize` scales channels, pair by pair; empty if it changes nothing."""
    pairs = _find_pairs(ir.from_proto(prepared).graph, relu6_as_relu)
    return [(str(pair.first.node.name), str(pair.second.node.name)) for pair in pairs]


def _balance(pair: _Pair) -> float:
    """Scales the channels between two layers; returns the largest logarithm of a factor."""
    first, second, repeats, _ = pair
    weights = first.output_ranges()
    reading = second.input_ranges().reshape(-1, repeats).max(axis=1)
    live = (weights > 0) & (reading > 0)
    writing = first.with_bias(weights)
    factor = np.sqrt(np.where(live, writing, 1.0)) / np.sqrt(np.where(live, reading, 1.0))
    factor = np.clip(first.outputs * factor, 1 / _LARGEST_FACTOR, _LARGEST_FACTOR) / first.outputs
    first.outputs *= factor
    second.inputs *= np.repeat(factor, repeats)
    return float(np.abs(np.log(factor)).max(initial=0.0))


def _find_pairs(graph: ir.Graph, relu6_as_relu: bool) -> list[_Pair]:
    layers = {node: layer for node in graph if (layer := _layer(node)) is not None}
    found = (_pair(layer, layers, relu6_as_relu) for layer in layers.values())
    return [pair for pair in found if pair is not None]


def _pair(first: _Layer, layers: dict[ir.Node, _Layer], relu6_as_relu: bool) -> _Pair | None:
    if first.bias is not None and first.bias.size != first.outputs.size:
        return None
    repeats, bounded = 1, []
    value = first.node.outputs[0]
    while (node := _only_reader(value)) is not None and node not in layers:
        times = _repeats(node)
        if times is None:
            if not relu6_as_relu or not _is_bounded_relu(node):
                return None
            bounded.append(node)
        repeats *= times or 1
        value = node.outputs[0]
    if node is None or first.outputs.size * repeats != layers[node].inputs.size:
        return None
    return _Pair(first, layers[node], repeats, tuple(bounded))


def _only_reader(value: ir.Value) -> ir.Node | None:
    """The one node that reads a value, as its first input; None if there are others."""
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output() or uses[0].idx != 0:
        return None
    node = uses[0].node
    return node if node.graph is value.graph else None


def _repeats(node: ir.Node) -> int | None:
    """How many neighbouring channels a node makes of each; None if a factor cannot pass it."""
    if node.op_type in _HOMOGENEOUS or node.op_type in _POOLING:
        return 1
    if node.op_type == "Clip":
        return 1 if is_number(input_of(node, 1), 0) and input_of(node, 2) is None else None
    return _pixels(node) if node.op_type in _FLATTENING else None


def _pixels(node: ir.Node) -> int | None:
    """Pixels of each channel, where a node makes [N, C * pixels] of [N, C, ...]; None if it does anything else."""
    before, after = (None if value is None else value.shape for value in (node.inputs[0], node.outputs[0]))
    if before is None or after is None or len(before) < 2 or len(after) != 2:
        return None
    sizes = [*before.dims[1:], after.dims[1]]
    known = [size for size in sizes if isinstance(size, int)]
    if len(known) < len(sizes) or math.prod(known[:-1]) != known[-1]:
        return None
    return math.prod(known[1:-1])


def _is_bounded_relu(node: ir.Node) -> bool:
    most = constant(input_of(node, 2)) if node.op_type == "Clip" else None
    return most is not None and is_number(input_of(node, 1), 0) and bool(most.item() > 0)


def _layer(node: ir.Node) -> _Layer | None:
    """A layer whose weight and bias are constants that may be changed."""
    if node.op_type not in ("Conv", "ConvTranspose", "Gemm") or number_of(node, "transA", 0):
        return None
    value, bias = input_of(node, 1), input_of(node, 2)
    weight, shift = constant(value), constant(bias)
    if value is None or weight is None or weight.dtype != np.float32 or len(value.uses()) > 1 or weight.size == 0:
        return None
    if value.is_graph_output() or (bias is not None and (shift is None or shift.dtype != np.float32)):
        return None
    ranges = np.abs(_blocks(node, weight)).max(axis=3).astype(np.float64)
    return _Layer(node, ranges, None if shift is None else np.abs(shift.astype(np.float64)).ravel())


def _blocks(node: ir.Node, weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """A weight as [groups, outputs, inputs, positions]; a view."""
    if node.op_type == "Gemm":
        return (weight if number_of(node, "transB", 0) else weight.T)[np.newaxis, :, :, np.newaxis]
    groups = int(number_of(node, "group", 1))
    blocks = weight.reshape(groups, len(weight) // groups, weight.shape[1], -1)
    return blocks.swapaxes(1, 2) if node.op_type == "ConvTranspose" else blocks


def _write(graph: ir.Graph, layer: _Layer) -> None:
    weight = constant(layer.node.inputs[1])
    if weight is None:
        return
    scaled = np.array(weight, order="C")
    blocks = _blocks(layer.node, scaled)
    blocks[...] = layer.scaled(blocks.astype(np.float64))
    _assign(graph, layer.node, 1, scaled)
    bias = constant(input_of(layer.node, 2))
    if bias is not None and bias.size == layer.outputs.size:
        _assign(graph, layer.node, 2, (bias / layer.outputs.reshape(bias.shape)).astype(np.float32))


def _assign(graph: ir.Graph, node: ir.Node, index: int, array: NDArray[np.float32]) -> None:
    """Gives a node another constant, which keeps its name unless other nodes read it as well."""
    value = node.inputs[index]
    old = constant(value)
    if value is None or old is None or np.array_equal(array, old):
        return
    if len(value.uses()) > 1 or value.is_graph_output():
        node.replace_input_with(index, add_constant(graph, f"{node.name}_bias", array))
    else:
        value.const_value = ir.tensor(array, name=value.name)
