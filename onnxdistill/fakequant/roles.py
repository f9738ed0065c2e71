"""What the tensors of a QDQ graph are for training: weights, biases, scales that are trained, and all that stays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from onnxdistill.fakequant.graph import DEQUANTIZE, QUANTIZE, Graph
from onnxdistill.fakequant.node import Node
from onnxdistill.fakequant.rounding import Levels

WeightBits = Literal[7, 8]

# Symmetric, as ONNX Runtime's quantizer makes weights.
_LARGEST_WEIGHT: Mapping[WeightBits, int] = {7: 64, 8: 127}
# Of a layer: its weight and its bias in float.
_TRAINED_INPUTS: Mapping[str, tuple[int, ...]] = {
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "Gemm": (1, 2),
    "MatMul": (0, 1),
    "BatchNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "LayerNormalization": (1, 2),
    QUANTIZE: (0,),
}
# The quantizer treats them alike: input, weight, bias.
_WITH_BIAS = frozenset({"Conv", "ConvTranspose", "Gemm", "BatchNormalization"})
# The largest that float32 holds below 2**31.
_LARGEST_INT32 = 2**31 - 2**7
# Of a bias' scale, relative to the product of those of its layer.
_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Weight:
    """Integers in the file that are trained.

    Attributes:
        scale: Name of the initializer that holds the scale.
        levels: What they are rounded to.
    """

    scale: str
    levels: Levels


@dataclass(frozen=True)
class Bias:
    """The integers of a layer's bias; its scale is always that of the layer's input times that of its weight.

    Attributes:
        scale: Name of the initializer that holds the scale.
        input_scale: The same of the layer's input.
        weight_scale: The same of its weight.
        levels: What they are rounded to.
    """

    scale: str
    input_scale: str
    weight_scale: str
    levels: Levels


@dataclass(frozen=True)
class Roles:
    """What is trained in a graph, and how; tensors are known by their names.

    Attributes:
        pairs: Outputs of a QuantizeLinear that nothing reads but DequantizeLinear of the same scale; and what comes out
            of these.
        weights: Initializers that are trained as integers.
        biases: The same, of biases.
        floats: Initializers that are trained in float32.
        scales: Initializers of scales that are trained.
    """

    pairs: Mapping[str, tuple[str, ...]]
    weights: Mapping[str, Weight]
    biases: Mapping[str, Bias]
    floats: tuple[str, ...]
    scales: tuple[str, ...]


def find_roles(graph: Graph, weight_bits: WeightBits | None) -> Roles:
    """Reads off a graph what can be trained.

    A scale is trained if all that is done with it is rounding to integers and turning these into real numbers at once.
    Where integers are computed with, as in hard-swish, other constants follow from the scale, and it stays. So it does
    in a layer whose bias has another scale than the product of those of its input and of its weight.

    Args:
        graph: In QDQ form.
        weight_bits: Of weights of symmetric int8; None for those that the file has.

    Raises:
        UnsupportedOperatorError: If scales or zero points are not of the kinds that are known here.
    """
    for node in graph.of_type(QUANTIZE, DEQUANTIZE):
        levels_of(graph, node)
    pairs = dict(_pairs(graph))
    sources = {name: node for name, node in _integer_sources(graph).items() if _is_read_one_way(graph, name)}
    bits = weight_bits or _bits_of([graph.arrays[name] for name in sources])
    biases, frozen = _biases(graph, sources)
    weights = {
        name: Weight(node.input(1), _weight_levels(graph, name, node, bits))
        for name, node in sources.items()
        if graph.arrays[name].dtype != np.int32
    }
    trained = [node for name, node in sources.items() if name in weights or name in biases]
    at_once = {output for outputs in pairs.values() for output in outputs} | {node.outputs[0] for node in trained}
    at_once |= pairs.keys()
    kept = {node.input(1) for node in graph.of_type(QUANTIZE, DEQUANTIZE) if node.outputs[0] not in at_once} | frozen
    kept |= {bias.scale for bias in biases.values()}
    scales = dict.fromkeys(node.input(1) for node in graph.of_type(QUANTIZE, DEQUANTIZE))
    return Roles(
        pairs,
        weights,
        biases,
        tuple(_floats(graph)),
        tuple(name for name in scales if name not in kept and _is_only_a_scale(graph, name)),
    )


def levels_of(graph: Graph, node: Node) -> Levels:
    """All integers of the type that a QuantizeLinear or DequantizeLinear has.

    Raises:
        UnsupportedOperatorError: If the type, or the way that scales are laid out, is not known here.
    """
    for setting in ("block_size", "output_dtype", "precision"):
        node.require(setting, 0)
    graph.scale_of(node)
    zero, dtype = graph.zero_point_of(node)
    if dtype.kind not in "iu":
        node.refuse(f"type {dtype}")
    limits = np.iinfo(dtype)
    return Levels(zero, int(limits.min) - zero, min(int(limits.max), _LARGEST_INT32) - zero, node.get("axis", 1))


def _pairs(graph: Graph) -> Iterator[tuple[str, tuple[str, ...]]]:
    for node in graph.of_type(QUANTIZE):
        uses = graph.uses(node.outputs[0])
        same = uses and all(
            use.node.op_type == DEQUANTIZE and use.place == 0 and _settings(use.node) == _settings(node) for use in uses
        )
        if same and node.outputs[0] not in graph.outputs:
            yield node.outputs[0], tuple(use.node.outputs[0] for use in uses)


def _settings(node: Node) -> tuple[str, str, int]:
    return node.input(1), node.input(2), node.get("axis", 1)


def _integer_sources(graph: Graph) -> dict[str, Node]:
    """Initializers that are turned into real numbers, and a node that does so; not of single numbers."""
    nodes = graph.of_type(DEQUANTIZE)
    return {node.input(0): node for node in nodes if node.input(0) in graph.arrays and graph.arrays[node.input(0)].ndim}


def _is_read_one_way(graph: Graph, name: str) -> bool:
    uses = graph.uses(name)
    return len({(use.node.op_type, use.place, *_settings(use.node)) for use in uses}) == 1


def _is_only_a_scale(graph: Graph, name: str) -> bool:
    return all(use.place == 1 and use.node.op_type in (QUANTIZE, DEQUANTIZE) for use in graph.uses(name))


def _bits_of(arrays: list[NDArray[Any]]) -> WeightBits:
    largest = [int(np.abs(array.astype(np.int64)).max()) for array in arrays if array.dtype == np.int8 and array.size]
    return 7 if largest and max(largest) <= _LARGEST_WEIGHT[7] else 8


def _weight_levels(graph: Graph, name: str, node: Node, bits: WeightBits) -> Levels:
    levels, array = levels_of(graph, node), graph.arrays[name]
    if array.dtype != np.int8 or levels.zero_point:
        return levels
    largest = _LARGEST_WEIGHT[bits]
    # Another quantizer may have used -128, too.
    return Levels(0, -128 if bits == 8 and array.min(initial=0) == -128 else -largest, largest, levels.axis)


def _biases(graph: Graph, sources: Mapping[str, Node]) -> tuple[dict[str, Bias], set[str]]:
    """Biases that follow their layers; and scales of layers whose bias does not, which then must stay."""
    biases: dict[str, Bias] = {}
    frozen: set[str] = set()
    for node in graph.of_type(*_WITH_BIAS):
        maker = graph.maker(node.input(2))
        if maker is None or maker.op_type != DEQUANTIZE:
            continue
        scales = _scale_behind(graph, node.input(0)), _scale_behind(graph, node.input(1))
        name = maker.input(0)
        if name in sources and graph.arrays[name].dtype == np.int32 and _follows(graph, maker, scales):
            levels = levels_of(graph, maker)
            biases[name] = Bias(maker.input(1), *scales, Levels(0, levels.lowest, levels.highest, 0))
        else:
            frozen |= {scale for scale in scales if scale}
    return biases, frozen


def _scale_behind(graph: Graph, name: str) -> str:
    maker = graph.maker(name)
    return maker.input(1) if maker is not None and maker.op_type == DEQUANTIZE else ""


def _follows(graph: Graph, maker: Node, scales: tuple[str, str]) -> bool:
    """Whether a bias is that of one layer alone, and its scale the product of those of the layer."""
    if not all(scales) or len(graph.uses(maker.input(1))) > 1 or len(graph.uses(maker.outputs[0])) > 1:
        return False
    if graph.zero_point_of(maker)[0]:
        return False
    product = np.ravel(graph.arrays[scales[0]] * graph.arrays[scales[1]])
    own = np.ravel(graph.scale_of(maker))
    return product.shape == own.shape and bool(np.allclose(product, own, rtol=_TOLERANCE, atol=0))


def _floats(graph: Graph) -> Iterator[str]:
    """Weights and biases of layers that are left in float."""
    found: dict[str, None] = {}
    for node in graph.of_type(*_TRAINED_INPUTS):
        for index in _TRAINED_INPUTS[node.op_type]:
            array = graph.arrays.get(node.input(index))
            if array is not None and array.ndim and array.dtype == np.float32:
                found[node.input(index)] = None
    return iter(found)
