"""How every operator of a traced graph passes channel labels on: one rule a kind of operator."""

from __future__ import annotations

from onnxdistill.graph.rules import contraction, elementwise, layers, shapes
from onnxdistill.graph.rules.walk import CodeSize, Rule, Scaling, Walk

__all__ = ["PRODUCTS", "RULES", "CodeSize", "Scaling", "Walk"]

PRODUCTS = frozenset(contraction.RULES)
"""Operators that attention is made of."""

RULES: dict[str, Rule] = {
    **dict.fromkeys(elementwise.UNARY, elementwise.unary),
    **dict.fromkeys(elementwise.BINARY, elementwise.elementwise),
    **dict.fromkeys(elementwise.ALONG_AXIS, elementwise.along_axis),
    **dict.fromkeys(elementwise.REDUCTIONS, elementwise.reduction),
    **dict.fromkeys(elementwise.FRESH, elementwise.fresh),
    "linalg_vector_norm": elementwise.vector_norm,
    "getitem": elementwise.getitem,
    **dict.fromkeys(layers.CONVOLUTIONS, layers.convolution),
    **dict.fromkeys(layers.TRANSPOSED, layers.transposed_convolution),
    **dict.fromkeys(layers.POOLINGS, layers.pooling),
    "linear": layers.linear,
    "embedding": layers.embedding,
    "batch_norm": layers.batch_norm,
    "instance_norm": layers.batch_norm,
    "layer_norm": layers.layer_norm,
    "rms_norm": layers.layer_norm,
    "group_norm": layers.group_norm,
    "prelu": layers.prelu,
    **dict.fromkeys(shapes.RESHAPES, shapes.reshape),
    "permute": shapes.permute,
    "transpose": shapes.transpose,
    "swapaxes": shapes.transpose,
    "expand": shapes.expand,
    "expand_as": shapes.expand,
    "cat": shapes.concatenate,
    "pad": shapes.pad,
    "constant_pad_nd": shapes.pad,
    "slice": shapes.take_slice,
    "chunk": shapes.chunk,
    "split": shapes.chunk,
    "split_with_sizes": shapes.chunk,
    "unbind": shapes.unbind,
    "select": shapes.select,
    "index": shapes.index,
    "roll": shapes.roll,
    "flip": shapes.roll,
    "pixel_shuffle": shapes.pixel_shuffle,
    **contraction.RULES,
}
