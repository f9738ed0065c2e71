"""An ONNX graph to look things up in: what a tensor is, who makes it, and who reads it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from onnxdistill.fakequant.node import Node

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"


class Use(NamedTuple):
    """A node that reads a tensor, and as which of its inputs."""

    node: Node
    place: int


class Graph:
    """A graph.

    Args:
        model: Its weights inside, all nodes in the order in which they are computed.

    Attributes:
        nodes: All of them.
        inputs: Names of what a caller gives.
        outputs: Names of what comes out.
        arrays: What is constant by initializers, by name.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        self.arrays: dict[str, NDArray[Any]] = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
        self.nodes = tuple(map(_node, graph.node))
        self.inputs = tuple(port.name for port in graph.input if port.name not in self.arrays)
        self.outputs = tuple(port.name for port in graph.output)
        self._makers = {output: node for node in self.nodes for output in node.outputs}
        self._uses: dict[str, list[Use]] = defaultdict(list)
        for node in self.nodes:
            for index, name in enumerate(node.inputs):
                self._uses[name].append(Use(node, index))

    def maker(self, name: str) -> Node | None:
        """The node that a tensor comes out of; None for inputs and initializers."""
        return self._makers.get(name)

    def uses(self, name: str) -> list[Use]:
        """Who reads a tensor; that it is an output of the graph does not count."""
        return self._uses[name]

    def of_type(self, *op_types: str) -> Iterator[Node]:
        """The nodes of some operators."""
        return (node for node in self.nodes if node.op_type in op_types)

    def scale_of(self, node: Node) -> NDArray[np.float32]:
        """The scale of a QuantizeLinear or DequantizeLinear.

        Raises:
            UnsupportedOperatorError: If it is computed, or no positive float32.
        """
        scale = self.arrays.get(node.input(1))
        if scale is None or scale.dtype != np.float32 or scale.ndim > 1:
            node.refuse("a scale that is not one float32, or one for each channel, kept in the file")
        if not (np.isfinite(scale) & (scale > 0)).all():
            node.refuse("a scale that is not positive")
        return scale

    def zero_point_of(self, node: Node) -> tuple[int, np.dtype[Any]]:
        """The zero point of a QuantizeLinear or DequantizeLinear, and its type.

        Raises:
            UnsupportedOperatorError: If it is computed, or if channels have different ones.
        """
        name = node.input(2)
        if not name:
            return 0, np.dtype(np.uint8) if node.op_type == QUANTIZE else self._dtype(node.input(0))
        zero = self.arrays.get(name)
        if zero is None or zero.dtype.kind not in "iu" or np.unique(zero).size != 1:
            node.refuse("zero points that differ, or that are not integers kept in the file")
        return int(zero.flat[0]), zero.dtype

    def _dtype(self, name: str) -> np.dtype[Any]:
        """The type of the integers that a tensor holds."""
        if name in self.arrays:
            return self.arrays[name].dtype
        maker = self.maker(name)
        return self.zero_point_of(maker)[1] if maker is not None and maker.op_type == QUANTIZE else np.dtype(np.uint8)


def _node(proto: onnx.NodeProto) -> Node:
    domain = "" if proto.domain in ("", "ai.onnx") else f"{proto.domain}."
    attributes = {each.name: _plain(helper.get_attribute_value(each)) for each in proto.attribute}
    return Node(f"{domain}{proto.op_type}", proto.name, tuple(proto.input), tuple(proto.output), attributes)


def _plain(value: object) -> Any:
    return value.decode() if isinstance(value, bytes) else value
