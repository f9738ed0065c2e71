"""What a convolution or a linear layer multiplies its weight with: one column of inputs for every output position."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Layer = nn.Conv2d | nn.Linear


def has_columns(layer: nn.Module) -> bool:
    """Linear layers, and two-dimensional convolutions of one group with zero padding."""
    if isinstance(layer, nn.Linear):
        return True
    return isinstance(layer, nn.Conv2d) and layer.groups == 1 and layer.padding_mode == "zeros"


def input_columns(layer: Layer, inputs: Tensor) -> Tensor:
    """The inputs `[N, ...]` of a layer as columns `[positions, in_channels * kernel]`, in the order of the weight."""
    if isinstance(layer, nn.Linear):
        return inputs.reshape(-1, layer.in_features)
    # For `padding = "same"` PyTorch notes the amounts, too: for the last axis first, before and after.
    before_across, after_across, before_down, after_down = layer._reversed_padding_repeated_twice
    padded = F.pad(inputs, (before_across, after_across, before_down, after_down))
    return unfolded(padded, layer.kernel_size, layer.stride, layer.dilation)


def unfolded(
    images: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...] = (1, 1)
) -> Tensor:
    """What a kernel `(height, width)` sees at each of its places in `[N, C, H, W]`: `[positions, C * kernel]`."""
    patches = F.unfold(images, kernel, dilation, 0, stride)
    return patches.transpose(1, 2).reshape(-1, patches.shape[1])


def output_columns(layer: Layer, outputs: Tensor) -> Tensor:
    """The outputs `[N, ...]` of a layer as `[positions, out_channels]`, in the order of `input_columns`."""
    if isinstance(layer, nn.Linear):
        return outputs.reshape(-1, outputs.shape[-1])
    return outputs.flatten(2).transpose(1, 2).reshape(-1, outputs.shape[1])


def sampled(columns: Tensor, count: int, seed: int) -> Tensor:
    """At most `count` of the rows, the same ones for as many rows and the same seed."""
    if len(columns) <= count:
        return columns
    return columns[torch.randint(len(columns), (count,), generator=torch.Generator().manual_seed(seed))]


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

    def watching(name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], Tensor]:
        def after(layer: nn.Module, inputs: tuple[Any, ...], outputs: Any) -> Tensor:
            assert isinstance(layer, nn.Conv2d | nn.Linear)
            see(name, layer, inputs[0], outputs)
            copied: Tensor = outputs.clone()
            return copied

        return after

    handles = [network.get_submodule(name).register_forward_hook(watching(name)) for name in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
