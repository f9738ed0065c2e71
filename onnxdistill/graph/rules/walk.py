"""One pass over a traced graph, in which every operator's rule passes channel labels on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node

from onnxdistill.graph.labels import Atoms, Label, compressed

# A parameter that is used as a value gets an atom an element; beyond this it is taken as fixed.
LARGEST_VALUE = 1 << 22


@dataclass(frozen=True)
class CodeSize:
    """Where code of the network names a size that channels run along, such as in a reshape.

    Attributes:
        node: The traced operator.
        module: Path of the module whose code it is.
        label: Of the result.
        shape: Of the result.
    """

    node: str
    module: str
    label: Label
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Scaling:
    """Where the network scales by a number that depends on a width, such as attention by its head's width.

    Attributes:
        node: The traced operator.
        label: Of what is scaled.
        shape: Of what is scaled.
        factor: The number; None for attention's own, one over the root of the last dimension.
        producers: Per parameter of the last layer before, which rows of it give what is scaled.
    """

    node: str
    label: Label
    shape: tuple[int, ...]
    factor: float | None
    producers: dict[str, NDArray[np.bool_]]


@dataclass(frozen=True)
class LinearUse:
    """A label that enters a layer: what a module's code may take its sizes from."""

    module: str
    label: Label


class Walk:
    """Goes through a traced graph once, in order, and labels every value.

    Args:
        program: The traced network.
        atoms: What has been found out about channels; several programs of one network can share it.
        whole_heads: Whether attention loses whole heads, or else dimensions within all heads.

    Attributes:
        labels: Of every value that channels run along.
        code_sizes: Sizes that the network's code names.
        scalings: Scalings that may depend on a width.
        entries: Labels that enter linear layers.
        heads: Atoms that are whole heads.
        whole_groups: Grouped convolutions that lose whole groups.
    """

    def __init__(self, program: ExportedProgram, atoms: Atoms, whole_heads: bool = False) -> None:
        signature = program.graph_signature
        self.program = program
        self.atoms = atoms
        self.whole_heads = whole_heads
        self.tensors = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        self.constants = {**signature.inputs_to_buffers, **signature.inputs_to_lifted_tensor_constants}
        self.labels: dict[Node, Label | None] = {}
        self.several: dict[Node, list[Label | None]] = {}
        self.uniform: dict[Node, set[int]] = {}
        self.code_sizes: list[CodeSize] = []
        self.scalings: list[Scaling] = []
        self.entries: list[LinearUse] = []
        self.heads: list[Label] = []
        self.whole_groups: set[str] = set()

    def run(self, rules: Mapping[str, Rule]) -> None:
        """Labels every value and freezes what reaches an output."""
        for node in self.program.graph.nodes:
            if node.op == "call_function":
                self._call(node, rules)
            elif node.op == "output":
                for value in node.all_input_nodes:
                    self.freeze(value, "the network's output")
        self.atoms.settle()

    def of(self, value: object) -> Label | None:
        """The label of a value; None if no channels run along it."""
        if not isinstance(value, Node):
            return None
        if value in self.labels:
            return self.labels[value]
        name = self.tensor(value)
        return None if name is None else self._as_value(name, value)

    def _as_value(self, name: str, value: Node) -> Label | None:
        """A parameter that is itself what flows: every element is an atom until it meets channels.

        Of buffers only vectors: a table of positions is not made of channels.
        """
        meta = value.meta["val"]
        if not meta.is_floating_point() or not 1 < meta.numel() <= LARGEST_VALUE:
            return None
        if value.name in self.program.graph_signature.inputs_to_buffers and meta.numel() != max(meta.shape):
            return None
        return self.atoms.as_value(name, tuple(meta.shape))

    def tensor(self, value: object) -> str | None:
        """The name of the parameter or buffer that a value is, if it is one."""
        return self.tensors.get(value.name) if isinstance(value, Node) and value.op == "placeholder" else None

    def constant(self, value: object) -> Tensor | None:
        """The content of a buffer or of a constant of the graph."""
        if not isinstance(value, Node) or value.op != "placeholder":
            return None
        name = self.constants.get(value.name)
        if name is None:
            return None
        stored = self.program.state_dict.get(name, self.program.constants.get(name))
        return stored if isinstance(stored, Tensor) else None

    def along(self, value: Node, axis: int, operator: str) -> Label | None:
        """The atoms along one axis of a value, `[size]`; None if none run along it.

        What comes next knows only this axis: along others, all lose the same places.
        """
        label = self.of(value)
        if label is None:
            return None
        axis %= label.ndim
        size = value_shape(value)[axis]
        if label.shape[axis] != size:
            # Even a single channel, repeated along the axis: what comes next would still take it.
            self.atoms.freeze(label, operator)
            return None
        for other in range(label.ndim):
            if other != axis:
                self.atoms.tie(label, other, operator)
        rest = tuple(slice(None) if dim == axis else 0 for dim in range(label.ndim))
        result: Label = label[rest]
        return result

    def put(self, node: Node, label: Label | None) -> bool:
        """Notes the label of a result."""
        self.labels[node] = None if label is None else compressed(label)
        return True

    def put_along(self, node: Node, axis: int, atoms: Label) -> bool:
        """Notes that atoms run along one axis of a result."""
        return self.put(node, on_axis(atoms, axis, len(value_shape(node))))

    def freeze(self, value: Node, operator: str) -> None:
        """Marks the channels of a value as not removable."""
        name = self.tensor(value)
        if name is not None:
            for (tensor, _), label in self.atoms.bindings.items():
                if tensor == name:
                    self.atoms.freeze(label, operator)
            if name in self.atoms.values:
                self.atoms.freeze(self.atoms.values[name], operator)
            return
        for own in [self.labels.get(value), *self.several.get(value, [])]:
            if own is not None:
                self.atoms.freeze(own, operator)

    def note_size(self, node: Node) -> None:
        """Notes that the network's code names the sizes of this result."""
        label = self.labels.get(node)
        if label is not None:
            self.code_sizes.append(CodeSize(node.name, module_of(node), label, value_shape(node)))

    def note_scaling(self, node: Node, value: Node, factor: float | None) -> None:
        """Notes that a value is scaled by a number that may come from a width."""
        label = self.of(value)
        if label is not None:
            self.scalings.append(Scaling(node.name, label, value_shape(value), factor, self._producers(label)))

    def _producers(self, label: Label) -> dict[str, NDArray[np.bool_]]:
        """Rows of the parameters that give some atoms: of the last layer alone, or they would be scaled twice."""
        atoms = np.unique(label)
        buffers = set(self.program.graph_signature.inputs_to_buffers.values())
        found = {
            tensor: rows
            for (tensor, dim), bound in self.atoms.bindings.items()
            if dim == 0 and tensor not in buffers and (rows := np.isin(bound, atoms)).any()
        }
        last = next(reversed(found), "").rpartition(".")[0]
        return {tensor: rows for tensor, rows in found.items() if tensor.rpartition(".")[0] == last}

    def _call(self, node: Node, rules: Mapping[str, Rule]) -> None:
        name = operator_name(node)
        rule = rules.get(name)
        if rule is None or not self._applies(rule, node):
            for value in node.all_input_nodes:
                self.freeze(value, name)

    def _applies(self, rule: Rule, node: Node) -> bool:
        try:
            return rule(self, node)
        except (AssertionError, AttributeError, IndexError, KeyError, TypeError, ValueError):
            return False  # a form of the operator that the rule does not know: what goes in is frozen


Rule = Callable[[Walk, Node], bool]
"""Labels the results of one operator; False if it cannot, and then what goes in is frozen."""


def on_axis(atoms: Label, axis: int, rank: int) -> Label:
    """Atoms `[size]` as a label along one axis of a value with `rank` dimensions."""
    return atoms.reshape([-1 if dim == axis % rank else 1 for dim in range(rank)])


def operator_name(node: Node) -> str:
    """`relu` for `aten.relu_.default`: in-place operators have the same rule."""
    schema = getattr(node.target, "_schema", None)
    name = schema.name if schema is not None else getattr(node.target, "__name__", str(node.target))
    short: str = name.rpartition("::")[2]
    return short if short.startswith("_") else short.rstrip("_")


def value_shape(node: Node) -> tuple[int, ...]:
    """The sizes of a value of the graph."""
    return tuple(int(size) for size in node.meta["val"].shape)


def module_of(node: Node) -> str:
    """Path of the module whose code an operator comes from; empty for the network itself."""
    stack = node.meta.get("nn_module_stack") or {}
    path: str = [*stack.values()][-1][0] if stack else ""
    return path


def argument(node: Node, position: int, name: str, default: Any = None) -> Any:
    """An argument of a call, however it was given; the graph leaves out those that have their default."""
    if len(node.args) > position:
        return node.args[position]
    return node.kwargs.get(name, default)


def source_of(node: Node) -> Node:
    """The tensor that an operator works on."""
    value = node.args[0]
    assert isinstance(value, Node), "the first operand is a tensor"
    return value


def integers(value: Any) -> list[int]:
    """A list of sizes or axes, or a single one."""
    return [int(item) for item in (value if isinstance(value, Sequence) else [value])]


def broadcast_shape(label: Label, rank: int) -> Label:
    """The label with leading dimensions of size 1 up to `rank`."""
    return label.reshape((1,) * (rank - label.ndim) + label.shape)


def full_along(label: Label, axis: int, size: int) -> Label:
    """The label with its full size along an axis."""
    if label.shape[axis] == size:
        return label
    return np.repeat(label, size, axis)
