"""Gradients of networks whose parameters may be frozen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def differentiable(network: nn.Module) -> Iterator[None]:
    """Meanwhile, gradients reach all parameters, those that are frozen for training as well."""
    frozen = [
        parameter
        for parameter in network.parameters()
        if not parameter.requires_grad and (parameter.is_floating_point() or parameter.is_complex())
    ]
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


def gradients_by(value: Tensor, tensors: Sequence[Tensor]) -> list[Tensor | None]:
    """Gradients of a value; None by what it does not depend on, or was computed under `torch.no_grad()`."""
    known = [tensor for tensor in tensors if tensor.requires_grad]
    if not known or not value.requires_grad:
        return [None] * len(tensors)
    found = iter(torch.autograd.grad(value, known, allow_unused=True))
    return [next(found) if tensor.requires_grad else None for tensor in tensors]
