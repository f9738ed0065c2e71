"""Rules of operators that work element by element, and of reductions."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor
from torch.fx import Node

from onnxdistill.graph.labels import CONSTANT, Label, at
from onnxdistill.graph.rules.walk import (
    Walk,
    argument,
    broadcast_shape,
    integers,
    operator_name,
    source_of,
    value_shape,
)

UNARY = frozenset(
    """relu relu6 hardtanh hardswish hardsigmoid silu sigmoid log_sigmoid tanh gelu elu celu selu leaky_relu mish
    softplus softsign clamp clamp_min clamp_max clip abs neg exp log log1p sqrt rsqrt square erf sin cos dropout
    feature_dropout alpha_dropout clone contiguous detach alias to _to_copy type_as float half double round floor ceil
    sign reciprocal lift_fresh_copy nan_to_num zero fill eq ne lt le gt ge logical_not""".split()
)
BINARY = frozenset("add sub rsub mul div maximum minimum where masked_fill addcmul lerp pow atan2".split())
ALONG_AXIS = frozenset("softmax _softmax log_softmax cumsum".split())
FRESH = frozenset("new_zeros new_ones new_full new_empty zeros_like ones_like full_like".split())
REDUCTIONS = frozenset("mean sum amax amin std var".split())


def unary(walk: Walk, node: Node) -> bool:
    """The result has the channels of the source."""
    if operator_name(node) != "type_as" and any(isinstance(value, Node) for value in node.args[1:]):
        return elementwise(walk, node)
    return walk.put(node, walk.of(source_of(node)))


def elementwise(walk: Walk, node: Node) -> bool:
    """Where tensors meet, their channels become one."""
    operands = [value for value in node.args if isinstance(value, Node)]
    factor = scalar_factor(node)
    if factor is not None and len(operands) == 1:
        walk.note_scaling(node, operands[0], factor)
    return walk.put(node, meet(walk, operands, len(value_shape(node)), operator_name(node)))


def scalar_factor(node: Node) -> float | None:
    """The number that an operator multiplies a tensor by, if that is what it does."""
    if (
        node.op != "call_function"
        or operator_name(node) not in ("mul", "div")
        or len(node.args) < 2
        or isinstance(node.args[1], Node)
    ):
        return None
    number: Any = node.args[1]
    if not isinstance(number, int | float):
        return None
    if operator_name(node) == "mul":
        return float(number)
    return 1.0 / float(number) if number else None


def meet(walk: Walk, operands: list[Node], rank: int, name: str) -> Label | None:
    """Unites the channels of tensors that are broadcast to `rank` dimensions, and returns the label of the result.

    A tensor without channels that has a full size where others have channels fixes their number.
    """
    result: Label | None = None
    for value in operands:
        label = walk.of(value)
        if label is None:
            continue
        label = broadcast_shape(label, rank)
        if result is None:
            result = label
            continue
        if 1 in (result.size, label.size) and result.size != label.size:
            # One channel that all others are combined with; it is not one of them.
            one, result = (label, result) if label.size == 1 else (result, label)
            walk.atoms.freeze(one, name)
            continue
        walk.atoms.unite(result, label, name)
        one, other = np.broadcast_arrays(result, label)
        result = np.where(one == CONSTANT, other, one)
    if result is not None:
        for value in operands:
            if walk.of(value) is not None or not isinstance(value.meta.get("val"), Tensor):
                continue
            if _fixes(walk, value, result, name):
                return None
    return result


def _fixes(walk: Walk, value: Node, result: Label, name: str) -> bool:
    """Whether a tensor without channels fixes all axes that channels run along; freezes them then."""
    shape = value_shape(value)
    uniform = walk.uniform.get(value, set())
    varying = walk.atoms.varying(result)
    fixed = [
        axis
        for axis in varying
        if (own := axis - (result.ndim - len(shape))) >= 0 and shape[own] > 1 and own not in uniform
    ]
    if fixed and fixed == varying:
        walk.atoms.freeze(result, name)
        return True
    # Of several axes only one will stay free: which one, is known at the end.
    walk.atoms.fixed += [(result, axis, name) for axis in fixed]
    return False


def fresh(walk: Walk, node: Node) -> bool:
    """A new tensor that takes at most its shape from another: the same value all over, in all channels."""
    walk.uniform[node] = set(range(len(value_shape(node))))
    return walk.put(node, None)


def along_axis(walk: Walk, node: Node) -> bool:
    """A softmax: channels along its axis are fixed, all others pass."""
    source = source_of(node)
    label = walk.of(source)
    if label is not None and integers(node.args[1])[0] % label.ndim in walk.atoms.varying(label):
        return False
    return walk.put(node, label)


def reduction(walk: Walk, node: Node) -> bool:
    """A mean or a sum over axes without channels."""
    source = source_of(node)
    axes = argument(node, 1, "dim")
    if axes is None:
        return False
    label = walk.of(source)
    if label is None:
        return walk.put(node, None)
    reduced = {axis % label.ndim for axis in integers(axes)}
    if reduced & set(walk.atoms.varying(label)):
        return False
    return walk.put(node, without_axes(label, reduced, len(value_shape(node)) == label.ndim))


def vector_norm(walk: Walk, node: Node) -> bool:
    """A Euclidean norm: a channel that is zero does not change it, so it may go from the axis that is reduced."""
    source = source_of(node)
    label = walk.of(source)
    axes = argument(node, 2, "dim")
    if label is None or axes is None or argument(node, 1, "ord", 2) != 2:
        return label is None and walk.put(node, None)
    reduced = {axis % label.ndim for axis in integers(axes)}
    if reduced & set(walk.atoms.varying(label)) and not walk.whole_heads:
        walk.atoms.regular.append(label)
        return walk.put(node, None)
    return walk.put(node, without_axes(label, reduced, len(value_shape(node)) == label.ndim))


def without_axes(label: Label, axes: set[int], keep: bool) -> Label | None:
    """The label after a reduction; the channels along what was reduced are gone."""
    shorter = label
    for axis in sorted(axes, reverse=True):
        shorter = shorter.take([0], axis) if keep else at(shorter, axis, 0)
    return None if shorter.size == 1 < label.size else shorter


def getitem(walk: Walk, node: Node) -> bool:
    """One of several results."""
    source = source_of(node)
    position = integers(node.args[1])[0]
    results = walk.several.get(source)
    if results is None:
        label = walk.labels.get(source)
        if position != 0 and label is not None and node.users:
            return False  # such as the indices of a pooling
        return walk.put(node, label if position == 0 else None)
    return walk.put(node, results[position])
