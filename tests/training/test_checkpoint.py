"""By what a training knows its checkpoint again."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from onnxdistill.training.checkpoint import fingerprint


class Shown(nn.Module):
    """Shows a function, which has another address in every process."""

    def __init__(self, function: Callable[[], int], factor: int = 1) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.function, self.factor = function, factor
        with torch.no_grad():
            self.linear.weight.fill_(1.0)
            self.linear.bias.zero_()

    def extra_repr(self) -> str:
        return f"{self.function}, factor={self.factor}"


def _function() -> Callable[[], int]:
    return lambda: 0


def test_addresses_are_nothing_to_know_a_network_by() -> None:
    one, other = _function(), _function()
    assert repr(Shown(one)) != repr(Shown(other))
    assert fingerprint(Shown(one)) == fingerprint(Shown(other))
    assert fingerprint(Shown(one)) != fingerprint(Shown(one, factor=2))
