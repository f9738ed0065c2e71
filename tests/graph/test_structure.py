"""A compressed network written down and rebuilt gives the same outputs and trains."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from onnxdistill.errors import NetworkError
from onnxdistill.graph.blocks import without_blocks
from onnxdistill.graph.channels import analyse_channels
from onnxdistill.graph.lowrank import decompose, low_rank_pair
from onnxdistill.graph.structure import rebuild, structure_of
from onnxdistill.graph.surgery import remove_channels
from onnxdistill.networks import build_network
from tests import tiny

KINDS: list[type[nn.Module]] = [
    tiny.Residual, tiny.DepthwiseSeparable, tiny.Grouped, tiny.Shared, tiny.Scaled, tiny.Transposed, tiny.Normalised,
    tiny.Tokens, tiny.Attention, tiny.WindowAttention, tiny.Auxiliary,
]  # fmt: skip


def from_file(content: Any) -> Any:
    file = io.BytesIO()
    torch.save(content, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def assert_comes_back(network: nn.Module, original: nn.Module, example: Tensor) -> nn.Module:
    structure, state = from_file((structure_of(network, original), network.state_dict()))
    before = {name: tensor.clone() for name, tensor in original.state_dict().items()}
    rebuilt = rebuild(original, structure, state)
    with torch.inference_mode():
        assert torch.equal(rebuilt(example), network(example))
    assert all(torch.equal(tensor, before[name]) for name, tensor in original.state_dict().items())
    rebuilt.train()(example).sum().backward()
    shapes = {name: parameter.shape for name, parameter in rebuilt.named_parameters()}
    assert shapes == {name: parameter.shape for name, parameter in network.named_parameters()}
    return rebuilt


def seeded(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return build().eval()


def test_versions_of_modules_come_back() -> None:
    """Some refuse weights that say nothing of theirs, as torchvision's MNASNet does."""

    network, original = tiny.Versioned(2, 3), tiny.Versioned(2, 3)
    rebuilt = rebuild(original, *from_file((structure_of(network, original), network.state_dict())))
    assert torch.equal(rebuilt.get_parameter("weight"), network.weight)


def test_a_file_that_changed_in_the_meantime_has_the_same_classes(tmp_path: Path) -> None:
    """But for a comment, say: a student is written down with what its file is in the end."""
    code = "from torch import nn\n\n\nclass Net(nn.Linear):\n    pass\n\n\ndef make():\n    return Net(2, 2)\n"
    (tmp_path / "nets.py").write_text(code)
    before = build_network(f"{tmp_path}/nets.py:make", 2, 0)
    (tmp_path / "nets.py").write_text(f"{code}# more\n")
    after = build_network(f"{tmp_path}/nets.py:make", 2, 0)
    assert type(before) is not type(after)
    assert structure_of(before, after)["replaced"] == {}


@pytest.mark.parametrize("kind", KINDS)
def test_pruned_networks_come_back(kind: type[nn.Module]) -> None:
    # Another seed than the pruned network's: its weights have to come from the state.
    network, original = seeded(kind, 0), seeded(kind, 1)
    example = torch.randn(2, 3, 8, 8)
    analysis = analyse_channels(network, example)
    for wanted in ("channels", "heads"):
        kept = {group.name: np.arange(1, group.size) for group in analysis.free if group.kind == wanted}
        if kept:
            assert_comes_back(remove_channels(network, analysis, kept, example), original, example)


def test_blocks_and_pairs_come_back() -> None:
    network, original = build_network("cifar-resnet20", 10, 0), build_network("cifar-resnet20", 10, 1)
    example = torch.rand(2, 3, 32, 32)
    shorter = without_blocks(network, ["layer1.1", "layer3.2"])
    analysis = analyse_channels(shorter, example)
    smaller = remove_channels(shorter, analysis, {"layer3.1.conv1": np.arange(0, 64, 2)}, example)
    layer = smaller.get_submodule("layer2.0.conv2")
    assert isinstance(layer, nn.Conv2d)
    smaller.set_submodule("layer2.0.conv2", low_rank_pair(layer, decompose(layer, "spatial"), 4, "spatial"))
    rebuilt = assert_comes_back(smaller, original, example)
    conv = rebuilt.get_submodule("layer3.1.conv1")
    assert isinstance(conv, nn.Conv2d)
    assert (conv.in_channels, conv.out_channels) == (64, 32)
    assert isinstance(rebuilt.get_submodule("layer1.1"), nn.Identity)


def test_shared_weights_stay_shared() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.one, self.other = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 1)
            self.other.weight = self.one.weight
            self.linear = nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(self.other(torch.relu(self.one(self.stem(x)))).mean((2, 3)))

    network, example = seeded(Tied, 0), torch.randn(2, 3, 8, 8)
    analysis = analyse_channels(network, example)
    kept = {group.name: np.arange(1, group.size) for group in analysis.free}
    assert kept
    rebuilt = assert_comes_back(remove_channels(network, analysis, kept, example), seeded(Tied, 1), example)
    assert rebuilt.get_parameter("other.weight") is rebuilt.get_parameter("one.weight")


def test_what_cannot_be_written_down_is_named() -> None:
    network, original = seeded(tiny.Chain, 0), seeded(tiny.Chain, 0)
    network.set_submodule("conv2", nn.Conv1d(6, 4, 1))
    with pytest.raises(NetworkError, match="conv2 became a Conv1d"):
        structure_of(network, original)


def test_a_structure_of_another_network_is_refused(tmp_path: Path) -> None:
    network, example = seeded(tiny.Chain, 0), torch.randn(2, 3, 8, 8)
    analysis = analyse_channels(network, example)
    smaller = remove_channels(network, analysis, {"conv1": np.arange(3)}, example)
    structure = structure_of(smaller, network)
    for other, state in ((tiny.Residual, smaller.state_dict()), (tiny.Chain, {})):
        with pytest.raises(NetworkError, match="cannot take the structure and the weights"):
            rebuild(other().eval(), structure, state)


def test_types_and_what_is_not_trained_come_back() -> None:
    network, original = seeded(tiny.Chain, 0).double(), seeded(tiny.Chain, 1)
    network.get_parameter("conv1.weight").requires_grad_(False)
    rebuilt = rebuild(original, *from_file((structure_of(network, original), network.state_dict())))
    assert {parameter.dtype for parameter in rebuilt.parameters()} == {torch.float64}
    assert [name for name, p in rebuilt.named_parameters() if not p.requires_grad] == ["conv1.weight"]
