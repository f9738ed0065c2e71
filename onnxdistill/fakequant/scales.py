"""Scales of integers that are trained and stay positive."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Scale(nn.Module):
    """A scale, or one for every channel: `initial * exp(log_ratio)`, which is exactly `initial` before any training.

    The gradient of `log_ratio` is that of the scale divided by the scale, instead of multiplied by it as the chain rule
    would have it. So a step of SGD changes a scale by the same share as if the scale itself were trained, as in Esser
    et al. 2020, and it stays positive. It is cut to -1 to 1, and one step changes a scale by the learning rate at most,
    as a share; as those of Adam do anyway. Else a channel whose weights are all near zero, and its scale with them,
    would not get through the first step.

    Args:
        initial: As in the file.

    Attributes:
        initial: The same.
        log_ratio: What is trained; of the same shape.
    """

    def __init__(self, initial: Tensor) -> None:
        super().__init__()
        self.initial = nn.Buffer(initial)
        self.log_ratio = nn.Parameter(torch.zeros_like(initial))

    def forward(self) -> Tensor:
        """The scale, in the shape of `initial`."""
        scale: Tensor = _Exponential.apply(self.log_ratio, self.initial)
        return scale

    def extra_repr(self) -> str:
        """How many there are."""
        return f"channels={self.initial.numel()}"


class _Exponential(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, log_ratio: Tensor, initial: Tensor) -> Tensor:
        scale = initial * log_ratio.exp()
        ctx.save_for_backward(scale)
        return scale

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (scale,) = ctx.saved_tensors
        return (gradients[0] / scale).clamp(-1, 1), None
