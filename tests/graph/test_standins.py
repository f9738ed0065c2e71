"""What can be replaced without the code around it noticing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from onnxdistill.graph.standins import replaceable
from onnxdistill.graph.surgery import _check


class Reading(nn.Module):
    """Reads the sizes of one of its layers, and the output's type of another."""

    def __init__(self) -> None:
        super().__init__()
        self.free, self.sized, self.typed = nn.Linear(4, 6), nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.sized(self.free(x).view(-1, self.sized.in_features))
        return self.typed(x.to(self.typed.weight.dtype))


def test_layers_that_code_reads_are_not_replaced() -> None:
    network, example = Reading().eval(), torch.randn(3, 4)
    assert replaceable(network, ["free", "sized", "typed"], example, nn.Sequential) == ["free"]
    assert replaceable(network, ["free"], example, nn.Sequential) == ["free"]
    assert replaceable(network, [], example, nn.Sequential) == []
    assert isinstance(network.free, nn.Linear)


def test_a_stand_in_has_to_give_the_same_shape() -> None:
    network = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 5, 1)).eval()
    assert replaceable(network, ["0", "1"], torch.randn(2, 3, 8, 8), lambda _: nn.Identity()) == ["0"]


class Asking(nn.Module):
    """Asks its blocks for a parameter: any of them will do, but one has to."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(next(self.blocks.parameters()).dtype)
        for block in self.blocks:
            x = block(x)
        return x


def test_what_runs_one_by_one_has_to_run_all_at_once() -> None:
    names = ["blocks.0", "blocks.1", "blocks.2"]
    assert replaceable(Asking().eval(), names, torch.randn(3, 4), lambda _: nn.Identity()) == names[:2]


class AskingInside(nn.Module):
    """Asks for a parameter in its blocks, as long as one of them has something in it."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 4)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        if all(isinstance(block, nn.Sequential) for block in self.blocks):
            x = x.to(next(self.blocks.parameters()).dtype)
        for block in self.blocks:
            x = block(x)
        return x


def test_inner_ones_of_several_have_to_run_all_at_once_too() -> None:
    names = ["blocks.0", "blocks.0.0", "blocks.1", "blocks.1.0"]
    assert replaceable(AskingInside().eval(), names, torch.randn(3, 4), lambda _: nn.Identity()) == names[:3]


class Outer(nn.Module):
    """A block with one in it, which comes after something else."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.inner = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x)
        return x + self.inner(x)


@pytest.mark.parametrize("names", [["0", "0.inner", "1", "1.inner"], ["1.inner", "1", "0.inner", "0"]])
def test_of_modules_in_each_other_each_can_be_replaced(names: list[str]) -> None:
    network = nn.Sequential(Outer(), Outer()).eval()
    assert replaceable(network, names, torch.randn(3, 4), lambda _: nn.Identity()) == names


def test_what_cannot_be_replaced_leaves_the_others() -> None:
    network = nn.Sequential(Outer(), Reading()).eval()
    network[1].free = nn.Sequential(Outer(), nn.Linear(4, 6))
    names = ["0", "0.inner", "1.free", "1.free.0", "1.free.0.inner", "1.free.1"]
    found = replaceable(network, names, torch.randn(3, 4), lambda _: nn.Identity())
    assert found == ["0", "0.inner", "1.free.0", "1.free.0.inner"]  # the rest changes the number of features


class Full(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise MemoryError


class Fuller(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.empty(2**55) + x


def test_a_lack_of_memory_is_no_fault_of_the_code() -> None:
    network, example = nn.Sequential(nn.Conv2d(3, 8, 3)).eval(), torch.randn(2, 3, 8, 8)
    with pytest.raises(MemoryError):
        replaceable(network, ["0"], example, lambda _: Full())
    with pytest.raises(MemoryError):
        _check(example, Full().eval(), example)
    # torch's own, of the processor's memory.
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        replaceable(network, ["0"], example, lambda _: Fuller())
