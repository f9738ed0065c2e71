"""A graph as a list of steps in torch: what is computed, in which order, from which tensors."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor

from onnxdistill.fakequant.graph import DEQUANTIZE, QUANTIZE, Graph
from onnxdistill.fakequant.node import Node, Operation
from onnxdistill.fakequant.operators import operation
from onnxdistill.fakequant.roles import Bias, Roles, Weight, levels_of
from onnxdistill.fakequant.rounding import Levels, dequantize, fake_quantize, quantize

# Integers of few bits are computed with as floating-point numbers, which hold them exactly.
_FEW_BITS = (np.uint8, np.int8, np.uint16, np.int16)


@dataclass(frozen=True)
class Step:
    """One operation.

    Attributes:
        run: What is done.
        inputs: Names of tensors; empty for one that is left out.
        outputs: Names of what comes out.
        last_used: Names of what no later step reads.
    """

    run: Operation
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    last_used: tuple[str, ...] = ()

    def apply(self, values: dict[str, Tensor]) -> None:
        """Computes the outputs from what is there, and forgets what is not needed any more."""
        results = self.run(*(values[name] if name else None for name in self.inputs))
        if isinstance(results, Tensor):
            values[self.outputs[0]] = results
        else:
            values.update(zip(self.outputs, results, strict=True))
        for name in self.last_used:
            del values[name]


@dataclass(frozen=True)
class Program:
    """All that a graph computes.

    Attributes:
        inputs: Names of what a caller gives.
        outputs: Names of what comes out.
        steps: In order.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    steps: tuple[Step, ...]


def compile_graph(graph: Graph, roles: Roles) -> tuple[Program, dict[str, Tensor]]:
    """Makes a program of a graph.

    Args:
        graph: In QDQ form.
        roles: What is trained in it: weights, biases and scales are there under their names when the program is run.

    Returns:
        The program, and all other constants that it needs, by name.

    Raises:
        UnsupportedOperatorError: If there is no rule for an operator.
    """
    compiler = _Compiler(graph, roles)
    for node in graph.nodes:
        compiler.add(node)
    return compiler.program(), compiler.constants


class _Compiler:
    """Adds node after node.

    Args:
        graph: The graph.
        roles: What is trained in it.

    Attributes:
        constants: What is no result of a step, and not trained, as far as it is needed.
    """

    def __init__(self, graph: Graph, roles: Roles) -> None:
        self._graph = graph
        self._roles = roles
        self._trained = {*roles.weights, *roles.biases, *roles.floats, *roles.scales}
        self._steps: list[Step] = []
        self._same: dict[str, str] = {}  # second names of tensors
        self.constants: dict[str, Tensor] = {}

    def add(self, node: Node) -> None:
        """Adds a node; what only constants go into is computed at once."""
        if node.op_type == "Constant":
            self.constants[node.outputs[0]] = _tensor(_value(node))
        elif node.op_type == QUANTIZE:
            self._quantize(node)
        elif node.op_type == DEQUANTIZE:
            self._dequantize(node)
        else:
            self._step(operation(node), node.inputs, node.outputs)

    def program(self) -> Program:
        """What has been added."""
        outputs = tuple(map(self._found, self._graph.outputs))
        return Program(self._graph.inputs, outputs, tuple(_with_last_uses(self._steps, outputs)))

    def _quantize(self, node: Node) -> None:
        levels = levels_of(self._graph, node)
        pair = self._roles.pairs.get(node.outputs[0])
        if pair is None:
            self._step(partial(quantize, levels=levels), node.inputs[:2], node.outputs)
            return
        sampled = node.input(0) not in self._trained
        self._step(partial(fake_quantize, levels=levels, samples=sampled), node.inputs[:2], pair[:1])
        self._same.update(dict.fromkeys(pair[1:], pair[0]))

    def _dequantize(self, node: Node) -> None:
        name = node.input(0)
        role = self._roles.weights.get(name) or self._roles.biases.get(name)
        match role:
            case Weight():
                run = partial(fake_quantize, levels=role.levels, samples=False)
                self._step(run, (name, role.scale), node.outputs)
            case Bias():
                self._step(
                    partial(round_bias, levels=role.levels), (name, role.input_scale, role.weight_scale), node.outputs
                )
            case None if name not in self._roles.pairs:
                self._step(partial(dequantize, levels=levels_of(self._graph, node)), node.inputs[:2], node.outputs)

    def _step(self, run: Operation, inputs: Iterable[str], outputs: tuple[str, ...]) -> None:
        step = Step(run, tuple(name and self._found(name) for name in inputs), outputs)
        if all(not name or name in self.constants for name in step.inputs):
            with torch.no_grad():
                step.apply(self.constants)
        else:
            self._steps.append(step)

    def _found(self, name: str) -> str:
        """The name under which a tensor is kept; one of the file's constants is read now."""
        name = self._same.get(name, name)
        if name in self._graph.arrays and name not in self._trained and name not in self.constants:
            self.constants[name] = _tensor(self._graph.arrays[name])
        return name


def round_bias(bias: Tensor, input_scale: Tensor, weight_scale: Tensor, levels: Levels) -> Tensor:
    """A bias rounded to what its 32 bits hold; see `Bias`. The scales get no gradient from it: it is too fine.

    Args:
        bias: `[C]`.
        input_scale: Of the layer's input, one number.
        weight_scale: Of the layer's weight, one number or `[C]`.
        levels: What it is rounded to.
    """
    return fake_quantize(bias, bias_scale(input_scale, weight_scale), levels, samples=False)


def bias_scale(input_scale: Tensor, weight_scale: Tensor) -> Tensor:
    """The scale of a bias, one number or `[C]`."""
    return (input_scale * weight_scale).detach()


def _with_last_uses(steps: list[Step], outputs: tuple[str, ...]) -> Iterable[Step]:
    needed = set(outputs)
    made = {name for step in steps for name in step.outputs}
    reverse: list[Step] = []
    for step in reversed(steps):
        touched = dict.fromkeys(name for name in (*step.inputs, *step.outputs) if name in made)
        last = tuple(name for name in touched if name not in needed)
        needed.update(touched)
        reverse.append(Step(step.run, step.inputs, step.outputs, last))
    return reversed(reverse)


def _value(node: Node) -> NDArray[Any]:
    """What a Constant is."""
    name, value = next(iter(node.attributes.items()))
    if name in ("value_float", "value_floats", "value_int", "value_ints"):
        return np.asarray(value, np.float32 if "float" in name else np.int64)
    if name != "value":
        node.refuse(name)
    array: NDArray[Any] = numpy_helper.to_array(value)
    return array


def _tensor(array: NDArray[Any]) -> Tensor:
    return torch.tensor(array.astype(np.float32) if array.dtype in _FEW_BITS else array)
