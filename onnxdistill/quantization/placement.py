"""Which nodes at the beginning and at the end of a network are better left in float."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import onnx
import onnx_ir as ir

from onnxdistill.quantization.ranges import Range

# Of a convolution: how many products make an output, up to which the integer kernel isn't faster than the float one.
_FEW_PRODUCTS = 32
# Values at the end for each at the input, up to which the conversion there doesn't cost what is won.
_WIDER = 2
# Layers whose integer kernels pay, or whose products are not read off a shape.
_PRODUCTS = frozenset({"ConvTranspose", "Gemm", "MatMul", "Einsum", "LSTM", "GRU", "RNN", "Attention"})
# What moves values and doesn't change them.
_MOVES = frozenset({"Concat", "Flatten", "Gather", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"})
# One scale for parts of which one is so much wider than another takes two of its eight bits.
_UNLIKE = 4.0


def float_beginning(model: onnx.ModelProto) -> tuple[str, ...]:
    """Names of the nodes before the first convolution that gains by int8, as far as that saves time.

    A first convolution of 3 x 3 over three colours has 27 products an output. ONNX Runtime's integer kernel copies the
    pixels of each together three bytes at a time, and takes twice as long as the float kernel: 310 instead of 158 us
    in MobileNetV3-small, where the conversion, the change of the layout and the activation of what is the largest
    tensor come on top. Depthwise and narrow 1 x 1 convolutions that follow gain nothing in int8 either. Measured on one
    x86-64 processor with AVX512-VNNI, leaving these in float makes MobileNetV3-small 1.3 times faster,
    MobileNetV3-large 1.09, EfficientNet-B0 1.06 and MobileNetV2 1.04. A first convolution of 7 x 7 has 147 products:
    all of ResNet-18 is 1.5 times faster with it in int8, and nothing is left in float.

    The beginning ends where one tensor alone goes on into one layer, and before such a tensor that is larger than the
    one before: widening 1 x 1 convolutions gain, since they mostly write, and 8 bits are a quarter of 32. It doesn't
    end at a tensor that a residual sum reads as well, which then adds in another layout than the convolutions have:
    ResNet-56 for CIFAR-10 would be 4 % slower. Nor at one with more than twice as many values as the input, whose
    conversion takes what the convolution saves: VGG-16 for CIFAR-10 would gain nothing.

    Args:
        model: Float, with shapes and names; sizes other than the batch have to be fixed.

    Returns:
        Names to exclude from quantization; empty if there is no such beginning.
    """
    graph = ir.from_proto(model).graph
    unread = {value: len(value.uses()) for value in graph.inputs if not value.is_initializer()}
    limit = _WIDER * sum(map(_count, unread))
    nodes: list[str] = []
    best: tuple[str, ...] = ()
    least = math.inf
    for node in graph:
        if node.op_type in _PRODUCTS or (node.op_type == "Conv" and _products(node) > _FEW_PRODUCTS):
            return best
        nodes.append(node.name or "")
        _read(node, unread)
        count = _count_of_single(unread)
        if least < count < math.inf:
            return best
        if count <= limit < math.inf:
            best, least = tuple(nodes), count
    # Nothing here gains by int8, so that there is no end to what would be left in float.
    return ()


def _read(node: ir.Node, unread: dict[ir.Value, int]) -> None:
    """Takes the reads of a node off the counts, and its outputs in; a value that is read no more goes."""
    for value in node.inputs:
        if value is not None and value in unread:
            unread[value] -= 1
            if unread[value] == 0 and not value.is_graph_output():
                del unread[value]
    for output in node.outputs:
        if output.uses() or output.is_graph_output():
            unread[output] = len(output.uses())


def _count_of_single(unread: dict[ir.Value, int]) -> float:
    """Elements of the one value that is still to be read, if by one layer; else infinite."""
    if len(unread) != 1:
        return math.inf
    value = next(iter(unread))
    producer, readers = value.producer(), [use.node.op_type for use in value.uses()]
    # ONNX Runtime quantizes before a MaxPool instead of behind it, and its kernel for integers, where no integer
    # convolution has changed the layout, is 29 times slower: 494 instead of 17 us in ShuffleNetV2.
    if producer is None or producer.op_type == "MaxPool":
        return math.inf
    return _count(value) if len(readers) == 1 and readers[0] in _PRODUCTS | {"Conv"} else math.inf


def _products(convolution: ir.Node) -> float:
    weight = convolution.inputs[1]
    return math.inf if weight is None else _count(weight)


def _count(value: ir.Value) -> float:
    """Elements of one item of the first dimension; infinite if a size is open."""
    sizes = [] if value.shape is None else list(value.shape)[1:]
    fixed = [size for size in sizes if isinstance(size, int)]
    return math.inf if value.shape is None or len(fixed) < len(sizes) else float(math.prod(fixed))


def mixed_ends(model: onnx.ModelProto, ranges: Mapping[str, Range], operators: Collection[str]) -> frozenset[str]:
    """Names of the nodes that put values of different kinds together for the network's outputs.

    A detector's last node joins boxes of hundreds of pixels with confidences below one; at a scale of some pixels,
    every confidence is zero (onnxruntime issue 14233). Nothing behind reads integers, so that float costs next to
    nothing. Where a layer reads what is joined, it needs one scale in any case.

    Args:
        model: Float, with names.
        ranges: Of its activations.
        operators: Types of nodes that are quantized.
    """
    graph = ir.from_proto(model).graph
    ends: set[ir.Node] = set()
    for node in reversed(graph):
        readers = [use.node for output in node.outputs for use in output.uses()]
        if node.op_type in _MOVES and all(one in ends or one.op_type not in operators for one in readers):
            ends.add(node)
    chosen: set[ir.Node | None] = set()
    for node in graph:
        behind = any(value is not None and value.producer() in chosen for value in node.inputs)
        if node in ends and (behind or _is_mixed(node, ranges)):
            chosen.add(node)
    return frozenset(node.name or "" for node in chosen if node is not None)


def _is_mixed(node: ir.Node, ranges: Mapping[str, Range]) -> bool:
    if node.op_type != "Concat":
        return False
    names = [value.name or "" for value in node.inputs if value is not None]
    parts = [ranges[name] for name in names if name in ranges]
    widths = [part.high - part.low for part in parts]
    return bool(widths) and max(widths) > _UNLIKE * min(widths)
