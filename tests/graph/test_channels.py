"""Channel groups against those written out by hand, and the proof that a cut is right: masked equals pruned."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from onnxdistill.errors import NetworkError
from onnxdistill.graph.channels import ChannelAnalysis, ChannelGroup, analyse_channels
from onnxdistill.graph.cores import core_of
from onnxdistill.graph.cost import count_macs, parameter_count
from onnxdistill.graph.rules.shapes import reshape_blocks
from onnxdistill.graph.silence import silent_outputs
from onnxdistill.graph.surgery import remove_channels
from onnxdistill.networks import build_network
from tests import tiny

Free = dict[str, tuple[int, list[str]]]
"""Groups that can be cut: their size and the dimensions that they run through, as `layer.tensor:dim`."""

EXPECTED: dict[type[nn.Module], Free] = {
    tiny.Chain: {
        "conv1": (6, ["conv1.weight:0", "conv1.bias:0", "bn1.weight:0", "bn1.bias:0", "bn1.running_mean:0",
                      "bn1.running_var:0", "conv2.weight:1"]),
        "conv2": (4, ["conv2.weight:0", "conv2.bias:0", "linear.weight:1"]),
    },
    tiny.Residual: {
        "stem": (4, ["stem.weight:0", "stem.bias:0", "conv1.weight:1", "conv2.weight:0", "conv2.bias:0",
                     "linear.weight:1"]),
        "conv1": (6, ["conv1.weight:0", "conv1.bias:0", "conv2.weight:1"]),
    },
    tiny.Padded: {
        "stem": (4, ["stem.weight:0", "stem.bias:0", "conv1.weight:1", "conv1.weight:0", "conv1.bias:0",
                     "linear.weight:1"]),
        "conv1": (2, ["conv1.weight:0", "conv1.bias:0", "linear.weight:1"]),
    },
    tiny.Concatenated: {
        "left": (4, ["left.weight:0", "left.bias:0", "joint.weight:1"]),
        "right": (5, ["right.weight:0", "right.bias:0", "joint.weight:1"]),
        "joint": (6, ["joint.weight:0", "joint.bias:0", "linear.weight:1"]),
    },
    tiny.DepthwiseSeparable: {
        "stem": (6, ["stem.weight:0", "stem.bias:0", "depthwise.weight:0", "depthwise.bias:0", "bn.weight:0",
                     "bn.bias:0", "bn.running_mean:0", "bn.running_var:0", "pointwise.weight:1"]),
        "pointwise": (5, ["pointwise.weight:0", "pointwise.bias:0", "linear.weight:1"]),
    },
    tiny.Grouped: {
        "stem": (4, ["stem.weight:0", "stem.bias:0", "grouped.weight:1"]),
        "grouped": (3, ["grouped.weight:0", "grouped.bias:0", "linear.weight:1"]),
    },
    tiny.Flattened: {
        "conv": (4, ["conv.weight:0", "conv.bias:0", "linear1.weight:1"]),
        "linear1": (6, ["linear1.weight:0", "linear1.bias:0", "linear2.weight:1"]),
    },
    tiny.SqueezeExcite: {
        "conv": (6, ["conv.weight:0", "conv.bias:0", "squeeze.weight:1", "excite.weight:0", "excite.bias:0",
                     "linear.weight:1"]),
        "squeeze": (4, ["squeeze.weight:0", "squeeze.bias:0", "excite.weight:1"]),
    },
    tiny.Shared: {
        "stem": (5, ["stem.weight:0", "stem.bias:0", "shared.weight:0", "shared.bias:0", "shared.weight:1",
                     "linear.weight:1"]),
    },
    tiny.Scaled: {"conv": (5, ["conv.weight:0", "conv.bias:0", ".scale:0", "linear.weight:1"])},
    tiny.Unknown: {"conv": (6, ["conv.weight:0", "conv.bias:0", "linear.weight:1"])},
    tiny.Split: {
        "stem": (3, ["stem.weight:0", "stem.bias:0", "conv.weight:1"]),
        "conv": (5, ["conv.weight:0", "conv.bias:0", "linear.weight:1"]),
    },
    tiny.ManyGroups: {
        "stem": (4, ["stem.weight:0", "stem.bias:0", "grouped.weight:0", "grouped.bias:0", "linear.weight:1"]),
    },
    tiny.Transposed: {
        "stem": (4, ["stem.weight:0", "stem.bias:0", "up.weight:0"]),
        "up": (6, ["up.weight:1", "up.bias:0", "depthwise.weight:0", "depthwise.bias:0", "linear.weight:1"]),
    },
    tiny.Normalised: {
        "stem": (6, ["stem.weight:0", "stem.bias:0", "layer_norm.weight:0", "layer_norm.bias:0", "linear1.weight:1"]),
        "linear1": (4, ["linear1.weight:0", "linear1.bias:0", "group_norm.weight:0", "group_norm.bias:0",
                        "linear2.weight:1"]),
    },
    tiny.Shuffled: {
        "stem": (3, ["stem.weight:0", "stem.bias:0", "conv.weight:1"]),
        "conv": (4, ["conv.weight:0", "conv.bias:0", "linear.weight:1"]),
    },
    tiny.PixelShuffled: {
        "stem": (3, ["stem.weight:0", "stem.bias:0", "conv.weight:1"]),
        "conv": (4, ["conv.weight:0", "conv.bias:0", "linear.weight:1"]),
    },
    tiny.Tokens: {
        "embedding": (6, ["embedding.weight:1", ".token:2", ".positions:2", ".scale:0", "linear.weight:1"]),
    },
    tiny.Attention: {
        "stem": (5, ["stem.weight:0", "stem.bias:0", "qkv.weight:1", "out.weight:0", "out.bias:0", "linear.weight:1"]),
        "qkv": (4, ["qkv.weight:0", "qkv.bias:0", "out.weight:1"]),
        "qkv:heads": (3, ["qkv.weight:0", "qkv.bias:0", "out.weight:1"]),
    },
    tiny.WindowAttention: {
        "stem": (6, ["stem.weight:0", "stem.bias:0", "query.weight:1", "key.weight:1", "value.weight:1"]),
        "query": (4, ["query.weight:0", "query.bias:0", "key.weight:0", "key.bias:0"]),
        "value": (4, ["value.weight:0", "value.bias:0", "out.weight:1"]),
        "query:heads": (2, ["query.weight:0", "query.bias:0", "key.weight:0", "key.bias:0", "value.weight:0",
                            "value.bias:0", ".table:1", "out.weight:1"]),
    },
    tiny.Coupled: {
        "stem": (4, ["stem.weight:0", "stem.bias:0", "attention.in_proj_weight:1", "attention.in_proj_weight:0",
                     "attention.in_proj_bias:0", "attention.out_proj.weight:1", "attention.out_proj.weight:0",
                     "attention.out_proj.bias:0", "linear.weight:1"]),
    },
    tiny.Auxiliary: {
        "stem": (5, ["stem.weight:0", "stem.bias:0", "linear.weight:1", "auxiliary.weight:1"]),
    },
}  # fmt: skip

FAMILIES = [  # one a kind of architecture; benchmarks/coverage/run.py goes through all
    "resnet18",
    "vgg11_bn",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "squeezenet1_1",
    "resnext50_32x4d",
]


def randomised(network: nn.Module) -> nn.Module:
    """In float64, with statistics that are not those of a new network."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in network.named_buffers():
        if tensor.is_floating_point():
            noise = torch.rand(tensor.shape, generator=generator)
            tensor.copy_(0.5 + noise if "var" in name else noise - 0.5)
    return network.double().eval()


def example(size: int = 8, channels: int = 3) -> Tensor:
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def described(group: ChannelGroup) -> list[str]:
    return [
        f"{member.tensor if '.' in member.tensor else '.' + member.tensor}:{member.dim}" for member in group.members
    ]


def assert_masked_equals_pruned(network: nn.Module, inputs: Tensor, rng: np.random.Generator) -> None:
    assert_cut_is_right(network, analyse_channels(network, inputs), inputs, rng)


def assert_cut_is_right(
    network: nn.Module, analysis: ChannelAnalysis, inputs: Tensor, rng: np.random.Generator
) -> None:
    kept = {}
    for group in analysis.free:
        count = int(rng.integers(1, group.size + 1))
        kept[group.name] = np.sort(rng.permutation(group.size)[:count])
    pruned = remove_channels(network, analysis, kept, inputs)
    with torch.inference_mode():
        expected = tree_leaves(silent_outputs(network, analysis, kept, inputs))
        actual = tree_leaves(core_of(pruned)(inputs))
    for one, other in zip(expected, actual, strict=True):
        assert (one - other).abs().max() <= 1e-5 * one.abs().max()
    trained = core_of(pruned.float().train())(inputs.float())  # an ordinary module
    sum(output.sum() for output in tree_leaves(trained)).backward()


@functools.cache
def analysed(kind: type[nn.Module]) -> tuple[nn.Module, ChannelAnalysis]:
    torch.manual_seed(0)
    network = randomised(kind())
    return network, analyse_channels(network, example())


@pytest.mark.parametrize("kind", EXPECTED, ids=lambda kind: kind.__name__)
def test_groups_are_those_written_out_by_hand(kind: type[nn.Module]) -> None:
    _, analysis = analysed(kind)
    free = {group.name: (group.size, described(group)) for group in analysis.groups if not group.frozen}
    assert free.keys() == EXPECTED[kind].keys()
    for name, (size, members) in EXPECTED[kind].items():
        assert free[name][0] == size
        assert sorted(free[name][1]) == sorted(members)


def test_indices_by_hand() -> None:
    def indices(network: nn.Module, group: str, tensor: str, dim: int) -> list[list[int]]:
        members = analyse_channels(network.double(), example())[group].members
        return next([i.tolist() for i in m.indices] for m in members if (m.tensor, m.dim) == (tensor, dim))

    assert indices(tiny.Padded(), "stem", "conv1.weight", 0) == [[2], [3], [4], [5]]
    assert indices(tiny.Concatenated(), "right", "joint.weight", 1) == [[4], [5], [6], [7], [8]]
    assert indices(tiny.Grouped(), "stem", "stem.weight", 0) == [[0, 4], [1, 5], [2, 6], [3, 7]]
    assert indices(tiny.Grouped(), "stem", "grouped.weight", 1) == [[0], [1], [2], [3]]
    assert indices(tiny.Flattened(), "conv", "linear1.weight", 1)[1] == [4, 5, 6, 7]


def test_what_freezes_is_named() -> None:
    freezes = analyse_channels(tiny.Unknown().double(), example()).freezes
    assert ("cumsum", ("stem",)) in [(freeze.operator, freeze.layers) for freeze in freezes]
    for kind in (tiny.HardCoded, tiny.Halves):  # widths that are written into the code
        analysis = analyse_channels(kind().double(), example())
        assert analysis.free == []
        (freeze,) = [freeze for freeze in analysis.freezes if freeze.operator != "the network's output"]
        assert freeze.operator == f"the code of {kind.__name__}"


@pytest.mark.parametrize("kind", EXPECTED, ids=lambda kind: kind.__name__)
def test_masked_equals_pruned(kind: type[nn.Module]) -> None:
    network, analysis = analysed(kind)
    rng = np.random.default_rng(0)
    for _ in range(8):
        assert_cut_is_right(network, analysis, example(), rng)


@pytest.mark.parametrize("name", FAMILIES)
def test_masked_equals_pruned_on_torchvision(name: str) -> None:
    network = randomised(build_network(f"torchvision:{name}", 7, 0))
    assert_masked_equals_pruned(network, example(64), np.random.default_rng(0))


@pytest.mark.parametrize(("name", "size"), [("cifar-resnet20", 32), ("digits-resnet", 8)])
def test_masked_equals_pruned_on_the_built_in_networks(name: str, size: int) -> None:
    network = randomised(build_network(name, 10, 0))
    assert_masked_equals_pruned(network, example(size, 1 if "digits" in name else 3), np.random.default_rng(0))


def test_pruned_layers_know_their_sizes() -> None:
    network = randomised(tiny.DepthwiseSeparable())
    analysis = analyse_channels(network, example())
    pruned = remove_channels(network, analysis, {"stem": np.array([0, 2, 3])}, example())
    assert pruned.depthwise.groups == pruned.depthwise.in_channels == pruned.depthwise.out_channels == 3
    assert pruned.bn.num_features == pruned.pointwise.in_channels == pruned.stem.out_channels == 3
    assert torch.equal(pruned.stem.weight, network.stem.weight[[0, 2, 3]])
    assert network.stem.out_channels == 6
    grouped = randomised(tiny.Grouped())
    pruned = remove_channels(grouped, analyse_channels(grouped, example()), {"stem": np.array([1, 2])}, example())
    assert (pruned.grouped.groups, pruned.grouped.in_channels, pruned.stem.out_channels) == (2, 4, 4)


def test_impossible_cuts_are_refused() -> None:
    network = randomised(tiny.Unknown())
    analysis = analyse_channels(network, example())
    with pytest.raises(ValueError, match="frozen"):
        remove_channels(network, analysis, {"stem": np.array([0])}, example())
    with pytest.raises(ValueError, match="at least one stays"):
        remove_channels(network, analysis, {"conv": np.array([], dtype=np.int64)}, example())


def test_what_cannot_be_traced_is_explained() -> None:
    class DataDependent(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(NetworkError, match="cannot be traced"):
        analyse_channels(DataDependent(), example())


@pytest.mark.parametrize(
    ("before", "after", "blocks"),
    [
        ((2, 3, 4, 4), (2, 48), [([0], [0]), ([1, 2, 3], [1])]),
        ((2, 6), (2, 2, 3), [([0], [0]), ([1], [1, 2])]),
        ((2, 5, 1, 1), (2, 5), [([0], [0]), ([1], [1]), ([2], []), ([3], [])]),
        ((2, 5), (2, 5, 1), [([0], [0]), ([1], [1]), ([], [2])]),
        ((4, 6), (3, 8), [([0, 1], [0, 1])]),
    ],
)
def test_reshape_blocks_by_hand(
    before: tuple[int, ...], after: tuple[int, ...], blocks: list[tuple[list[int], list[int]]]
) -> None:
    assert reshape_blocks(before, after) == blocks


def test_cost_by_hand() -> None:
    network = tiny.Chain()
    assert parameter_count(network) == (3 * 6 * 9 + 6) + 12 + (6 * 4 * 9 + 4) + (4 * 2 + 2)
    assert count_macs(network, torch.zeros(1, 3, 8, 8)) == 64 * (3 * 6 * 9 + 6 * 4 * 9) + 8
    assert count_macs(build_network("cifar-resnet20", 10, 0), torch.zeros(1, 3, 32, 32)) == pytest.approx(
        40.6e6, rel=0.01
    )


class Wrapping(nn.Module):
    """What is traced holds a network under the same name."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten())

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.network(x)
        return result


class Dividing(nn.Module):
    """Its code divides by a quarter of a width, which a narrower one makes zero."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.second(x * (8 // (x.shape[1] // 4))).flatten(1)


def test_names_are_those_of_the_network() -> None:
    analysis = analyse_channels(Wrapping().eval(), torch.randn(2, 3, 8, 8))
    assert [group.name for group in analysis.free] == ["network.0"]
    assert "network.2" in {layer for freeze in analysis.freezes for layer in freeze.layers}


def test_whatever_code_raises_keeps_the_channels_that_it_raises_for() -> None:
    analysis = analyse_channels(Dividing().eval(), torch.randn(2, 3, 8, 8))
    assert [group.name for group in analysis.free] == []
