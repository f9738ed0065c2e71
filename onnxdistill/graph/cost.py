"""What a network costs: parameters and multiply-adds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def parameter_count(network: nn.Module) -> int:
    """Number of parameters, each shared one once."""
    return sum(parameter.numel() for parameter in network.parameters())


def count_macs(network: nn.Module, example: Tensor) -> int:
    """Multiply-adds of convolutions, matrix products and attention on `example`; elementwise work is left out.

    Args:
        network: In evaluation mode.
        example: An input `[N, ...]`; the count is for all N samples.
    """
    counter = FlopCounterMode(display=False)
    # PyTorch counts a multiply-add as two operations.
    with torch.no_grad(), layer_by_layer(), counter:
        network(example)
    return int(counter.get_total_flops()) // 2


@contextmanager
def layer_by_layer() -> Iterator[None]:
    """Keeps PyTorch from running attention as one operator, which no counter and no hook sees into."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
