"""Gradients of networks whose parameters may be frozen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks


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


def saved_bytes(network: nn.Module, example: Tensor) -> int:
    """What a backward pass through a network would need of its results, which are held until then; no parameters.

    Args:
        network: In evaluation mode.
        example: An input.
    """
    own = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    held: dict[int, int] = {}

    def hold(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    with differentiable(network), torch.enable_grad(), saved_tensors_hooks(hold, lambda tensor: tensor):
        result = network(example.clone())
    del result  # until here, so that no memory was used twice
    return sum(held.values())


def gradients_by(value: Tensor, tensors: Sequence[Tensor]) -> list[Tensor | None]:
    """Gradients of a value; None by what it does not depend on, or was computed under `torch.no_grad()`."""
    known = [tensor for tensor in tensors if tensor.requires_grad]
    if not known or not value.requires_grad:
        return [None] * len(tensors)
    found = iter(torch.autograd.grad(value, known, allow_unused=True))
    return [next(found) if tensor.requires_grad else None for tensor in tensors]
