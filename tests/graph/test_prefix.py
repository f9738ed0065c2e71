"""Running a changed network from the change on gives what running all of it gives."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onnxdistill.graph import prefix as prefix_module
from onnxdistill.graph.blocks import without_blocks
from onnxdistill.graph.channels import analyse_channels
from onnxdistill.graph.lowrank import decompose, low_rank_pair
from onnxdistill.graph.prefix import Prefix
from onnxdistill.graph.surgery import remove_channels
from onnxdistill.networks import build_network


def compared(network: nn.Module, changed: nn.Module, inputs: Tensor, prefix: Prefix | None = None) -> list[str]:
    """Makes sure that both ways give the same, and returns the convolutions that ran."""
    changed.eval()
    with torch.no_grad():
        expected = changed(inputs.clone())
    again = copy.deepcopy(changed)
    ran: list[str] = []
    for name, module in again.named_modules():
        if isinstance(module, nn.Conv2d):
            module._conv_forward = noted(name, module._conv_forward, ran)  # type: ignore[method-assign]
    with torch.no_grad(), (prefix or Prefix(network, inputs)).given(again):
        result = again(inputs.clone())
    assert torch.equal(result, expected)
    # As it was.
    assert [n for n, m in again.named_modules() if "forward" in vars(m)] == [
        n for n, m in changed.named_modules() if "forward" in vars(m)
    ]
    return ran


def noted(name: str, forward: Callable[..., Tensor], ran: list[str]) -> Callable[..., Tensor]:
    def run(*inputs: Tensor) -> Tensor:
        ran.append(name)
        return forward(*inputs)

    return run


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    return build_network("cifar-resnet20", 10, 0).eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def convolutions(network: nn.Module) -> list[str]:
    return [name for name, module in network.named_modules() if isinstance(module, nn.Conv2d)]


def test_only_what_comes_after_a_change_runs(resnet: nn.Module, images: Tensor) -> None:
    prefix, names = Prefix(resnet, images), convolutions(resnet)
    assert len(names) == 19
    # A block that has gone.
    shorter = without_blocks(resnet, ["layer2.1"])
    left = [name for name in names if not name.startswith("layer2.1.")]
    assert compared(resnet, shorter, images, prefix) == left[left.index("layer2.2.conv1") :]
    # A pair.
    changed = copy.deepcopy(resnet)
    layer = resnet.get_submodule("layer3.0.conv2")
    assert isinstance(layer, nn.Conv2d)
    changed.set_submodule("layer3.0.conv2", low_rank_pair(layer, decompose(layer, "spatial"), 8, "spatial"))
    after = convolutions(changed)
    assert compared(resnet, changed, images, prefix) == after[after.index("layer3.0.conv2.0") :]
    # Channels within a block, and of the stream that begins with the first layer.
    analysis = analyse_channels(resnet, images)
    inside = next(group for group in analysis.free if group.name.startswith("layer1.2"))
    narrower = remove_channels(resnet, analysis, {inside.name: torch.arange(8).numpy()}, images)
    assert compared(resnet, narrower, images, prefix) == names[names.index("layer1.2.conv1") :]
    stream = next(group for group in analysis.free if any(m.tensor == "conv1.weight" for m in group.members))
    narrower = remove_channels(resnet, analysis, {stream.name: torch.arange(8).numpy()}, images)
    assert compared(resnet, narrower, images, prefix) == names
    # Nothing.
    assert compared(resnet, copy.deepcopy(resnet), images, prefix) == []


def test_without_memory_everything_runs(resnet: nn.Module, images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix_module, "_HELD_BYTES", 0)
    shorter = without_blocks(resnet, ["layer3.2"])
    assert compared(resnet, shorter, images) == [n for n in convolutions(resnet) if not n.startswith("layer3.2.")]


class Layers(nn.Module):
    """Three convolutions, and what lies between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Conv2d(3, 3, 1) for _ in range(3))
        self.norm = nn.BatchNorm2d(3)
        self.relu = nn.ReLU(inplace=True)


class WrittenTo(Layers):
    """The sum takes what the activation has written to."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x)) + 0
        return self.third(self.second(self.relu(x)) + x)


class WrittenToByCode(Layers):
    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x.mul_(2)
        return self.third(self.second(x) + x)


class Twice(Layers):
    def forward(self, x: Tensor) -> Tensor:
        return self.third(self.first(self.second(self.first(x))))


class Uncalled(Layers):
    """Takes the weight of a layer that it does not call."""

    def forward(self, x: Tensor) -> Tensor:
        return self.third(self.second(F.conv2d(x, self.first.weight)))


class ReadBefore(Layers):
    """Takes the weight of a layer that it calls later."""

    def forward(self, x: Tensor) -> Tensor:
        return self.third(self.first(self.second(F.conv2d(x, self.first.weight))))


class Tapped(Layers):
    """Keeps what hooks within modules have seen."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU()) for _ in range(2))
        self.taps: list[Tensor] = []
        for block in self.blocks:
            assert isinstance(block, nn.Sequential)
            block[0].register_forward_hook(self._tap)

    def _tap(self, _module: nn.Module, _inputs: object, output: Tensor) -> None:
        self.taps.append(output)

    def forward(self, x: Tensor) -> Tensor:
        self.taps.clear()
        for block in self.blocks:
            x = block(x)
        seen = sum(self.taps, x)
        self.taps.clear()
        return self.third(self.second(self.first(seen)))


class Handing(Layers):
    """Parts hand something to each other that they neither get nor give."""

    class First(nn.Module):
        def __init__(self, hands: list[Tensor]) -> None:
            super().__init__()
            self.conv, self.hands = nn.Conv2d(3, 3, 1), hands

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            self.hands.append(x)
            return torch.relu(x)

    class Second(nn.Module):
        def __init__(self, hands: list[Tensor]) -> None:
            super().__init__()
            self.hands = hands

        def forward(self, x: Tensor) -> Tensor:
            return x + self.hands.pop()

    def __init__(self) -> None:
        super().__init__()
        hands: list[Tensor] = []
        self.begin, self.end = self.First(hands), self.Second(hands)

    def forward(self, x: Tensor) -> Tensor:
        return self.third(self.end(self.second(self.first(self.begin(x)))))


class Keeping(Handing):
    """What one part leaves for the other stays there."""

    class First(Handing.First):
        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            self.hands[:] = [x]
            return torch.relu(x)

    class Second(Handing.Second):
        def forward(self, x: Tensor) -> Tensor:
            return x + self.hands[0]


class Inferring(Layers):
    """The tensors of a part do not count how often they are written to."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.inference_mode():
            x = self.second(self.first(x))
        return self.third(x.clone())


class Scripted(Layers):
    """A part takes no hooks."""

    def __init__(self) -> None:
        super().__init__()
        self.compiled = torch.jit.script(nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.third(self.second(self.compiled(self.first(x))))


KINDS = [WrittenTo, WrittenToByCode, Twice, Uncalled, ReadBefore, Tapped, Handing, Keeping, Inferring, Scripted]


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["first", "second", "third"])
@pytest.mark.parametrize("depth", [0, 1, 2])
def test_whatever_code_does_to_its_tensors(kind: type[Layers], name: str, depth: int, images: Tensor) -> None:
    """In the network itself, or in a module that is in others."""
    torch.manual_seed(0)
    network: nn.Module = kind().eval()
    for _ in range(depth):
        network, name = nn.Sequential(nn.Conv2d(3, 3, 1), network, nn.Conv2d(3, 3, 1)).eval(), f"1.{name}"
    prefix = Prefix(network, images)
    changed = copy.deepcopy(network)
    with torch.no_grad():
        changed.get_parameter(f"{name}.weight").mul_(-1)
    for _ in range(2):
        compared(network, changed, images, prefix)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x)


def test_a_module_that_does_more_than_those_in_it_costs_no_other_its_place(images: Tensor) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(Block(), Tapped(), Block(), Block()).eval()
    prefix = Prefix(network, images)
    for name, runs in (
        ("3.conv", ["3.conv"]),
        ("1.second", ["1.blocks.0.0", "1.blocks.1.0", "1.first", "1.second", "1.third", "2.conv", "3.conv"]),
    ):
        changed = copy.deepcopy(network)
        with torch.no_grad():
            changed.get_parameter(f"{name}.weight").mul_(-1)
        assert compared(network, changed, images, prefix) == runs


def test_what_is_written_to_once_a_block_has_gone_is_made_again(images: Tensor) -> None:
    """Without the second block, the activation works in place on what the first one gave."""
    torch.manual_seed(0)
    network = nn.Sequential(Block(), Block(), nn.ReLU(inplace=True), Block()).eval()
    prefix = Prefix(network, images)
    for _ in range(2):
        assert compared(network, without_blocks(network, ["1"]), images, prefix) == ["3.conv"]
    changed = copy.deepcopy(network)
    with torch.no_grad():
        changed.get_parameter("3.conv.weight").mul_(2)
    compared(network, changed, images, prefix)


def test_what_is_left_of_other_inputs_is_not_taken_for_these(images: Tensor) -> None:
    """Whoever cuts channels looks whether the network still runs, on a few samples, and what they leave stays."""
    torch.manual_seed(0)
    network = Keeping().eval()
    prefix = Prefix(network, images)
    changed = copy.deepcopy(network)
    with torch.no_grad():
        changed.get_parameter("third.weight").mul_(-1)
        changed(images[:1])
    compared(network, changed, images, prefix)


def test_without_memory_for_what_was_given_everything_runs(images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    network = nn.Sequential(Block(), Block()).eval()

    def copied(_: nn.Module) -> nn.Module:
        raise MemoryError

    monkeypatch.setattr("onnxdistill.graph.prefix.copy.deepcopy", copied)
    prefix = Prefix(network, images)
    monkeypatch.undo()
    changed = copy.deepcopy(network)
    with torch.no_grad():
        changed.get_parameter("1.conv.weight").mul_(2)
    assert compared(network, changed, images, prefix) == ["0.conv", "1.conv"]


def test_without_memory_in_a_users_words_everything_runs(images: Tensor) -> None:
    class Full(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = Block(), Block()

        def forward(self, x: Tensor) -> Tensor:
            try:
                if x.abs().sum() == 0:  # as it is tried on
                    raise MemoryError
            except MemoryError as error:
                raise ValueError("too large") from error
            result: Tensor = self.second(self.first(x))
            return result

    network = Full().eval()
    prefix = Prefix(network, images)
    changed = copy.deepcopy(network)
    with torch.no_grad():
        changed.get_parameter("second.conv.weight").mul_(2)
    assert compared(network, changed, images, prefix) == ["first.conv", "second.conv"]


def test_numbers_that_code_reads_are_a_change(images: Tensor) -> None:
    class Scaled(Layers):
        def __init__(self) -> None:
            super().__init__()
            self.scale = 2

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x) * self.scale)

    network = Scaled().eval()
    changed = copy.deepcopy(network)
    changed.scale = 3
    assert compared(network, changed, images) == ["first", "second"]
    strided = copy.deepcopy(network)
    strided.second.stride = (2, 2)
    assert compared(network, strided, images) == ["second"]
