"""Rules of operators with weights: convolutions, products and normalisation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from onnxdistill.fakequant.node import Node, Operation

# By the number of spatial dimensions.
_CONVOLUTIONS: Mapping[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED: Mapping[int, Callable[..., Tensor]] = {
    1: F.conv_transpose1d,
    2: F.conv_transpose2d,
    3: F.conv_transpose3d,
}


def even_padding(
    x: Tensor, pads: tuple[int, ...], rank: int, value: float = 0.0
) -> tuple[Tensor, int | tuple[int, ...]]:
    """Pads as torch's layers take them: the same on both sides; other ones are put around the tensor here.

    Args:
        x: `[B, C, *spatial]`.
        pads: As in ONNX: before, of every dimension, and then behind; empty for none.
        rank: Number of spatial dimensions.
        value: What is put around.

    Returns:
        The tensor, and what is still to be padded.
    """
    before, behind = pads[:rank], pads[rank:]
    if before == behind:
        return x, before or 0
    around = [size for pair in zip(before[::-1], behind[::-1], strict=True) for size in pair]
    return F.pad(x, around, value=value), 0


def convolution(node: Node) -> Operation:
    """Conv."""
    node.require("auto_pad", "NOTSET")
    return partial(
        _convolve,
        strides=node.ints("strides") or 1,
        pads=node.ints("pads"),
        dilations=node.ints("dilations") or 1,
        groups=node.get("group", 1),
    )


def _convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, strides: Any, pads: Any, dilations: Any, groups: int
) -> Tensor:
    rank = weight.ndim - 2
    x, padding = even_padding(x, pads, rank)
    return _CONVOLUTIONS[rank](x, weight, bias, strides, padding, dilations, groups)


def transposed_convolution(node: Node) -> Operation:
    """ConvTranspose."""
    node.require("auto_pad", "NOTSET")
    node.require("output_shape")
    return partial(
        _convolve_transposed,
        strides=node.ints("strides") or 1,
        pads=node.ints("pads"),
        output_padding=node.ints("output_padding") or 0,
        dilations=node.ints("dilations") or 1,
        groups=node.get("group", 1),
    )


def _convolve_transposed(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    strides: Any,
    pads: tuple[int, ...],
    output_padding: Any,
    dilations: Any,
    groups: int,
) -> Tensor:
    rank = weight.ndim - 2
    before, behind = pads[:rank], pads[rank:]
    padding = before or 0 if before == behind else 0
    y = _TRANSPOSED[rank](x, weight, bias, strides, padding, output_padding, groups, dilations)
    if before != behind:
        for place, (first, last) in enumerate(zip(before, behind, strict=True)):
            y = y.narrow(2 + place, first, y.shape[2 + place] - first - last)
    return y


def gemm(node: Node) -> Operation:
    """Gemm."""
    return partial(
        _gemm,
        alpha=node.get("alpha", 1.0),
        beta=node.get("beta", 1.0),
        transposed=(bool(node.get("transA", 0)), bool(node.get("transB", 0))),
    )


def _gemm(
    a: Tensor, b: Tensor, c: Tensor | None = None, *, alpha: float, beta: float, transposed: tuple[bool, bool]
) -> Tensor:
    a, weight = a.T if transposed[0] else a, b if transposed[1] else b.T
    if alpha == beta == 1 and (c is None or c.shape == weight.shape[:1]):
        return F.linear(a, weight, c)
    product = alpha * F.linear(a, weight)
    return product if c is None else product + beta * c


def batch_norm(node: Node) -> Operation:
    """BatchNormalization with the statistics of the file: none are gathered."""
    node.require("training_mode", 0)
    return partial(_batch_norm, epsilon=node.get("epsilon", 1e-5))


def _batch_norm(x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, *, epsilon: float) -> Tensor:
    # Equal constants may have been merged: the variance can be the trained scale, too.
    return F.batch_norm(x, mean.detach(), variance.detach(), scale, bias, eps=epsilon)


def instance_norm(node: Node) -> Operation:
    """InstanceNormalization."""
    return partial(_instance_norm, epsilon=node.get("epsilon", 1e-5))


def _instance_norm(x: Tensor, scale: Tensor, bias: Tensor, *, epsilon: float) -> Tensor:
    return F.instance_norm(x, weight=scale, bias=bias, eps=epsilon)


def layer_norm(node: Node) -> Operation:
    """LayerNormalization."""
    return partial(_layer_norm, axis=node.get("axis", -1), epsilon=node.get("epsilon", 1e-5))


def _layer_norm(x: Tensor, scale: Tensor, bias: Tensor | None = None, *, axis: int, epsilon: float) -> Tensor:
    sizes = x.shape[axis % x.ndim :]
    return F.layer_norm(x, sizes, scale.expand(sizes), None if bias is None else bias.expand(sizes), epsilon)


def matmul(_node: Node) -> Operation:
    """MatMul."""
    return torch.matmul


RULES = {
    "Conv": convolution,
    "ConvTranspose": transposed_convolution,
    "Gemm": gemm,
    "MatMul": matmul,
    "BatchNormalization": batch_norm,
    "InstanceNormalization": instance_norm,
    "LayerNormalization": layer_norm,
}
