"""Convolutions with many weights on small maps, as one matrix product over a whole batch.

oneDNN takes one image after another, and goes through all weights for each. On a map of four pixels that is all that
it does: 512 to 512 channels in 3 x 3, with their gradients, take 51 ms for 128 images in bfloat16 with AMX, and as
products 13 (66 and 24 on 16 pixels). VGGs and ResNets made for large images end in such layers on small ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from onnxdistill.training.hardware import has_fast_bfloat16

# Where a product wins by times measured on two cores; fixed, since a choice by a measurement would come out another
# way when a training goes on, whose weights are to be the same to the last bit.
LEAST_WEIGHTS = 2**18
MOST_PIXELS = {torch.bfloat16: 16, torch.float32: 4}


def small_maps_as_products(network: nn.Module) -> AbstractContextManager[Any]:
    """A block, which may be entered again, within which convolutions are matrix products where that is faster.

    Those are on the processor, of stride 1, dense, and in one group. Sums are made in another order than oneDNN's.

    Args:
        network: Is called within. If no layer of it can be such a convolution, nothing is done, since every call of
            torch takes longer within the block.
    """
    return _AsProducts() if any(_may_win(layer) for layer in network.modules()) else nullcontext()


def _may_win(layer: nn.Module) -> bool:
    if isinstance(layer, nn.Conv2d) and (layer.groups > 1 or not layer.stride == layer.dilation == (1, 1)):
        return False
    # A layer's weights may be computed from these whenever they are asked for.
    return any(
        not is_lazy(one) and one.ndim == 4 and one.numel() >= LEAST_WEIGHTS and one.device.type == "cpu"
        for one in layer.parameters(recurse=False)
    )


class _AsProducts(TorchFunctionMode):
    """Takes calls of `conv2d` over."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        # Types with a `__torch_function__` of their own may have another convolution.
        ours = func is F.conv2d and not types and not torch.compiler.is_compiling()
        return (_convolved if ours else func)(*args, **(kwargs or {}))


def _convolved(
    input: Tensor,  # noqa: A002  # named as torch names it: networks may give it by name
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: str | int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    """`torch.nn.functional.conv2d`."""
    pads = None if isinstance(padding, str) else _pair(padding)
    if pads is None or groups != 1 or not _pair(stride) == _pair(dilation) == (1, 1):
        return F.conv2d(input, weight, bias, stride, padding, dilation, groups)
    dtypes = {one.dtype for one in (input, weight, bias) if one is not None}
    if torch.is_autocast_enabled("cpu") and dtypes <= set(MOST_PIXELS):
        dtypes = {torch.get_autocast_dtype("cpu")}
    dtype = dtypes.pop()
    if dtypes or not _wins(input, weight, bias, pads, dtype):
        return F.conv2d(input, weight, bias, stride, padding, dilation, groups)
    bias = None if bias is None else bias.to(dtype)
    output: Tensor = _Product.apply(input.to(dtype), weight.to(dtype), bias, pads)
    return output


def _pair(value: int | Sequence[int]) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (value, value)  # type: ignore[return-value]  # a number


def _wins(inputs: Tensor, weight: Tensor, bias: Tensor | None, pads: tuple[int, ...], dtype: torch.dtype) -> bool:
    """Whether a product is faster. It is not of anything that torch would refuse."""
    # Without instructions for bfloat16, torch has other ways for products than for convolutions.
    most = MOST_PIXELS.get(dtype, 0) if dtype != torch.bfloat16 or has_fast_bfloat16() else 0
    shapes_fit = (
        inputs.ndim == weight.ndim == 4
        and inputs.shape[1] == weight.shape[1]
        and len(inputs) > 0
        and (bias is None or bias.shape == weight.shape[:1])
        and len(pads) == 2
        and min(pads) >= 0
    )
    plain = all(one.device.type == "cpu" and one.layout is torch.strided for one in (inputs, weight))
    if not shapes_fit or not plain or weight.numel() < LEAST_WEIGHTS:
        return False
    # The gradient of the inputs is a product over all pixels of the inputs.
    size = _size(inputs.shape[2:], weight.shape[2:], pads)
    return min(size) > 0 and max(size[0] * size[1], inputs.shape[2] * inputs.shape[3]) <= most


def _rims(weight: Tensor, map_size: Sequence[int], pads: tuple[int, ...]) -> list[int]:
    """How many taps at either end, of rows and of columns, never lie on the map, but on zeros only."""
    return [max(0, one - size - pad) for one, size, pad in zip(weight.shape[2:], map_size, pads, strict=True)]


def _cropped(weight: Tensor, rims: Sequence[int]) -> Tensor:
    rows, columns = (slice(rim, one - rim) for rim, one in zip(rims, weight.shape[2:], strict=True))
    return weight[:, :, rows, columns]


def _size(map_size: Sequence[int], kernel: Sequence[int], pads: Sequence[int]) -> tuple[int, ...]:
    return tuple(size + 2 * pad - one + 1 for size, one, pad in zip(map_size, kernel, pads, strict=True))


class _Product(torch.autograd.Function):
    """A convolution of stride 1: patches `[B H' W', K L C]` times weights `[K L C, O]` (Chellapilla et al. 2006)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(inputs: Tensor, weight: Tensor, bias: Tensor | None, pads: tuple[int, ...]) -> Tensor:
        """Of inputs `[B, C, H, W]` with weights `[O, C, K, L]`, in memory as torch has it."""
        size = _size(inputs.shape[2:], weight.shape[2:], pads)
        rims = _rims(weight, inputs.shape[2:], pads)
        inner = _cropped(weight, rims)
        patches = _patches(inputs, inner.shape[2:], (pads[0] - rims[0], pads[1] - rims[1]))
        rows = F.linear(patches, _matrix(inner), bias)
        kind = torch.preserve_format if _lies_last(inputs) or _lies_last(weight) else torch.contiguous_format
        # A copy, since what a function returns as a view cannot be changed in place.
        return _map(rows, (len(inputs), len(weight), *size)).clone(memory_format=kind)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keeps the same as torch, for networks that compute their maps again: that is done without this class."""
        ctx.save_for_backward(*inputs[:2])
        ctx.pads = inputs[3]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        """Of the inputs, the weights and the bias."""
        inputs, weight = ctx.saved_tensors
        rims = _rims(weight, inputs.shape[2:], ctx.pads)
        weight, pads = _cropped(weight, rims), (ctx.pads[0] - rims[0], ctx.pads[1] - rims[1])
        of_inputs = of_weight = of_bias = None
        count, _, *kernel = weight.shape
        if ctx.needs_input_grad[0]:
            # Each tap leads back to where it came from: the same with the kernel turned by half.
            outer = (kernel[0] - 1 - pads[0], kernel[1] - 1 - pads[1])
            turned = _matrix(weight).reshape(count, kernel[0] * kernel[1], -1).flip(1).permute(1, 0, 2)
            patches = _patches(gradient, kernel, outer)
            of_inputs = _map(patches @ turned.reshape(patches.shape[1], -1), inputs.shape)
        rows = gradient.permute(0, 2, 3, 1).reshape(-1, count)
        if ctx.needs_input_grad[1]:
            # Transposed in memory: oneDNN would take a third longer over a view.
            product = rows.t().contiguous() @ _patches(inputs, kernel, pads)
            of_inner = product.reshape(count, *kernel, -1).permute(0, 3, 1, 2)
            of_weight = F.pad(of_inner, (rims[1], rims[1], rims[0], rims[0])) if any(rims) else of_inner
        if ctx.needs_input_grad[2]:
            of_bias = rows.sum(0)
        return of_inputs, of_weight, of_bias, None


def _lies_last(values: Tensor) -> bool:
    """Whether the channels are last in memory; torch's own question has no answer in `vmap`."""
    return values.stride(1) == 1 and values.stride(3) == values.shape[1]


def _matrix(weight: Tensor) -> Tensor:
    """`[O, K L C]`, without a copy if the channels lie last in memory."""
    return weight.permute(0, 2, 3, 1).reshape(len(weight), -1)


def _map(rows: Tensor, shape: Sequence[int]) -> Tensor:
    """`[B, C, H, W]` of `[B H W, C]`."""
    count, channels, height, width = shape
    return rows.reshape(count, height, width, channels).permute(0, 3, 1, 2)


def _patches(inputs: Tensor, kernel: Sequence[int], pads: tuple[int, ...]) -> Tensor:
    """`[B H' W', K L C]`: what lies under the kernel at each of its places; negative pads leave the rim out."""
    height, width = _size(inputs.shape[2:], kernel, pads)
    last = F.pad(inputs.permute(0, 2, 3, 1), (0, 0, pads[1], pads[1], pads[0], pads[0]))
    taps = [last[:, y : y + height, x : x + width] for y in range(kernel[0]) for x in range(kernel[1])]
    return torch.cat(taps, -1).reshape(len(inputs) * height * width, -1)
