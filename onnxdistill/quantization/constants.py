"""Constants, names and single nodes of an ONNX graph: read, added, replaced."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray


def constant(value: ir.Value | None) -> NDArray[Any] | None:
    """What a value always is; None if it is computed, left out, or an input that a caller may replace."""
    if value is None or value.is_graph_input() or value.const_value is None:
        return None
    return value.const_value.numpy()


def is_number(value: ir.Value | None, expected: float) -> bool:
    """Whether a value is a constant of one element that is `expected`, up to rounding in float32."""
    array = constant(value)
    return array is not None and array.size == 1 and bool(np.isclose(array.item(), expected, rtol=1e-6, atol=0))


def input_of(node: ir.Node, index: int) -> ir.Value | None:
    """An input that a node may have been left without."""
    return node.inputs[index] if index < len(node.inputs) else None


def number_of(node: ir.Node, attribute: str, default: float) -> float:
    """An attribute that is a number."""
    given = node.attributes.get(attribute)
    return default if given is None else float(given.value)


def unique_name(graph: ir.Graph, name: str) -> str:
    """A name that no value has, with a number at its end if there is one of that name."""
    taken = {value.name for value in (*graph.inputs, *graph.initializers.values())}
    taken |= {output.name for node in graph.all_nodes() for output in node.outputs}
    unique, count = name, 1
    while unique in taken:
        unique, count = f"{name}_{count}", count + 1
    return unique


def add_constant(graph: ir.Graph, name: str, array: NDArray[Any]) -> ir.Value:
    """Adds an initializer; a number goes to the end of the name if there is a value of that name."""
    unique = unique_name(graph, name)
    value = ir.Value(
        name=unique,
        shape=ir.Shape(array.shape),
        type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
        const_value=ir.tensor(array, name=unique),
    )
    graph.register_initializer(value)
    return value


def replace(graph: ir.Graph, old: ir.Node, new: ir.Node) -> None:
    """Puts a node with one output in the place of another, whose name and output's name it takes."""
    new.name, new.outputs[0].name = old.name, old.outputs[0].name
    ir.convenience.replace_nodes_and_values(graph, old, [old], [new], old.outputs, new.outputs)
