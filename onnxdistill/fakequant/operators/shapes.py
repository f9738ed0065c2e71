"""Rules of operators that only move values, and of those that compute sizes for them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from onnx import TensorProto, numpy_helper
from torch import Tensor
from torch.nn import functional as F

from onnxdistill.fakequant.node import Node, Operation

_TYPES = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.DOUBLE: torch.float64,
    TensorProto.INT32: torch.int32,
    TensorProto.INT64: torch.int64,
    TensorProto.BOOL: torch.bool,
}


def identity(_node: Node) -> Operation:
    """Identity, and Dropout, which does nothing in inference."""
    return _identity


def _identity(x: Tensor, *_others: Tensor | None) -> Tensor:
    return x


def concat(node: Node) -> Operation:
    """Concat."""
    return partial(_concat, axis=node.get("axis", 0))


def _concat(*parts: Tensor, axis: int) -> Tensor:
    return torch.cat(parts, axis)


def split(node: Node) -> Operation:
    """Split; its sizes are an attribute until opset 12, an input since, and all alike if there are none."""
    return partial(_split, axis=node.get("axis", 0), count=len(node.outputs))


def _split(x: Tensor, sizes: Tensor | None = None, *, axis: int, count: int) -> tuple[Tensor, ...]:
    return torch.split(x, math.ceil(x.shape[axis] / count) if sizes is None else sizes.tolist(), axis)


def take_slice(_node: Node) -> Operation:
    """Slice."""
    return _slice


def _slice(x: Tensor, starts: Tensor, ends: Tensor, axes: Tensor | None = None, steps: Tensor | None = None) -> Tensor:
    count = len(starts)
    along = range(count) if axes is None else axes.tolist()
    by = [1] * count if steps is None else steps.tolist()
    for start, end, axis, step in zip(starts.tolist(), ends.tolist(), along, by, strict=True):
        places = range(*slice(start, end, step).indices(x.shape[axis]))
        if step > 0:
            x = x[(slice(None),) * (axis % x.ndim) + (slice(places.start, places.stop, step),)]
        else:
            x = x.index_select(axis, torch.tensor(places, dtype=torch.int64, device=x.device))
    return x


def pad(node: Node) -> Operation:
    """Pad with a constant."""
    node.require("mode", "constant")
    return _pad


def _pad(x: Tensor, pads: Tensor, value: Tensor | None = None, axes: Tensor | None = None) -> Tensor:
    along = range(x.ndim) if axes is None else [axis % x.ndim for axis in axes.tolist()]
    sizes = pads.tolist()
    around = [0] * 2 * x.ndim  # as torch takes it, from the last dimension to the first
    for place, axis in enumerate(along):
        first = 2 * (x.ndim - 1 - axis)
        around[first : first + 2] = sizes[place], sizes[place + len(sizes) // 2]
    return F.pad(x, around, value=0.0 if value is None else value.item())


def reshape(node: Node) -> Operation:
    """Reshape."""
    return partial(_reshape, zero_is_zero=bool(node.get("allowzero", 0)))


def _reshape(x: Tensor, shape: Tensor, *, zero_is_zero: bool) -> Tensor:
    sizes = shape.tolist()
    return x.reshape(sizes if zero_is_zero else [size or x.shape[place] for place, size in enumerate(sizes)])


def flatten(node: Node) -> Operation:
    """Flatten."""
    return partial(_flatten, axis=node.get("axis", 1))


def _flatten(x: Tensor, *, axis: int) -> Tensor:
    axis = axis % x.ndim if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def transpose(node: Node) -> Operation:
    """Transpose."""
    return partial(_transpose, order=node.ints("perm"))


def _transpose(x: Tensor, *, order: tuple[int, ...]) -> Tensor:
    return x.permute(order or tuple(reversed(range(x.ndim))))


def squeeze(_node: Node) -> Operation:
    """Squeeze."""
    return _squeeze


def _squeeze(x: Tensor, axes: Tensor | None = None) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(tuple(axes.tolist()))


def unsqueeze(_node: Node) -> Operation:
    """Unsqueeze."""
    return _unsqueeze


def _unsqueeze(x: Tensor, axes: Tensor) -> Tensor:
    rank = x.ndim + axes.numel()
    for axis in sorted(each % rank for each in axes.tolist()):
        x = x.unsqueeze(axis)
    return x


def expand(_node: Node) -> Operation:
    """Expand."""
    return _expand


def _expand(x: Tensor, shape: Tensor) -> Tensor:
    sizes = [1] * (x.ndim - len(shape)) + shape.tolist()
    before = [1] * (len(sizes) - x.ndim) + list(x.shape)
    return x.expand([new if old == 1 else old for old, new in zip(before, sizes, strict=True)])


def shape_of(node: Node) -> Operation:
    """Shape."""
    return partial(_shape, start=node.get("start", 0), end=node.get("end", None))


def _shape(x: Tensor, *, start: int, end: int | None) -> Tensor:
    return torch.tensor(x.shape[start:end], dtype=torch.int64)


def gather(node: Node) -> Operation:
    """Gather."""
    return partial(_gather, axis=node.get("axis", 0))


def _gather(x: Tensor, indices: Tensor, *, axis: int) -> Tensor:
    axis %= x.ndim
    flat = indices.reshape(-1).to(x.device)
    taken = x.index_select(axis, torch.where(flat < 0, flat + x.shape[axis], flat))
    return taken.reshape(_joined(x.shape[:axis], indices.shape, x.shape[axis + 1 :]))


def _joined(*parts: Sequence[int]) -> list[int]:
    return [size for part in parts for size in part]


def depth_to_space(node: Node) -> Operation:
    """DepthToSpace of images."""
    return partial(_depth_to_space, size=node.get("blocksize", 1), depth_first=node.get("mode", "DCR") == "DCR")


def _depth_to_space(x: Tensor, *, size: int, depth_first: bool) -> Tensor:
    if depth_first:
        batch, channels, height, width = x.shape
        blocks = x.reshape(batch, size * size, channels // (size * size), height, width)
        x = blocks.transpose(1, 2).reshape(x.shape)
    return F.pixel_shuffle(x, size)


def constant_of_shape(node: Node) -> Operation:
    """ConstantOfShape."""
    value = node.get("value", None)
    return partial(_filled, value=torch.zeros(1) if value is None else torch.tensor(numpy_helper.to_array(value)))


def _filled(shape: Tensor, *, value: Tensor) -> Tensor:
    return value.reshape(()).repeat(shape.tolist())


def number_range(_node: Node) -> Operation:
    """Range."""
    return _range


def _range(start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    return torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype)


def cast(node: Node) -> Operation:
    """Cast."""
    kind = node.get("to", TensorProto.FLOAT)
    if kind not in _TYPES:
        node.refuse(f"to = {TensorProto.DataType.Name(kind)}")
    return partial(_cast, dtype=_TYPES[kind])


def _cast(x: Tensor, *, dtype: torch.dtype) -> Tensor:
    return x.to(dtype)


RULES: dict[str, Callable[[Node], Operation]] = {
    "Identity": identity,
    "Dropout": identity,
    "Concat": concat,
    "Split": split,
    "Slice": take_slice,
    "Pad": pad,
    "Reshape": reshape,
    "Flatten": flatten,
    "Transpose": transpose,
    "Squeeze": squeeze,
    "Unsqueeze": unsqueeze,
    "Expand": expand,
    "Shape": shape_of,
    "Gather": gather,
    "DepthToSpace": depth_to_space,
    "ConstantOfShape": constant_of_shape,
    "Range": number_range,
    "Cast": cast,
}
