"""Least-squares repair: exact where another channel can stand in, and the mean is never lost."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onnxdistill.graph.channels import analyse_channels
from onnxdistill.graph.lowrank import decompose, low_rank_pair
from onnxdistill.graph.places import Place, largest_result, places_of
from onnxdistill.graph.recalibrate import recalibrate_batch_norm
from onnxdistill.graph.repair import layers_after, layers_from, layers_that_lost_inputs, refit
from onnxdistill.graph.surgery import remove_channels
from onnxdistill.networks import build_network
from onnxdistill.tasks.classification import Classification
from tests import tiny


class WithNorm(nn.Module):
    """The second convolution has no bias of its own: a shift of the mean has to go into its batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1)
        self.conv2 = nn.Conv2d(6, 4, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(4)
        self.linear = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(F.relu(self.bn2(self.conv2(F.relu(self.conv1(x))))).mean((2, 3)))


def inputs() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(32, 3, 8, 8, generator=generator) for _ in range(4)]


def repaired(network: nn.Module, kept: list[int]) -> tuple[float, float]:
    """Largest difference of the outputs, without and with repair."""
    batches = inputs()
    analysis = analyse_channels(network, batches[0][:2])
    widths = {"conv1": np.array(kept)}
    cut = remove_channels(network, analysis, widths, batches[0][:2])
    removed = analysis.removed_indices(widths)
    layers = layers_that_lost_inputs(cut, removed)
    fitted = refit(network, cut, layers, removed, batches)
    with torch.inference_mode():
        outputs = [each(batches[0]) for each in (network, cut, fitted)]
    return float((outputs[1] - outputs[0]).abs().max()), float((outputs[2] - outputs[0]).abs().max())


@pytest.mark.parametrize("kind", [tiny.Chain, WithNorm])
def test_a_twin_takes_over(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    network = kind().eval()
    with torch.no_grad():
        network.conv1.weight[1], network.conv1.bias[1] = network.conv1.weight[0], network.conv1.bias[0]
    before, after = repaired(network, [0, 2, 3, 4, 5])
    assert after < 0.05 * before


@pytest.mark.parametrize("kind", [tiny.Chain, WithNorm])
def test_a_constant_goes_into_the_mean(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    network = kind().eval()
    with torch.no_grad():
        network.conv1.weight[0], network.conv1.bias[0] = 0.0, 2.0
    before, after = repaired(network, [1, 2, 3, 4, 5])
    # Chain's second convolution pads with zeros, where the constant is none.
    assert after < (0.6 if kind is tiny.Chain else 0.01) * before


def test_what_runs_after_a_block_is_found_in_order() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Identity(), nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    assert layers_after(network, ["1"], torch.randn(2, 3, 4, 4)) == ["2", "4"]
    assert layers_after(network, ["3", "1"], torch.randn(2, 3, 4, 4)) == ["2", "4"]
    assert layers_after(network, [], torch.randn(2, 3, 4, 4)) == []


def test_only_layers_that_lost_inputs_are_fitted() -> None:
    network = tiny.Residual().eval()
    example = torch.randn(2, 3, 8, 8)
    analysis = analyse_channels(network, example)
    kept = {"conv1": np.array([0, 2, 5])}
    cut = remove_channels(network, analysis, kept, example)
    removed = analysis.removed_indices(kept)
    assert layers_that_lost_inputs(cut, removed) == ["conv2"]
    fitted = refit(network, cut, ["conv2"], removed, [torch.randn(16, 3, 8, 8)])
    assert torch.equal(fitted.stem.weight, cut.stem.weight)
    assert torch.equal(fitted.conv1.weight, cut.conv1.weight)
    assert not torch.equal(fitted.conv2.weight, cut.conv2.weight)


def test_a_layer_that_lost_outputs_too_is_fitted_to_those_that_stay() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 5, 1), nn.ReLU(), nn.Conv2d(5, 2, 1)).eval()
    with torch.no_grad():
        network[0].weight[1], network[0].bias[1] = network[0].weight[0], network[0].bias[0]
        network[4].weight[:, 0] = 0.0  # so that the outputs can stay as they are
    batches = inputs()
    analysis = analyse_channels(network, batches[0][:2])
    widths = {"0": np.array([0, 2, 3, 4, 5]), "2": np.array([1, 2, 3, 4])}
    cut = remove_channels(network, analysis, widths, batches[0][:2])
    removed = analysis.removed_indices(widths)
    fitted = refit(network, cut, layers_that_lost_inputs(cut, removed), removed, batches)
    with torch.inference_mode():
        whole, before, after = (each(batches[0]) for each in (network, cut, fitted))
    assert float((after - whole).abs().max()) < 0.05 * float((before - whole).abs().max())


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_a_fit_is_never_further_off_than_the_cut(inplace: bool, bias: bool) -> None:
    """Also if an activation overwrites the targets, and if there is no bias to put a shift into."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Linear(12, 24), nn.Sigmoid(), nn.Linear(24, 16, bias=bias), nn.ReLU(inplace=inplace), nn.Linear(16, 3)
    ).eval()
    batches = [torch.randn(256, 12) for _ in range(2)]
    analysis = analyse_channels(network, batches[0][:2])
    widths = {"0": np.arange(20)}
    cut = remove_channels(network, analysis, widths, batches[0][:2])
    removed = analysis.removed_indices(widths)
    fitted = refit(network, cut, ["2"], removed, batches)
    with torch.inference_mode():
        whole, before, after = (each[:3](batches[0]) for each in (network, cut, fitted))
    assert float((after - whole).square().mean()) < 0.1 * float((before - whole).square().mean())


def test_a_pair_stands_for_the_layer_that_it_replaces() -> None:
    torch.manual_seed(0)
    network = WithNorm().eval()
    cut = WithNorm().eval()
    cut.load_state_dict(network.state_dict())
    cut.conv1 = low_rank_pair(network.conv1, decompose(network.conv1, "spatial"), 3, "spatial")  # type: ignore[assignment]
    batches = inputs()
    layers = layers_from(cut, ["conv1.1"], batches[0])
    assert layers == ["conv1.1", "conv2", "linear"]
    fitted = refit(network, cut, layers, {}, batches, {"conv1.1": "conv1"})
    with torch.inference_mode():
        expected, before, after = (each(torch.cat(batches)) for each in (network, cut, fitted))
    assert (after - expected).square().mean() < 0.5 * (before - expected).square().mean()
    assert torch.equal(fitted.conv1[0].weight, cut.conv1[0].weight)  # type: ignore[index]


class Shortcuts(nn.Module):
    """Linear but for the ReLU after the sum: a block can make up for all that its input has come to differ by."""

    def __init__(self, norm: bool, relu: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.block = Block(norm, relu)
        self.linear = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.block(self.stem(x)).mean((2, 3)))


class Block(nn.Module):
    def __init__(self, norm: bool, relu: bool) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 8, 1)
        self.second = nn.Conv2d(8, 4, 1, bias=not norm)
        self.norm = nn.BatchNorm2d(4) if norm else nn.Identity()
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        total = x + self.norm(self.second(self.first(x)))
        return total.relu() if self.relu else total


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("relu", [False, True])
def test_the_end_of_a_branch_makes_up_for_its_shortcut(norm: bool, relu: bool) -> None:
    torch.manual_seed(0)
    network = Shortcuts(norm, relu).eval()
    if isinstance(network.block.norm, nn.BatchNorm2d):
        network.block.norm.weight.data = torch.tensor([0.5, -2.0, 1.0, 3.0])
        network.block.norm.running_var = torch.tensor([4.0, 1.0, 0.5, 2.0])
    cut = copy.deepcopy(network)
    cut.stem.weight.data += 0.3 * torch.randn_like(cut.stem.weight)
    batches = inputs()
    assert places_of(cut, ["block.first", "block.second"], batches[0][:1]) == [
        Place("block.first", "", ""),
        Place("block.second", "block.norm" if norm else "", "block"),
    ]
    fitted = refit(network, cut, ["block.second"], {}, batches)
    assert torch.equal(fitted.block.first.weight, cut.block.first.weight)
    with torch.inference_mode():
        expected, before, after = (each.block(each.stem(batches[0])) for each in (network, cut, fitted))
    assert (after - expected).square().mean() < 0.01 * (before - expected).square().mean()


def test_a_channel_that_its_norm_keeps_back_stays() -> None:
    """A scale of nothing lets no weight make up for anything."""
    torch.manual_seed(0)
    network = Shortcuts(norm=True, relu=False).eval()
    assert isinstance(network.block.norm, nn.BatchNorm2d)
    network.block.norm.weight.data[1] = 1e-12
    cut = copy.deepcopy(network)
    cut.stem.weight.data += 0.3
    fitted = refit(network, cut, ["block.second"], {}, inputs())
    assert fitted.block.second.weight[1].abs().max() < 10 * cut.block.second.weight.abs().max()


def test_a_norm_behind_an_activation_that_overwrites_is_not_that_of_the_layer() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)).eval()
    assert places_of(network, ["0"], torch.randn(1, 3, 4, 4)) == [Place("0", "", "")]


def test_a_layer_that_runs_twice_is_left_as_it_is() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.again = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.again(self.again(self.first(x)))

    network, cut = Twice().eval(), Twice().eval()
    fitted = refit(network, cut, ["first", "again"], {}, [torch.randn(64, 4)])
    assert torch.equal(fitted.again.weight, cut.again.weight)
    assert not torch.equal(fitted.first.weight, cut.first.weight)


def test_large_inputs_are_looked_at_as_far_as_they_go_through_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """By what the whole network makes on its way, in modules or not."""

    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(12, 24), nn.Linear(24, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            return self.last((x[:, :, None] * x[:, None, :]).sum(1))

    network, cut = Wide().eval(), Wide().eval()
    assert largest_result(network, torch.randn(1, 12)) == 24 * 24
    monkeypatch.setattr("onnxdistill.graph.repair._MOST_VALUES", 5 * 24 * 24)
    monkeypatch.setattr("onnxdistill.graph.repair._FEWEST", 2)
    batches = [torch.randn(4, 12), torch.randn(4, 12)]
    spoilt = [batches[0], torch.cat([batches[1][:1], torch.full((3, 12), torch.nan)])]
    fitted, expected = (refit(network, cut, ["last"], {}, each) for each in (spoilt, batches))
    assert torch.equal(fitted.get_parameter("last.weight"), expected.get_parameter("last.weight"))
    monkeypatch.setattr("onnxdistill.graph.repair._FEWEST", 6)
    assert refit(network, cut, ["last"], {}, spoilt).get_parameter("last.weight").isnan().any()


def test_layers_whose_targets_are_not_held_at_once_are_fitted_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    network = build_network("cifar-resnet20", 10, 0).eval()
    batches = [torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))]
    analysis = analyse_channels(network, batches[0][:2])
    kept = {group.name: np.arange(8) for group in analysis.free}
    cut = remove_channels(network, analysis, kept, batches[0][:2])
    removed = analysis.removed_indices(kept)
    layers = layers_that_lost_inputs(cut, removed)
    assert len(layers) > 10
    runs: list[int] = []
    network.register_forward_hook(lambda *_: runs.append(1))
    at_once = refit(network, cut, layers, removed, batches).state_dict()
    before = len(runs)
    monkeypatch.setattr("onnxdistill.graph.repair._HELD_BYTES", 2**25)  # of a few layers
    in_turns = refit(network, cut, layers, removed, batches).state_dict()
    assert all(torch.equal(tensor, in_turns[name]) for name, tensor in at_once.items())
    assert not any(torch.equal(at_once[f"{name}.weight"], cut.get_parameter(f"{name}.weight")) for name in layers)
    assert len(runs) - before > before


def test_few_positions_are_damped_by_how_many_unknowns_there_are() -> None:
    """One position for four weights of equal inputs: each takes 4 / (4 + 0.01 * 4) of a quarter of the error."""
    network, cut = nn.Sequential(nn.Linear(4, 1, bias=False)), nn.Sequential(nn.Linear(4, 1, bias=False))
    nn.init.ones_(network[0].weight)
    nn.init.zeros_(cut[0].weight)
    fitted = refit(network, cut, ["0"], {}, [torch.ones(1, 4)])
    assert torch.allclose(fitted[0].weight, torch.full((1, 4), 4 / 4.04))


def test_what_works_in_place_on_its_input_is_repaired_all_the_same(digits: Classification) -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.conv2 = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3, bias=False)
            self.norm, self.linear = nn.BatchNorm2d(8), nn.Linear(8, 10)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv1(x.sub_(0.5).mul_(3.0)).relu()
            return self.linear(self.norm(self.conv2(x)).relu().mean((2, 3)))

    torch.manual_seed(0)
    network = InPlace().eval()
    example = digits.example_input(2)
    analysis = analyse_channels(network, example.clone())
    kept = {"conv1": np.arange(4)}
    cut = remove_channels(network, analysis, kept, example.clone())
    batches = [batch.inputs for batch in digits.calibration_batches(32)]
    before = [inputs.clone() for inputs in batches]
    recalibrate_batch_norm(cut, batches)
    layers_from(cut, ["conv2"], batches[0])
    layers_after(cut, ["conv1"], batches[0])
    refit(network, cut, ["conv2"], analysis.removed_indices(kept), batches)
    assert all(torch.equal(one, other) for one, other in zip(batches, before, strict=True))


def test_a_layer_that_another_block_ran_too_is_left_as_it_is() -> None:
    """Once that block has gone, the layer runs once, but what it gave before was for either."""
    torch.manual_seed(0)
    shared = nn.Linear(4, 4)
    network = nn.Sequential(nn.Sequential(shared, nn.ReLU()), nn.Sequential(shared, nn.Linear(4, 2))).eval()
    cut = nn.Sequential(nn.Identity(), copy.deepcopy(network[1])).eval()
    fitted = refit(network, cut, ["1.0", "1.1"], {}, [torch.randn(64, 4)])
    assert torch.equal(fitted.get_parameter("1.0.weight"), shared.weight)
    assert not torch.equal(fitted.get_parameter("1.1.weight"), cut.get_parameter("1.1.weight"))
