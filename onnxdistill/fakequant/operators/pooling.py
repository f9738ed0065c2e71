"""Rules of poolings and other reductions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from onnxdistill.fakequant.node import Node, Operation
from onnxdistill.fakequant.operators.layers import even_padding

# By the number of spatial dimensions.
_LARGEST: Mapping[int, Callable[..., Tensor]] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_MEANS: Mapping[int, Callable[..., Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
_REDUCTIONS: Mapping[str, Callable[..., Tensor]] = {
    "ReduceMean": torch.mean,
    "ReduceMax": torch.amax,
    "ReduceL2": torch.linalg.vector_norm,
}


def max_pool(node: Node) -> Operation:
    """MaxPool."""
    return partial(_max_pool, dilations=node.ints("dilations") or 1, **_window(node))


def _window(node: Node) -> dict[str, Any]:
    node.require("auto_pad", "NOTSET")
    pads, ceil = node.ints("pads"), bool(node.get("ceil_mode", 0))
    if ceil and not _is_even(pads):
        node.refuse("uneven pads and ceil_mode")
    return {"kernel": node.ints("kernel_shape"), "strides": node.ints("strides") or 1, "pads": pads, "ceil": ceil}


def _is_even(pads: tuple[int, ...]) -> bool:
    half = len(pads) // 2
    return pads[:half] == pads[half:]


def _max_pool(
    x: Tensor, *, kernel: tuple[int, ...], strides: Any, pads: tuple[int, ...], ceil: bool, dilations: Any
) -> Tensor:
    x, padding = even_padding(x, pads, len(kernel), float("-inf"))
    return _LARGEST[len(kernel)](x, kernel, strides, padding, dilations, ceil)


def average_pool(node: Node) -> Operation:
    """AveragePool."""
    node.require("dilations", [1] * len(node.ints("dilations")))
    counted = bool(node.get("count_include_pad", 0))
    if not (counted or _is_even(node.ints("pads"))):
        node.refuse("uneven pads that are not counted")
    return partial(_average_pool, counted=counted, **_window(node))


def _average_pool(
    x: Tensor, *, kernel: tuple[int, ...], strides: Any, pads: tuple[int, ...], ceil: bool, counted: bool
) -> Tensor:
    x, padding = even_padding(x, pads, len(kernel))
    return _MEANS[len(kernel)](x, kernel, strides, padding, ceil, counted)


def global_average_pool(_node: Node) -> Operation:
    """GlobalAveragePool."""
    return _global_average_pool


def _global_average_pool(x: Tensor) -> Tensor:
    return x.mean(tuple(range(2, x.ndim)), keepdim=True)


def reduction(node: Node) -> Operation:
    """One number of all along some axes; these are an attribute until opset 17, an input since."""
    return partial(
        _reduce,
        by=_REDUCTIONS[node.op_type],
        fixed=node.ints("axes"),
        keeps=bool(node.get("keepdims", 1)),
        none_without_axes=bool(node.get("noop_with_empty_axes", 0)),
    )


def _reduce(
    x: Tensor,
    axes: Tensor | None = None,
    *,
    by: Callable[..., Tensor],
    fixed: tuple[int, ...],
    keeps: bool,
    none_without_axes: bool,
) -> Tensor:
    chosen = fixed if axes is None else tuple(axes.tolist())
    if not chosen and none_without_axes:
        return x
    return by(x, dim=chosen or tuple(range(x.ndim)), keepdim=keeps)


RULES = {
    "MaxPool": max_pool,
    "AveragePool": average_pool,
    "GlobalAveragePool": global_average_pool,
    **dict.fromkeys(_REDUCTIONS, reduction),
}
