"""Where the nodes of an exported file come from: modules, weights, and the layers whose channels they work on."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import onnx
from torch import Tensor

from onnxdistill.onnxfile import SCOPES

Shares = Mapping[str, float]
"""Of what a node works on, by the layers that made it; what is missing to one was made by none."""


@dataclass(frozen=True)
class Graph:
    """What an exported file tells of where its nodes come from.

    Attributes:
        weights: The parameter that a layer multiplies by, by the layer's node.
        modules: The modules around a node, by node.
        origins: The layer whose channels a node works on, by node; of a concatenation, and of what follows it, all
            whose channels lie there side by side. Nodes before the first layer are missing.
    """

    weights: Mapping[str, str]
    modules: Mapping[str, tuple[str, ...]]
    origins: Mapping[str, Shares]


def read_graph(model: onnx.ModelProto, parameters: Mapping[str, Tensor], layers: Iterable[str]) -> Graph:
    """Reads where the nodes of an exported network come from.

    Args:
        model: As the stage `export` writes it.
        parameters: Of the network, by name.
        layers: Names of the nodes that are layers.
    """
    known = set(layers)
    constants = {constant.name: tuple(constant.dims) for constant in model.graph.initializer}
    weights: dict[str, str] = {}
    modules: dict[str, tuple[str, ...]] = {}
    origins: dict[str, Shares] = {}
    channels = _Channels(model.graph)
    for node in model.graph.node:
        scopes = next((entry.value for entry in node.metadata_props if entry.key == SCOPES), "[]")
        modules[node.name] = tuple(str(scope) for scope in ast.literal_eval(scopes)[:-1])
        if node.name in known:
            worked_on: Shares = {node.name: 1.0}
            if weight := _weight_of(node, modules[node.name], parameters, constants):
                weights[node.name] = weight
        else:
            worked_on = channels.read_by(node)
        if worked_on:
            origins[node.name] = worked_on
        channels.made(node, worked_on, is_layer=node.name in known)
    return Graph(weights, modules, origins)


class _Channels:
    """Which layers made the channels of a graph's values."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        infos = [*graph.value_info, *graph.input]
        shapes = {info.name: [dim.dim_value or 1 for dim in info.type.tensor_type.shape.dim] for info in infos}
        self._sizes = {name: prod(shape) for name, shape in shapes.items()}
        self._held: dict[str, Shares] = {}
        self._scores: set[str] = set()

    def read_by(self, node: onnx.NodeProto) -> Shares:
        """What a node works on that is no layer: by its first input that comes from one, or by all that it joins."""
        if node.op_type == "Concat":
            return self._joined(node.input)
        if self._scores.intersection(node.input) and node.op_type != "MatMul":
            return {}
        return next((held for name in node.input if (held := self._held.get(name))), {})

    def made(self, node: onnx.NodeProto, shares: Shares, *, is_layer: bool) -> None:
        """Takes note of what comes out of a node that works on these."""
        if not is_layer and self._makes_scores(node):
            self._scores.update(node.output)
        elif shares:
            self._held |= dict.fromkeys(node.output, shares)

    def _makes_scores(self, node: onnx.NodeProto) -> bool:
        """The scores of attention, one for each two places, are no channels any more, until they weigh some."""
        if node.op_type == "MatMul":
            return all(name in self._held for name in node.input)
        return bool(self._scores.intersection(node.input))

    def _joined(self, parts: Collection[str]) -> Shares:
        sizes = [self._sizes.get(name, 1) for name in parts]
        found: defaultdict[str, float] = defaultdict(float)
        for name, size in zip(parts, sizes, strict=True):
            for layer, share in self._held.get(name, {}).items():
                found[layer] += share * size / sum(sizes)
        return found


def _weight_of(
    node: onnx.NodeProto,
    modules: Sequence[str],
    parameters: Mapping[str, Tensor],
    constants: Mapping[str, tuple[int, ...]],
) -> str | None:
    """The parameter that a layer multiplies by; a linear layer's may have been transposed, and have another name."""
    for name in map(str, node.input[1:]):
        if name in parameters and parameters[name].ndim > 1:
            return name
    shapes = [constants[name] for name in node.input[1:] if name in constants]
    for own in (f"{modules[-1]}.weight", f"{modules[-1]}.in_proj_weight") if modules else ():
        if own in parameters and tuple(parameters[own].shape[::-1]) in shapes:
            return own
    return None
