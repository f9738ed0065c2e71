"""A node of an ONNX graph as rules see it, and the error for one that no rule can carry out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeVar

from onnxdistill.errors import NetworkError

Operation = Callable[..., Any]
"""Of a tensor for every input, None for one that is left out; returns a tensor, or one for every output.

A function of a module, or a partial one, so that networks can be pickled and copied."""

T = TypeVar("T")


class UnsupportedOperatorError(NetworkError):
    """A graph has a node that cannot be carried out in torch here, and so the graph cannot be trained."""


@dataclass(frozen=True)
class Node:
    """A node.

    Attributes:
        op_type: As in the operators' documentation; with its domain in front if that is not ONNX's own.
        name: In the graph; empty if it has none.
        inputs: Names of tensors; empty for one that is left out.
        outputs: The same.
        attributes: By name; texts are `str`.
    """

    op_type: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)

    def get(self, name: str, default: T) -> T:
        """An attribute."""
        value: T = self.attributes.get(name, default)
        return value

    def ints(self, name: str) -> tuple[int, ...]:
        """An attribute that is a list of integers; empty if it is left out."""
        return tuple(self.get(name, ()))

    def input(self, index: int) -> str:
        """The name of an input; empty if it is left out."""
        return self.inputs[index] if index < len(self.inputs) else ""

    def require(self, name: str, *allowed: object) -> None:
        """Refuses values of an attribute; leaving it out is allowed.

        Raises:
            UnsupportedOperatorError: If it is another one.
        """
        if name in self.attributes and self.attributes[name] not in allowed:
            self.refuse(f"{name} = {self.attributes[name]!r}")

    def refuse(self, what: str = "") -> NoReturn:
        """Says that this node cannot be trained.

        Args:
            what: Of the node; all of its operator if it is empty.

        Raises:
            UnsupportedOperatorError: Always.
        """
        outputs = ", ".join(output for output in self.outputs if output)
        raise UnsupportedOperatorError(
            f"The operator {self.op_type}{f' with {what}' if what else ''} cannot be trained with int8: node "
            f"{self.name or '(without a name)'}, whose output is {outputs!r}.",
            "Ship the int8 file as it is, or leave that operator out of the network.",
        )
