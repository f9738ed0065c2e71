"""How every ONNX operator is carried out in torch: one rule an operator."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from onnxdistill.fakequant.node import Node, Operation
from onnxdistill.fakequant.operators import elementwise, layers, pooling, resizing, shapes

__all__ = ["operation"]

_RULES: Mapping[str, Callable[[Node], Operation]] = {
    **layers.RULES,
    **elementwise.RULES,
    **pooling.RULES,
    **shapes.RULES,
    **resizing.RULES,
}
_SEVERAL_OUTPUTS = frozenset({"Split"})


def operation(node: Node) -> Operation:
    """What a node does.

    Raises:
        UnsupportedOperatorError: If there is no rule for it, or not for its attributes.
    """
    rule = _RULES.get(node.op_type)
    if rule is None:
        node.refuse()
    if any(node.outputs[1:]) and node.op_type not in _SEVERAL_OUTPUTS:
        node.refuse("more than one output")
    return rule(node)
