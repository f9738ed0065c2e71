"""Networks whose cut could go wrong without a word: single channels taken out, widths in code, tensors in two roles."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from onnxdistill.errors import NetworkError
from onnxdistill.graph.channels import analyse_channels
from onnxdistill.graph.cost import count_macs
from onnxdistill.graph.silence import difference, silent_outputs
from onnxdistill.graph.surgery import remove_channels
from tests.graph.test_channels import assert_cut_is_right, example, randomised


class Head(nn.Module):
    """`conv1`, code of the subclass, `conv2` and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.linear = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> object:
        return self.after(self.between(self.conv1(x)))

    def between(self, x: Tensor) -> Tensor:
        return torch.relu(x)

    def after(self, x: Tensor) -> object:
        return self.linear(torch.relu(self.conv2(x)).mean((2, 3)))


class FirstGoesOut(Head):
    def forward(self, x: Tensor) -> object:
        y = self.between(self.conv1(x))
        return self.after(y), y[:, :1].mean((2, 3))


class FirstIsAGate(Head):
    def between(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x[:, :1].mean((2, 3), keepdim=True))


class FirstIsRepeated(Head):
    def between(self, x: Tensor) -> Tensor:
        return torch.relu(x[:, :1].expand(-1, 8, -1, -1))


class BiasInTwoRoles(Head):
    def after(self, x: Tensor) -> object:
        bias = self.conv1.bias
        assert bias is not None
        return self.linear(torch.relu(self.conv2(x) + bias.view(1, -1, 1, 1)).mean((2, 3)))


class OneWidthForTwo(Head):
    """Two layers that only the code takes for equally wide."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 8
        self.other = nn.Conv2d(3, 8, 3, padding=1)
        self.joint = nn.Linear(2 * 8 * 64, 5)

    def forward(self, x: Tensor) -> object:
        one, other = (c(x).view(len(x), self.width, -1).softmax(-1).flatten(1) for c in (self.conv1, self.other))
        return self.joint(torch.cat([one, other], 1))


class GroupAChannel(Head):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, 8)

    def between(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(x))


class RootMeanSquare(Head):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(8)

    def between(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # type: ignore[no-any-return]  # untyped call


class NormBeforeAScaling(Head):
    """A scaling by the root of a width, after a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(8)

    def between(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return torch.relu(y * y.shape[1] ** -0.5)


class OtherOutputs(Head):
    def forward(self, x: Tensor) -> object:
        y = self.after(self.between(self.conv1(x)))
        assert isinstance(y, Tensor)
        return {"logits": y, "positive": y > 0, "none": None, "width": 5}


class InputInPlace(Head):
    def forward(self, x: Tensor) -> object:
        return super().forward(x.sub_(0.5).div_(0.25))


class RolledFlat(Head):
    def between(self, x: Tensor) -> Tensor:
        return torch.roll(x, 64)


class OfAnothersType(Head):
    def between(self, x: Tensor) -> Tensor:
        return torch.relu(x).type_as(self.linear.weight)


class MoreInTraining(Head):
    def __init__(self) -> None:
        super().__init__()
        self.noise = nn.Buffer(torch.rand(1, 8, 8, 8))

    def between(self, x: Tensor) -> Tensor:
        return x + 0.1 * self.noise if self.training else x


KINDS = [
    FirstGoesOut, FirstIsAGate, FirstIsRepeated, BiasInTwoRoles, OneWidthForTwo, GroupAChannel, RootMeanSquare,
    NormBeforeAScaling, OtherOutputs, InputInPlace, RolledFlat, OfAnothersType, MoreInTraining,
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_cut_is_right_and_trains(kind: type[Head]) -> None:
    torch.manual_seed(0)
    network, inputs = randomised(kind()), example()
    analysis = analyse_channels(network, inputs)
    assert torch.equal(inputs, example())
    for group in analysis.free:
        for channels in (np.arange(1, group.size), np.arange(group.size - 1), np.array([2, 4])):
            if group.size < 5:
                continue
            kept = {group.name: channels}
            cut = remove_channels(network, analysis, kept, inputs)
            with torch.inference_mode():
                assert not difference(silent_outputs(network, analysis, kept, inputs), cut(inputs.clone()))
            cut.train()(inputs.clone())
    rng = np.random.default_rng(0)
    if kind not in (OtherOutputs, InputInPlace):
        for _ in range(4):
            assert_cut_is_right(network, analysis, inputs, rng)


@pytest.mark.parametrize("kind", [GroupAChannel, RootMeanSquare, NormBeforeAScaling, OtherOutputs, InputInPlace])
def test_what_can_be_cut_is_free(kind: type[Head]) -> None:
    torch.manual_seed(0)
    free = {group.name: group.size for group in analyse_channels(randomised(kind()), example()).free}
    assert free == {"conv1": 8, "conv2": 8}


def test_a_branch_on_the_width_is_refused_when_it_is_taken() -> None:
    class Branch(Head):
        def between(self, x: Tensor) -> Tensor:
            return torch.relu(x) if x.shape[1] > 3 else torch.tanh(x)

    torch.manual_seed(0)
    network = randomised(Branch())
    analysis = analyse_channels(network, example())
    remove_channels(network, analysis, {"conv1": np.arange(5)}, example())
    with pytest.raises(NetworkError, match="computes something else than it should: outputs differ"):
        remove_channels(network, analysis, {"conv1": np.arange(2)}, example())


def test_a_module_that_cannot_be_copied_is_explained() -> None:
    network = Head()
    network.register_parameter("extra", nn.Parameter(torch.ones(1)))
    network.kept = network.extra * 2  # type: ignore[assignment]  # as the old weight_norm does
    with pytest.raises(NetworkError, match="keeps a computed tensor, kept"):
        analyse_channels(network, example().float())


def test_channels_to_keep_are_whole_numbers_of_a_group_that_there_is() -> None:
    network = randomised(Head())
    analysis = analyse_channels(network, example())
    as_list: dict[str, object] = {"conv1": [0, 1]}
    assert remove_channels(network, analysis, as_list, example()).get_submodule("conv1").out_channels == 2  # type: ignore[arg-type]  # what a user passes
    with pytest.raises(ValueError, match="there is no group conv9"):
        remove_channels(network, analysis, {"conv9": np.arange(2)}, example())
    with pytest.raises(ValueError, match="not a list of whole numbers"):
        remove_channels(network, analysis, {"conv1": np.array([True] * 8)}, example())  # type: ignore[arg-type]  # what a user passes


def test_a_cut_leaves_modes_as_they_are() -> None:
    network = randomised(Head())
    analysis = analyse_channels(network, example())
    network.train()
    cut = remove_channels(network, analysis, {"conv1": np.arange(5)}, example())
    assert network.training
    assert cut.training


def test_attention_layers_are_counted() -> None:
    # By hand: three projections and one back, 64 x 64 at 16 tokens; two products of 16 x 16 x 64.
    attention = nn.MultiheadAttention(64, 4, batch_first=True).eval()

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = attention

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(x, x, x, need_weights=False)[0]  # type: ignore[no-any-return]  # untyped call

    assert count_macs(Own().eval(), torch.rand(1, 16, 64)) == 4 * 64 * 64 * 16 + 2 * 16 * 16 * 64


def test_differences_are_told() -> None:
    one, nan = torch.ones(4), torch.tensor([1.0, float("nan"), 1.0, 1.0])
    assert difference(one, one.clone()) == ""
    assert difference([nan, None], [nan.clone(), None]) == ""
    assert difference(one, nan) == "one of two outputs is NaN"
    assert difference(nan, one) == "one of two outputs is NaN"
    assert "differ by 0.5" in difference(one, one + 0.5)
    assert "has shape (3,) instead of (4,)" in difference(one, torch.ones(3))
    assert "2 outputs instead of 1" in difference(one, (one, one))
    assert "no real numbers" in difference(one > 0, one > 2)
