"""Means over height and width become global average pooling."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxdistill.quantization.constants import add_constant, constant, input_of, replace, unique_name

# What ONNX Runtime has a GlobalAveragePool for; a ReduceMean there is for integers and doubles as well.
_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16})


def pool_globally(model: ir.Model) -> int:
    """Rewrites `ReduceMean` over the last two of four dimensions as `GlobalAveragePool`; returns how many.

    PyTorch's exporter writes `AdaptiveAvgPool2d(1)` as `ReduceMean`. ONNX Runtime has an integer kernel for
    `GlobalAveragePool` and none for `ReduceMean`: one of 144 x 56 x 56 takes 18 us in int8, and a `ReduceMean` 373 us
    in float and a conversion before and after it. Squeeze-and-excite has one in every block; EfficientNet-B0 in int8
    becomes 1.24 times faster by this alone, and MobileNetV3-small 1.12 times.
    """
    return sum(_pool(model.graph, node) for node in list(model.graph) if node.op_type == "ReduceMean")


def _pool(graph: ir.Graph, node: ir.Node) -> bool:
    pooled = node.inputs[0]
    if pooled is None or pooled.dtype not in _FLOATS or pooled.shape is None or pooled.shape.rank() != 4:
        return False
    if _axes(node) != {2, 3}:
        return False
    keeps = node.attributes.get("keepdims")
    mean = ir.node("GlobalAveragePool", [pooled])
    if keeps is None or keeps.as_int():
        replace(graph, node, mean)
        return True
    output = node.outputs[0].name
    mean.name, mean.outputs[0].name = f"{node.name}_pool", unique_name(graph, f"{output}_pooled")
    mean.outputs[0].type = pooled.type
    graph.insert_before(node, mean)
    # Zero keeps the batch whatever it is.
    shape = add_constant(graph, f"{output}_shape", np.array([0, -1], np.int64))
    replace(graph, node, ir.node("Reshape", [mean.outputs[0], shape]))
    return True


def _axes(node: ir.Node) -> set[int]:
    """Of four dimensions; an attribute until opset 17, an input since."""
    attribute = node.attributes.get("axes")
    if attribute is not None:
        return {axis % 4 for axis in attribute.as_ints()}
    array = constant(input_of(node, 1))
    return set() if array is None else {int(axis) % 4 for axis in array.ravel()}
