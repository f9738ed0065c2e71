"""The rule of Resize, nearest and linear, dimension by dimension."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from onnxdistill.fakequant.node import Node, Operation


def _half_pixel(places: Tensor, scale: float, _old: int, _new: int) -> Tensor:
    return (places + 0.5) / scale - 0.5


def _torch_half_pixel(places: Tensor, scale: float, _old: int, new: int) -> Tensor:
    return (places + 0.5) / scale - 0.5 if new > 1 else torch.zeros_like(places)


def _asymmetric(places: Tensor, scale: float, _old: int, _new: int) -> Tensor:
    return places / scale


def _align_corners(places: Tensor, _scale: float, old: int, new: int) -> Tensor:
    return places * (old - 1) / (new - 1) if new > 1 else torch.zeros_like(places)


# Where a place of the result lies in the original, with the scale, the old size and the new one.
_COORDINATES: Mapping[str, Callable[[Tensor, float, int, int], Tensor]] = {
    "half_pixel": _half_pixel,
    "pytorch_half_pixel": _torch_half_pixel,
    "asymmetric": _asymmetric,
    "align_corners": _align_corners,
}


def _half_down(places: Tensor) -> Tensor:
    return (places - 0.5).ceil()


def _half_up(places: Tensor) -> Tensor:
    return (places + 0.5).floor()


_ROUNDINGS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "round_prefer_floor": _half_down,
    "round_prefer_ceil": _half_up,
    "floor": torch.floor,
    "ceil": torch.ceil,
}


def resize(node: Node) -> Operation:
    """Resize."""
    node.require("mode", "nearest", "linear")
    node.require("antialias", 0)
    node.require("keep_aspect_ratio_policy", "stretch")
    node.require("coordinate_transformation_mode", *_COORDINATES)
    node.require("nearest_mode", *_ROUNDINGS)
    return partial(
        _resize,
        nearest=node.get("mode", "nearest") == "nearest",
        coordinates=node.get("coordinate_transformation_mode", "half_pixel"),
        rounding=node.get("nearest_mode", "round_prefer_floor"),
        axes=node.ints("axes"),
    )


def _resize(
    x: Tensor,
    _roi: Tensor | None = None,
    scales: Tensor | None = None,
    sizes: Tensor | None = None,
    *,
    nearest: bool,
    coordinates: str,
    rounding: str,
    axes: tuple[int, ...],
) -> Tensor:
    along = axes or tuple(range(x.ndim))
    old = [x.shape[axis] for axis in along]
    if sizes is not None and sizes.numel():
        new = sizes.tolist()
        factors = [after / before for after, before in zip(new, old, strict=True)]
    else:
        assert scales is not None, "Resize has scales or sizes"
        factors = scales.tolist()
        new = [int(before * factor) for before, factor in zip(old, factors, strict=True)]
    for axis, before, after, factor in zip(along, old, new, factors, strict=True):
        if (before, factor) == (after, 1):
            continue
        # In float32, as ONNX Runtime computes them.
        places = torch.arange(after, dtype=torch.float32, device=x.device)
        places = _COORDINATES[coordinates](places, factor, before, after)
        if nearest:
            x = x.index_select(axis, _ROUNDINGS[rounding](places).clamp(0, before - 1).long())
        else:
            x = _interpolated(x, axis, places.clamp(0, before - 1))
    return x


def _interpolated(x: Tensor, axis: int, places: Tensor) -> Tensor:
    """Between the neighbours at either side, along one dimension."""
    left = places.floor().long()
    right = (left + 1).clamp(max=x.shape[axis] - 1)
    shape = [1] * x.ndim
    shape[axis] = -1
    shares = (places - left).reshape(shape)
    return torch.lerp(x.index_select(axis, left).float(), x.index_select(axis, right).float(), shares)


RULES = {"Resize": resize}
