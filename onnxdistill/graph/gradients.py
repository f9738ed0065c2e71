"""Gradients of networks whose parameters may be frozen."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


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
