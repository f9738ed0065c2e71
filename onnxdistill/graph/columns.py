"""What a convolution or a linear layer multiplies its weight with: one column of inputs for every output position."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Layer = nn.Conv2d | nn.Linear


def is_plain(layer: nn.Module) -> bool:
    """Whether a convolution or a linear layer does nothing but that, with a weight of its own.

    Classes derived from these may pad on their own or standardise the weight, and a parametrization computes it.
    """
    computes = type(layer).forward in (nn.Conv2d.forward, nn.Linear.forward)
    return isinstance(layer, nn.Conv2d | nn.Linear) and computes and "weight" in layer._parameters


def has_columns(layer: nn.Module) -> bool:
    """Plain linear layers, and plain two-dimensional convolutions of one group with zero padding."""
    if not is_plain(layer):
        return False
    return isinstance(layer, nn.Linear) or (
        isinstance(layer, nn.Conv2d) and layer.groups == 1 and layer.padding_mode == "zeros"
    )


@dataclass(frozen=True)
class Sample:
    """Which of many positions are looked at: the same ones for as many positions and the same seed.

    Attributes:
        count: At most so many.
        seed: Of the choice, which may name a position twice.
    """

    count: int
    seed: int

    def of(self, positions: int) -> Tensor | None:
        """Their indices; None for all of them."""
        if positions <= self.count:
            return None
        return torch.randint(positions, (self.count,), generator=torch.Generator().manual_seed(self.seed))


def input_columns(layer: Layer, inputs: Tensor, sample: Sample | None = None) -> Tensor:
    """The inputs `[N, ...]` of a layer as columns `[positions, in_channels * kernel]`, in the order of the weight.

    Of a sample of the positions, if one is given; the others are not made.
    """
    if isinstance(layer, nn.Linear):
        return _rows(inputs.reshape(-1, layer.in_features), sample)
    # For `padding = "same"` PyTorch notes the amounts, too: for the last axis first, before and after.
    before_across, after_across, before_down, after_down = layer._reversed_padding_repeated_twice
    padded = F.pad(inputs, (before_across, after_across, before_down, after_down))
    return unfolded(padded, layer.kernel_size, layer.stride, layer.dilation, sample)


def unfolded(
    images: Tensor,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...] = (1, 1),
    sample: Sample | None = None,
) -> Tensor:
    """What a kernel `(height, width)` sees at each of its places in `[N, C, H, W]`: `[positions, C * kernel]`."""
    down, across = (
        (images.shape[2 + axis] - dilation[axis] * (kernel[axis] - 1) - 1) // stride[axis] + 1 for axis in (0, 1)
    )
    chosen = None if sample is None else sample.of(len(images) * down * across)
    if chosen is None:
        patches = F.unfold(images, kernel, dilation, 0, stride)
        return patches.transpose(1, 2).reshape(-1, patches.shape[1])
    first_row = chosen // across % down * stride[0]
    first_column = chosen % across * stride[1]
    rows = first_row[:, None, None] + dilation[0] * torch.arange(kernel[0])[:, None]
    columns = first_column[:, None, None] + dilation[1] * torch.arange(kernel[1])
    # Indexed on both sides of the channels, these come last: [positions, height, width, C].
    seen = images[(chosen // (down * across))[:, None, None], :, rows, columns]
    return seen.permute(0, 3, 1, 2).flatten(1)


def output_columns(layer: Layer, outputs: Tensor, sample: Sample | None = None) -> Tensor:
    """The outputs `[N, ...]` of a layer as `[positions, out_channels]`, in the order of `input_columns`."""
    if isinstance(layer, nn.Linear):
        return _rows(outputs.reshape(-1, outputs.shape[-1]), sample)
    pixels = outputs.flatten(2)
    chosen = None if sample is None else sample.of(len(pixels) * pixels.shape[2])
    if chosen is None:
        return pixels.transpose(1, 2).reshape(-1, pixels.shape[1])
    return pixels[chosen // pixels.shape[2], :, chosen % pixels.shape[2]]


def _rows(columns: Tensor, sample: Sample | None) -> Tensor:
    chosen = None if sample is None else sample.of(len(columns))
    return columns if chosen is None else columns[chosen]


@contextmanager
def counting_samples(network: nn.Module) -> Iterator[list[int]]:
    """Notes how many samples every run of a network has: the first dimension of its first input."""
    counts: list[int] = []

    def before(_network: nn.Module, received: tuple[Any, ...]) -> None:
        counts.append(len(received[0]))

    handle = network.register_forward_pre_hook(before)
    try:
        yield counts
    finally:
        handle.remove()


@contextmanager
def watched(
    network: nn.Module, layers: Iterable[str], see: Callable[[str, Layer, Tensor, Tensor], None]
) -> Iterator[None]:
    """Calls `see(name, layer, inputs, outputs)` whenever one of the layers has run.

    The outputs may be kept: the network goes on with a copy, which an activation may then overwrite.
    """

    def watching(name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], Tensor]:
        def after(layer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], outputs: Any) -> Tensor:
            assert isinstance(layer, nn.Conv2d | nn.Linear)
            see(name, layer, inputs[0] if inputs else named["input"], outputs)
            copied: Tensor = outputs.clone()
            return copied

        return after

    handles = [network.get_submodule(name).register_forward_hook(watching(name), with_kwargs=True) for name in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
