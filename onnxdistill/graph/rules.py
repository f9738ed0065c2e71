"""How every operator of a traced graph passes channel labels on; one rule a kind of operator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node

from onnxdistill.graph.labels import CONSTANT, Atoms, Label, value_shape

Labels = tuple[Label | None, ...]

UNARY = frozenset(
    [
        "relu",
        "relu6",
        "hardtanh",
        "hardswish",
        "hardsigmoid",
        "silu",
        "sigmoid",
        "tanh",
        "gelu",
        "elu",
        "selu",
        "leaky_relu",
        "mish",
        "softplus",
        "clamp",
        "clip",
        "abs",
        "neg",
        "exp",
        "log",
        "sqrt",
        "rsqrt",
        "square",
        "dropout",
        "feature_dropout",
        "alpha_dropout",
        "clone",
        "contiguous",
        "detach",
        "alias",
        "to",
        "_to_copy",
        "type_as",
        "float",
        "round",
        "floor",
        "sign",
        "reciprocal",
    ]
)
BINARY = frozenset(["add", "sub", "mul", "div", "maximum", "minimum"])
SPATIAL = frozenset(
    [
        "max_pool1d",
        "max_pool2d",
        "max_pool3d",
        "avg_pool1d",
        "avg_pool2d",
        "avg_pool3d",
        "adaptive_avg_pool1d",
        "adaptive_avg_pool2d",
        "adaptive_avg_pool3d",
        "adaptive_max_pool2d",
        "upsample_nearest2d",
        "upsample_bilinear2d",
        "upsample_bicubic2d",
    ]
)
RESHAPES = frozenset(["view", "reshape", "flatten", "squeeze", "unsqueeze", "_unsafe_view"])
CONVOLUTIONS = frozenset(["conv1d", "conv2d", "conv3d"])
REDUCTIONS = frozenset(["mean", "sum", "amax", "amin"])


class Walk:
    """Goes through a traced graph once, in order, and labels every value.

    Args:
        program: The traced network.

    Attributes:
        atoms: What has been found out about channels.
    """

    def __init__(self, program: ExportedProgram) -> None:
        signature = program.graph_signature
        self.program = program
        self.tensors = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        self.atoms = Atoms()
        self.labels: dict[Node, Labels] = {}

    def run(self) -> None:
        """Labels every value and freezes what reaches an output."""
        for node in self.program.graph.nodes:
            if node.op == "call_function":
                self._call(node)
            elif node.op == "output":
                for value in node.all_input_nodes:
                    self._freeze(value, "the network's output")

    def of(self, value: Node) -> Labels:
        """The labels of a value, one a dimension."""
        if value in self.labels:
            return self.labels[value]
        meta = value.meta.get("val")
        return (None,) * (meta.ndim if isinstance(meta, Tensor) else 0)

    def tensor(self, value: object) -> str | None:
        """The name of the parameter or buffer that a value is, if it is one."""
        return self.tensors.get(value.name) if isinstance(value, Node) and value.op == "placeholder" else None

    def _call(self, node: Node) -> None:
        rule = _RULES.get(operator_name(node))
        if rule is None or not rule(self, node):
            for value in node.all_input_nodes:
                self._freeze(value, operator_name(node))

    def _freeze(self, value: Node, operator: str) -> None:
        for label in self.of(value):
            if label is not None:
                self.atoms.freeze(label, operator)


def operator_name(node: Node) -> str:
    """`relu` for `aten.relu_.default`: in-place operators have the same rule."""
    schema = getattr(node.target, "_schema", None)
    name = schema.name if schema is not None else getattr(node.target, "__name__", str(node.target))
    short: str = name.rpartition("::")[2]
    return short if short.startswith("_") else short.rstrip("_")


def _source(node: Node) -> Node:
    """The tensor that an operator works on."""
    (source,) = _nodes([node.args[0]])
    return source


def _nodes(values: object) -> list[Node]:
    assert isinstance(values, Sequence)
    nodes = [value for value in values if isinstance(value, Node)]
    assert len(nodes) == len(values), "every operand of this operator is a tensor"
    return nodes


def _integer(node: Node, position: int, default: int) -> int:
    value = node.args[position] if len(node.args) > position else default
    assert isinstance(value, int), "sizes are constants of the traced graph"
    return value


def _integers(node: Node, position: int) -> list[int]:
    values: Any = node.args[position]
    return [int(value) for value in (values if isinstance(values, Sequence) else [values])]


def _unary(walk: Walk, node: Node) -> bool:
    walk.labels[node] = walk.of(_source(node))
    return True


def _binary(walk: Walk, node: Node) -> bool:
    operands = [value for value in node.args[:2] if isinstance(value, Node)]
    shape = value_shape(node)
    walk.labels[node] = tuple(
        _meet(walk, operands, axis - len(shape), operator_name(node)) for axis in range(len(shape))
    )
    return True


def _meet(walk: Walk, operands: Sequence[Node], axis: int, operator: str) -> Label | None:
    """The label of one dimension (counted from the last) where tensors meet elementwise."""
    result: Label | None = None
    fixed = False
    parameters: list[tuple[str, int]] = []
    for value in operands:
        shape = value_shape(value)
        if len(shape) < -axis or shape[axis] == 1:
            continue  # broadcast: one value for all channels
        label = walk.of(value)[axis]
        name = walk.tensor(value)
        if label is not None:
            result = label if result is None else walk.atoms.unite(result, label, operator)
        elif name is not None:
            parameters.append((name, len(shape) + axis))
        else:
            fixed = True
    if result is not None:
        if fixed:
            walk.atoms.freeze(result, operator)
        for name, dim in parameters:
            walk.atoms.bind(name, dim, result)
    return result


def _convolution(walk: Walk, node: Node) -> bool:
    source, weight, bias, _stride, _padding, _dilation, groups = _with_defaults(node, (None, None, None, 1, 0, 1, 1))
    name = walk.tensor(weight)
    if not isinstance(source, Node) or not isinstance(weight, Node) or name is None:
        return False
    inputs = walk.of(source)[1]
    outputs = walk.atoms.new(value_shape(weight)[0])
    walk.atoms.bind(name, 0, outputs)
    _bind_if_tensor(walk, bias, outputs)
    if groups == 1:
        if inputs is not None:
            walk.atoms.bind(name, 1, inputs)
    else:
        _grouped(walk, name, inputs, outputs, groups)
    walk.labels[node] = (None, outputs, *(None for _ in walk.of(source)[2:]))
    return True


def _with_defaults(node: Node, defaults: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments of a call; the graph leaves out trailing ones that have their default."""
    return (*node.args, *defaults[len(node.args) :])


def _grouped(walk: Walk, name: str, inputs: Label | None, outputs: Label, groups: int) -> None:
    atoms = walk.atoms
    if inputs is None:
        # Which inputs an output sees depends on its place: without labels there, none may move.
        atoms.freeze(outputs, "grouped convolution of unlabelled channels")
        return
    if len(inputs) == groups:
        # Depthwise: output i * multiplier + k belongs to input i.
        atoms.unite(np.repeat(inputs, len(outputs) // groups), outputs, "depthwise convolution")
        return
    # All groups lose the same places, so that they stay equally wide.
    for label in (inputs.reshape(groups, -1), outputs.reshape(groups, -1)):
        for row in label[1:]:
            atoms.unite(label[0], row, "grouped convolution")
    atoms.bind(name, 1, inputs.reshape(groups, -1)[0])


def _linear(walk: Walk, node: Node) -> bool:
    source, weight, bias = _with_defaults(node, (None, None, None))
    name = walk.tensor(weight)
    if not isinstance(source, Node) or not isinstance(weight, Node) or name is None:
        return False
    *batch, inputs = walk.of(source)
    outputs = walk.atoms.new(value_shape(weight)[0])
    walk.atoms.bind(name, 0, outputs)
    _bind_if_tensor(walk, bias, outputs)
    if inputs is not None:
        walk.atoms.bind(name, 1, inputs)
    walk.labels[node] = (*batch, outputs)
    return True


def _batch_norm(walk: Walk, node: Node) -> bool:
    labels = walk.of(_source(node))
    parameters = node.args[1:5]
    channels = labels[1]
    if channels is not None:
        for parameter in parameters:
            _bind_if_tensor(walk, parameter, channels)
    walk.labels[node] = labels
    return True


def _bind_if_tensor(walk: Walk, value: object, label: Label) -> None:
    name = walk.tensor(value)
    if name is not None:
        walk.atoms.bind(name, 0, label)
    elif value is not None:
        walk.atoms.freeze(label, "a computed parameter")


def _spatial(walk: Walk, node: Node) -> bool:
    batch, channels, *rest = walk.of(_source(node))
    if any(label is not None for label in rest):
        return False
    walk.labels[node] = (batch, channels, *rest)
    return True


def _first_result(walk: Walk, node: Node) -> bool:
    """Of an operator with several results, such as a pooling with its indices, the first has the labels."""
    several = _source(node)
    if several in walk.labels:
        if _integer(node, 1, 0) != 0 and node.users:
            return False
        walk.labels[node] = walk.labels[several]
    return True


def _concatenate(walk: Walk, node: Node) -> bool:
    values = _nodes(node.args[0])
    rank = len(value_shape(node))
    axis = _integer(node, 1, 0) % rank
    parts = [walk.of(value)[axis] for value in values]
    label = None
    if any(part is not None for part in parts):
        sizes = [value_shape(value)[axis] for value in values]
        label = np.concatenate(
            [np.full(size, CONSTANT) if part is None else part for part, size in zip(parts, sizes, strict=True)]
        )
    walk.labels[node] = tuple(label if dim == axis else _meet(walk, values, dim - rank, "cat") for dim in range(rank))
    return True


def _pad(walk: Walk, node: Node) -> bool:
    labels = walk.of(_source(node))
    amounts = _integers(node, 1)
    padded: list[Label | None] = list(labels)
    for dim in range(len(amounts) // 2):
        label = labels[-1 - dim]
        before, after = amounts[2 * dim : 2 * dim + 2]
        if label is None or (before == 0 and after == 0):
            continue
        if before < 0 or after < 0:
            return False
        padded[-1 - dim] = np.pad(label, (before, after), constant_values=CONSTANT)
    walk.labels[node] = tuple(padded)
    return True


def _slice(walk: Walk, node: Node) -> bool:
    source = _source(node)
    dim = _integer(node, 1, 0) % len(value_shape(source))
    labels = walk.of(source)
    if labels[dim] is not None and value_shape(node) != value_shape(source):
        return False  # cuts channels at places that are constants of the network's code
    walk.labels[node] = labels
    return True


def _permute(walk: Walk, node: Node) -> bool:
    labels = walk.of(_source(node))
    order = _integers(node, 1)
    walk.labels[node] = tuple(labels[dim] for dim in order)
    return True


def _transpose(walk: Walk, node: Node) -> bool:
    labels = list(walk.of(_source(node)))
    one, other = _integer(node, 1, 0), _integer(node, 2, 1)
    labels[one], labels[other] = labels[other], labels[one]
    walk.labels[node] = tuple(labels)
    return True


def _reduce(walk: Walk, node: Node) -> bool:
    source = _source(node)
    if len(node.args) < 2 or node.args[1] is None:
        return False
    rank = len(value_shape(source))
    reduced = {dim % rank for dim in _integers(node, 1)}
    labels = walk.of(source)
    if any(labels[dim] is not None for dim in reduced):
        return False
    if len(value_shape(node)) == rank:
        walk.labels[node] = labels
    else:
        walk.labels[node] = tuple(label for dim, label in enumerate(labels) if dim not in reduced)
    return True


def _reshape(walk: Walk, node: Node) -> bool:
    source = _source(node)
    labels = walk.of(source)
    result: list[Label | None] = [None] * len(value_shape(node))
    for before, after in reshape_blocks(value_shape(source), value_shape(node)):
        labelled = [dim for dim in before if labels[dim] is not None]
        if not labelled:
            continue
        if len(labelled) > 1 or len(after) != 1:
            return False
        shape = [value_shape(source)[dim] for dim in before]
        label = labels[labelled[0]]
        assert label is not None
        place = [-1 if dim == labelled[0] else 1 for dim in before]
        result[after[0]] = np.broadcast_to(label.reshape(place), shape).reshape(-1).copy()
    walk.labels[node] = tuple(result)
    return True


def reshape_blocks(before: tuple[int, ...], after: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """Splits a reshape into the smallest runs of dimensions with equal products.

    `(2, 3, 4, 4)` to `(2, 48)` is `[([0], [0]), ([1, 2, 3], [1])]`. A dimension of size 1 joins the run before it.
    """
    blocks: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(before) or j < len(after):
        left, right = [i] if i < len(before) else [], [j] if j < len(after) else []
        i, j = i + len(left), j + len(right)
        sizes = [before[dim] for dim in left], [after[dim] for dim in right]
        while np.prod(sizes[0]) != np.prod(sizes[1]):
            if np.prod(sizes[0]) < np.prod(sizes[1]):
                left.append(i)
                sizes[0].append(before[i])
                i += 1
            else:
                right.append(j)
                sizes[1].append(after[j])
                j += 1
        blocks.append((left, right))
    return blocks


Rule = Callable[[Walk, Node], bool]
_RULES: dict[str, Rule] = {
    **dict.fromkeys(UNARY, _unary),
    **dict.fromkeys(BINARY, _binary),
    **dict.fromkeys(SPATIAL, _spatial),
    **dict.fromkeys(RESHAPES, _reshape),
    **dict.fromkeys(CONVOLUTIONS, _convolution),
    **dict.fromkeys(REDUCTIONS, _reduce),
    "linear": _linear,
    "batch_norm": _batch_norm,
    "getitem": _first_result,
    "cat": _concatenate,
    "pad": _pad,
    "constant_pad_nd": _pad,
    "slice": _slice,
    "permute": _permute,
    "transpose": _transpose,
}
