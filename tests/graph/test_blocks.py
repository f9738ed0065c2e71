"""Residual blocks that can be left out."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.vision_transformer import EncoderBlock

from onnxdistill.graph.blocks import least_important_blocks, removable_blocks, without_blocks
from onnxdistill.networks import build_network


class Block(nn.Module):
    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * torch.tanh(self.conv(x))


class Doubling(nn.Module):
    """Gives twice its input when its branch is silent: no shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x + self.conv(x)


class Tower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.first, self.second, self.third = Block(0.5), Block(0.01), Block(2.0)
        self.doubling = Doubling()
        self.linear = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.doubling(self.third(self.second(self.first(self.stem(x)))))
        return self.linear(F.relu(x).mean((2, 3)))


def test_only_shortcuts_can_be_left_out() -> None:
    assert removable_blocks(Tower().eval(), torch.randn(2, 3, 8, 8)) == ["first", "second", "third"]


def test_of_a_residual_network_the_blocks_that_keep_shape() -> None:
    network = build_network("cifar-resnet20", 10, 0)
    assert removable_blocks(network, torch.rand(2, 3, 32, 32)) == [
        "layer1.0", "layer1.1", "layer1.2", "layer2.1", "layer2.2", "layer3.1", "layer3.2",
    ]  # fmt: skip


def test_blocks_with_something_that_has_to_stay_stay() -> None:
    network, example = Tower().eval(), torch.randn(2, 3, 8, 8)
    assert removable_blocks(network, example, ["first", "third.conv"]) == ["second"]


def test_a_network_without_sums_has_none() -> None:
    assert removable_blocks(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval(), torch.randn(2, 3, 8, 8)) == []


def test_the_least_important_goes_first_and_one_stays() -> None:
    torch.manual_seed(0)
    network, example = Tower().eval(), torch.randn(2, 3, 8, 8)

    def damage(shorter: nn.Module) -> float:
        with torch.inference_mode():
            return float((shorter(example) - network(example)).abs().max())

    names = ["first", "second", "third"]
    assert least_important_blocks(network, names, 1, damage) == ["second"]
    assert least_important_blocks(network, names, 5, damage) == ["second", "first"]
    shorter = without_blocks(network, ["second", "first"])
    assert torch.equal(shorter.first(example), example)
    assert isinstance(network.first, Block)


class Inplace(Tower):
    """Its activation changes what the sum then takes: no shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.second = InplaceBlock()  # type: ignore[assignment]  # another kind of block


class InplaceBlock(Block):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x, inplace=True) + self.conv(x)


class Named(Tower):
    """Calls a block by the name of its argument, which an identity doesn't know."""

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(F.relu(self.third(self.first(x=self.stem(x)))).mean((2, 3)))


class Nested(Tower):
    def __init__(self) -> None:
        super().__init__()
        self.second = Outer()  # type: ignore[assignment]  # another kind of block


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.conv = Block(), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(self.inner(x))


def test_what_only_seems_a_shortcut_stays() -> None:
    torch.manual_seed(0)
    example = torch.randn(2, 3, 8, 8)
    assert removable_blocks(Inplace().eval(), example) == ["first", "third"]
    assert removable_blocks(Named().eval(), example) == ["third"]


def test_of_blocks_in_each_other_one_goes() -> None:
    torch.manual_seed(0)
    names = removable_blocks(Nested().eval(), torch.randn(2, 3, 8, 8))
    assert sorted(names) == ["first", "second", "second.inner", "third"]
    gone = least_important_blocks(
        Nested().eval(), names, 4, lambda shorter: float(sum(p.numel() for p in shorter.parameters()))
    )
    assert len({name.partition(".")[0] for name in gone}) == len(gone) == 3


class Excited(nn.Module):
    """What weighs the branch is written last, and halves the branch when it is silent."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.gate = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        branch = self.norm(self.conv(x))
        return x + branch * self.gate(branch.mean((2, 3))).sigmoid()[..., None, None]


class Transformer(nn.Module):
    """Blocks with two branches."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 8)
        self.first = EncoderBlock(2, 8, 16, 0.0, 0.0)
        self.second = EncoderBlock(2, 8, 16, 0.0, 0.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(self.embed(x))).mean(1)


def test_blocks_whose_last_layer_is_not_all_of_the_branch() -> None:
    torch.manual_seed(0)
    excited = nn.Sequential(nn.Conv2d(3, 4, 3), Excited(), nn.Flatten()).eval()
    assert removable_blocks(excited, torch.randn(2, 3, 8, 8)) == ["1"]
    assert removable_blocks(Transformer().eval(), torch.randn(2, 5, 6)) == ["first", "second"]


class Asking(nn.Module):
    """Reads something of its blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), Block(), Block()

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.stem(x))
        return self.first(x).mean((2, 3)) * self.first.scale


def test_a_block_that_the_network_reads_something_of_stays() -> None:
    assert removable_blocks(Asking().eval(), torch.randn(2, 3, 8, 8)) == ["second"]
