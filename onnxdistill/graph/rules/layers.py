"""Rules of layers: what gives channels, what takes them, and what has a parameter a channel."""

from __future__ import annotations

from typing import Any

from torch.fx import Node

from onnxdistill.graph.labels import Label
from onnxdistill.graph.rules.walk import LinearUse, Walk, argument, module_of, on_axis, source_of, value_shape

CONVOLUTIONS = frozenset("conv1d conv2d conv3d".split())
TRANSPOSED = frozenset("conv_transpose1d conv_transpose2d conv_transpose3d".split())
POOLINGS = frozenset(
    """max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d
    adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d max_pool2d_with_indices
    upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_bilinear2d upsample_bicubic2d upsample_linear1d
    upsample_trilinear3d _upsample_nearest_exact2d _upsample_bilinear2d_aa grid_sampler roi_align roi_pool""".split()
)


def convolution(walk: Walk, node: Node) -> bool:
    """New channels come out; channels that go in take a slice of the weight."""
    source, weight = source_of(node), node.args[1]
    groups = int(argument(node, 6, "groups", 1))
    name = walk.tensor(weight)
    if name is None or not isinstance(weight, Node):
        return False
    inputs = walk.along(source, 1, "convolution")
    outputs = walk.atoms.new(value_shape(weight)[0])
    walk.atoms.bind(name, 0, outputs)
    _bind(walk, argument(node, 2, "bias"), outputs)
    if groups > 1:
        _grouped(walk, name, inputs, outputs, groups)
    elif inputs is not None:
        walk.atoms.bind(name, 1, inputs)
    return walk.put_along(node, 1, outputs)


def _grouped(walk: Walk, name: str, inputs: Label | None, outputs: Label, groups: int) -> None:
    atoms = walk.atoms
    if inputs is None:
        # Which inputs an output sees depends on its place: without labels there, none may move.
        atoms.freeze(outputs, "grouped convolution of fixed channels")
        return
    rows_in, rows_out = inputs.reshape(groups, -1), outputs.reshape(groups, -1)
    if len(inputs) == groups:
        atoms.unite(rows_in, rows_out, "depthwise convolution")
    elif groups >= rows_in.shape[1]:
        # Many narrow groups: whole groups go.
        atoms.unite(rows_in, rows_in[:, :1], "grouped convolution")
        atoms.unite(rows_out, rows_in[:, :1], "grouped convolution")
        walk.whole_groups.add(name.rpartition(".")[0])
    else:
        # Few wide groups: all lose the same places, so that they stay equally wide.
        atoms.unite(rows_in, rows_in[:1], "grouped convolution")
        atoms.unite(rows_out, rows_out[:1], "grouped convolution")
        atoms.bind(name, 1, rows_in[0])


def transposed_convolution(walk: Walk, node: Node) -> bool:
    """Its weight has the inputs first: `[in, out / groups, ...]`."""
    source, weight = source_of(node), node.args[1]
    groups = int(argument(node, 6, "groups", 1))
    name = walk.tensor(weight)
    if name is None or not isinstance(weight, Node):
        return False
    per_group = value_shape(weight)[1]
    inputs = walk.along(source, 1, "transposed convolution")
    outputs = walk.atoms.new(per_group * groups)
    _bind(walk, argument(node, 2, "bias"), outputs)
    if groups == 1:
        walk.atoms.bind(name, 1, outputs)
        if inputs is not None:
            walk.atoms.bind(name, 0, inputs)
    elif inputs is not None and len(inputs) == groups:
        walk.atoms.bind(name, 0, inputs)
        walk.atoms.unite(inputs[:, None], outputs.reshape(groups, -1), "depthwise convolution")
    else:
        walk.atoms.freeze(outputs, "grouped transposed convolution")
        if inputs is not None:
            walk.atoms.freeze(inputs, "grouped transposed convolution")
    return walk.put_along(node, 1, outputs)


def linear(walk: Walk, node: Node) -> bool:
    """A matrix product with a parameter along the last axis."""
    source, weight = source_of(node), node.args[1]
    name = walk.tensor(weight)
    if name is None or not isinstance(weight, Node):
        return False
    inputs = walk.along(source, -1, "linear")
    outputs = walk.atoms.new(value_shape(weight)[0])
    walk.atoms.bind(name, 0, outputs)
    _bind(walk, argument(node, 2, "bias"), outputs)
    if inputs is not None:
        walk.atoms.bind(name, 1, inputs)
        walk.entries.append(LinearUse(module_of(node), inputs))
    return walk.put_along(node, -1, outputs)


def embedding(walk: Walk, node: Node) -> bool:
    """New channels come out along the last axis; the rows stay."""
    name = walk.tensor(node.args[0])
    weight = source_of(node)
    if name is None:
        return False
    outputs = walk.atoms.new(value_shape(weight)[1])
    walk.atoms.bind(name, 1, outputs)
    return walk.put_along(node, -1, outputs)


def batch_norm(walk: Walk, node: Node) -> bool:
    """Batch and instance normalisation: four tensors with an entry a channel."""
    source = source_of(node)
    channels = walk.along(source, 1, "batch norm")
    if channels is not None:
        for tensor in node.args[1:5]:
            _bind(walk, tensor, channels)
    return walk.put(node, walk.labels.get(source) if channels is not None else None)


def layer_norm(walk: Walk, node: Node) -> bool:
    """Layer and RMS normalisation over the last axis; its statistics are then those of the channels that stay."""
    source = source_of(node)
    shape: Any = node.args[1]
    affine = [tensor for tensor in (argument(node, 2, "weight"), argument(node, 3, "bias")) if isinstance(tensor, Node)]
    label = walk.of(source)
    if label is None:
        return walk.put(node, None)
    channels = walk.along(source, -1, "layer norm") if len(shape) == 1 and affine else None
    if channels is None:
        walk.atoms.freeze(label, "layer norm")
        return walk.put(node, None)
    for tensor in affine:
        _bind(walk, tensor, channels)
    return walk.put(node, label)


def group_norm(walk: Walk, node: Node) -> bool:
    """Every group of channels has its statistics, so all groups lose the same places."""
    source = source_of(node)
    groups = int(argument(node, 1, "num_groups"))
    channels = walk.along(source, 1, "group norm")
    if channels is None:
        return walk.put(node, None)
    if argument(node, 2, "weight") is None:
        return False
    walk.atoms.regular.append(channels.reshape(groups, -1))
    for tensor in (argument(node, 2, "weight"), argument(node, 3, "bias")):
        _bind(walk, tensor, channels)
    return walk.put(node, walk.labels.get(source))


def pooling(walk: Walk, node: Node) -> bool:
    """Pooling, resizing and sampling work within each channel."""
    source = source_of(node)
    channels = walk.along(source, 1, "pooling")
    if channels is None:
        return walk.of(source) is None and walk.put(node, None)
    results = node.meta["val"]
    rank = len(results[0].shape) if isinstance(results, tuple | list) else len(value_shape(node))
    walk.labels[node] = on_axis(channels, 1, rank)
    return True


def _bind(walk: Walk, value: object, label: Label) -> None:
    """A tensor with an entry a channel: a parameter, or what is computed from one."""
    if value is None:
        return
    name = walk.tensor(value)
    if name is not None and name not in walk.atoms.values:
        walk.atoms.bind(name, 0, label)
        return
    own = walk.of(value)
    if own is None:
        walk.atoms.freeze(label, "a computed parameter")
    else:
        walk.atoms.unite(own, label, "a computed parameter")


def prelu(walk: Walk, node: Node) -> bool:
    """One slope for all channels, or one a channel."""
    source, slope = source_of(node), node.args[1]
    assert isinstance(slope, Node)
    channels = walk.along(source, 1, "prelu")
    if channels is not None and value_shape(slope) != (1,):
        _bind(walk, slope, channels)
    return walk.put(node, walk.of(source))
