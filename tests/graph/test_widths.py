"""Widths by hand, and their cost against what the network costs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxdistill.graph.channels import analyse_channels
from onnxdistill.graph.cost import count_macs
from onnxdistill.graph.groups import ChannelGroup, Member
from onnxdistill.graph.importance import magnitude
from onnxdistill.graph.surgery import remove_channels
from onnxdistill.graph.widths import Steps, global_widths, most_important, uniform_widths, unmatched, weight_costs
from onnxdistill.networks import build_network
from tests import tiny


def group(size: int, each: int = 1, kind: str = "channels", frozen: bool = False) -> ChannelGroup:
    indices = tuple(np.arange(each * channel, each * (channel + 1)) for channel in range(size))
    return ChannelGroup("layer1.conv", size, (Member("layer1.conv.weight", 0, indices),), frozen, kind)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("steps", "size", "each", "wanted", "width"),
    [
        (Steps(8, 8), 64, 1, 32.0, 32),
        (Steps(8, 8), 64, 1, 33.0, 40),
        (Steps(8, 8), 20, 1, 20.0, 20),  # not wider than it is
        (Steps(8, 8), 64, 1, 3.0, 8),
        (Steps(8, 8), 16, 4, 5.0, 6),  # six channels are 24 of the layer
        (Steps(1, 1), 10, 1, 0.0, 1),
        (Steps({"layer2.*": 16, "layer1.*": 4}, 1), 64, 1, 30.0, 32),
        (Steps({"layer2.*": 16}, 1), 64, 1, 34.0, 40),  # as without a table
        (Steps({"layer2.*": 16, "*": 1}, 1), 64, 1, 30.0, 30),
    ],
)
def test_rounding_by_hand(steps: Steps, size: int, each: int, wanted: float, width: int) -> None:
    assert steps.rounded(group(size, each), wanted) == width


def test_heads_are_counted_one_by_one() -> None:
    assert Steps(8, 8).rounded(group(12, 64, "heads"), 5.0) == 5


def test_what_is_skipped_or_frozen_stays() -> None:
    assert not Steps(skip=("layer1.*",)).may_cut(group(8))
    assert not Steps().may_cut(group(8, frozen=True))
    assert Steps(skip=("layer2.*",)).may_cut(group(8))
    # By any of the layers whose channels they are, but not by those that only take them.
    network = tiny.Residual().eval()
    stream = max(analyse_channels(network, torch.randn(2, 3, 8, 8)).free, key=lambda one: len(one.names))
    assert len(stream.names) > 1
    consumers = [member.layer for member in stream.members if member.dim == 1]
    assert not any(Steps(skip=(name,)).may_cut(stream) for name in stream.names)
    assert all(Steps(skip=(name,)).may_cut(stream) for name in set(consumers) - set(stream.names))
    assert set(consumers) - set(stream.names)


def test_patterns_that_fit_nothing_are_told() -> None:
    network = tiny.Residual().eval()
    analysis = analyse_channels(network, torch.randn(2, 3, 8, 8))
    name = analysis.free[0].name
    assert unmatched("prune.skip", [name, "*", "nowhere.*"], network, analysis.groups) == [
        "prune.skip: 'nowhere.*' fits nothing in the network."
    ]


@settings(max_examples=10)
@given(seed=st.integers(0, 1000))
@pytest.mark.parametrize("kind", [tiny.Chain, tiny.Residual, tiny.DepthwiseSeparable, tiny.Grouped, tiny.Flattened])
def test_costs_are_those_of_the_cut_network(kind: type[torch.nn.Module], seed: int) -> None:
    network, example = kind().eval(), torch.randn(2, 3, 8, 8)
    analysis = ANALYSES.setdefault(kind, analyse_channels(network, example))
    costs = weight_costs(network, analysis, example)
    assert sum(cost.macs({}) for cost in costs) == count_macs(network, example[:1])
    rng = np.random.default_rng(seed)
    kept = {g.name: np.sort(rng.permutation(g.size)[: rng.integers(1, g.size + 1)]) for g in analysis.free}
    smaller = remove_channels(network, analysis, kept, example)
    removed = {g.name: g.size - len(kept[g.name]) for g in analysis.free}
    assert sum(cost.macs(removed) for cost in costs) == count_macs(smaller, example[:1])


ANALYSES: dict[type[torch.nn.Module], object] = {}


@pytest.mark.parametrize("share", [0.75, 0.5, 0.25])
def test_a_share_of_the_multiply_adds_is_met(share: float) -> None:
    network, example = build_network("cifar-resnet20", 10, 0), torch.randn(2, 3, 32, 32)
    analysis = analyse_channels(network, example)
    scores = magnitude(network, analysis, 2)
    widths = global_widths(analysis, scores, weight_costs(network, analysis, example), share, Steps())
    smaller = remove_channels(network, analysis, most_important(scores, widths), example)
    left = count_macs(smaller, example) / count_macs(network, example)
    assert share - 0.12 < left <= share


def test_dear_channels_of_little_importance_go_first() -> None:
    network, example = tiny.Chain().eval(), torch.randn(2, 3, 8, 8)
    analysis = analyse_channels(network, example)
    scores = {"conv1": torch.full((6,), 1.0), "conv2": torch.full((4,), 1.0)}
    scores["conv1"][2] = 0.01
    costs = weight_costs(network, analysis, example)
    assert global_widths(analysis, scores, costs, 0.95, Steps()) == {"conv1": 5}
    assert most_important(scores, {"conv1": 5})["conv1"].tolist() == [0, 1, 3, 4, 5]


def test_uniform_widths_by_hand() -> None:
    analysis = analyse_channels(tiny.Concatenated().eval(), torch.zeros(2, 3, 8, 8))
    assert uniform_widths(analysis, 0.5, Steps()) == {"left": 2, "right": 3, "joint": 3}
    assert uniform_widths(analysis, 0.5, Steps(4)) == {"right": 4, "joint": 4}  # 2 rounds up to 4, all of left
    assert uniform_widths(analysis, 0.5, Steps(1, 3, ("joi*",))) == {"left": 3, "right": 3}
    assert uniform_widths(analysis, 0.3, Steps(skip=("left", "right"))) == {"joint": 5}


@settings(max_examples=60)
@given(ratio=st.floats(0.01, 0.99), multiple=st.integers(1, 8), minimum=st.integers(1, 8), size=st.integers(1, 40))
def test_widths_are_multiples_and_never_below_what_was_asked(
    ratio: float, multiple: int, minimum: int, size: int
) -> None:
    width = Steps(multiple, minimum).rounded(group(size), (1 - ratio) * size)
    assert width == size or width % multiple == 0
    assert width >= min(size, minimum)
    assert width >= (1 - ratio) * size - 1e-6


def test_uniform_widths_leave_out_what_keeps_its_width() -> None:
    analysis = analyse_channels(tiny.Chain().eval(), torch.randn(2, 3, 8, 8))
    assert uniform_widths(analysis, 0.5, Steps(4, 4)) == {"conv1": 4}


def test_costs_of_layers_that_get_their_inputs_by_name() -> None:
    class Named(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution = torch.nn.ConvTranspose2d(3, 8, 2)
            self.attention = torch.nn.MultiheadAttention(8, 2, batch_first=True)
            self.named = False

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            given = self.convolution(input=x) if self.named else self.convolution(x)
            tokens = given.flatten(2).mT
            if self.named:
                result: torch.Tensor = self.attention(query=tokens, key=tokens, value=tokens, need_weights=False)[0]
            else:
                result = self.attention(tokens, tokens, tokens, need_weights=False)[0]
            return result.mean(1)

    network, example = Named().eval(), torch.randn(2, 3, 4, 4)
    analysis = analyse_channels(network, example)
    expected = weight_costs(network, analysis, example)
    network.named = True
    assert weight_costs(network, analysis, example) == expected

    class Own(torch.nn.Conv2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x)

    class Calls(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.own = Own(3, 8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.own(x=x)
            return result

    calls = Calls().eval()
    (cost,) = weight_costs(calls, analyse_channels(calls, example), example)
    assert cost.macs({}) == 9 * 3 * 8 * 4
    assert {cost.name for cost in expected} >= {"convolution.weight", "attention.in_proj_weight"}


def test_costs_of_heads_and_of_dimensions_within_them() -> None:
    """Half of the dimensions of a third of the heads: a sixth of the projections."""
    network, example = tiny.Attention().eval(), torch.randn(2, 3, 8, 8)
    analysis = analyse_channels(network, example)
    costs = {cost.name: cost for cost in weight_costs(network, analysis, example)}
    whole = costs["qkv.weight"].macs({})
    assert costs["qkv.weight"].macs({"qkv": 2, "qkv:heads": 2}) == whole / 6
    assert costs["out.weight"].macs({"qkv": 2, "qkv:heads": 2}) == costs["out.weight"].macs({}) / 6
