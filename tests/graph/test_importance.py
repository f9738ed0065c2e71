"""Importance, widths, and recalibration, by hand."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from onnxdistill.graph.channels import analyse_channels
from onnxdistill.graph.importance import first_order_taylor, geometric_median, magnitude, norm_scale
from onnxdistill.graph.recalibrate import recalibrate_batch_norm
from onnxdistill.graph.widths import most_important
from tests import tiny


class TwoLayers(nn.Module):
    """y = b a x with a = [[1], [2]] and b = [[3, -1]]."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(1, 2, bias=False)
        self.b = nn.Linear(2, 1, bias=False)
        with torch.no_grad():
            self.a.weight.copy_(torch.tensor([[1.0], [2.0]]))
            self.b.weight.copy_(torch.tensor([[3.0, -1.0]]))

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x))


def test_magnitude_by_hand() -> None:
    network = TwoLayers()
    analysis = analyse_channels(network, torch.ones(2, 1))
    # Channel 0: |1| + |3| = 4, channel 1: |2| + |-1| = 3; their mean is 3.5.
    assert magnitude(network, analysis, 1)["a"].tolist() == pytest.approx([4 / 3.5, 3 / 3.5])
    # 1 + 9 = 10 and 4 + 1 = 5; their mean is 7.5.
    assert magnitude(network, analysis, 2)["a"].tolist() == pytest.approx([10 / 7.5, 5 / 7.5])


def test_taylor_by_hand() -> None:
    network = TwoLayers()
    analysis = analyse_channels(network, torch.ones(2, 1))
    # L = y = 3 * 1 * x - 1 * 2 * x; dL/da = (3 x, -x); (a dL/da)^2 = (9 x^2, 4 x^2), over x = 1 and x = 2: 5/2 of each.
    losses = [lambda net, x=x: net(torch.tensor([[x]])).sum() for x in (1.0, 2.0)]
    assert first_order_taylor(network, analysis, losses)["a"].tolist() == pytest.approx([22.5, 10.0])
    assert all(parameter.grad is None for parameter in network.parameters())


def test_taylor_is_the_change_of_a_linear_loss() -> None:
    network = TwoLayers()
    analysis = analyse_channels(network, torch.ones(2, 1))
    scores = first_order_taylor(network, analysis, [lambda net: net(torch.ones(1, 1)).sum()])["a"]
    changes = []
    for channel in range(2):
        silent = TwoLayers()
        with torch.no_grad():
            silent.a.weight[channel] = 0
        changes.append((network(torch.ones(1, 1)) - silent(torch.ones(1, 1))).item() ** 2)
    assert scores.tolist() == pytest.approx(changes)


def test_taylor_counts_a_normalised_channel_once() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 3, 1), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 1)).eval()
    inputs = torch.rand(2, 1, 2, 2)
    analysis = analyse_channels(network, inputs)
    scores = first_order_taylor(network, analysis, [lambda net: net(inputs).sum()])["0"]
    changes = []
    for channel in range(3):
        silent = copy.deepcopy(network)
        with torch.no_grad():
            silent[1].weight[channel] = silent[1].bias[channel] = 0
        changes.append((network(inputs) - silent(inputs)).sum().item() ** 2)  # the loss is linear: no remainder
    assert scores.tolist() == pytest.approx(changes, rel=1e-4)


def test_taylor_of_a_transposed_convolution() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.ConvTranspose2d(2, 3, 2, 2), nn.Flatten(), nn.Linear(48, 1)).eval()
    inputs = torch.rand(2, 2, 2, 2)
    scores = first_order_taylor(network, analyse_channels(network, inputs), [lambda net: net(inputs).sum()])["0"]
    changes = []
    for channel in range(3):
        silent = copy.deepcopy(network)
        with torch.no_grad():
            silent[0].weight[:, channel] = 0
            silent[0].bias[channel] = 0
        changes.append((network(inputs) - silent(inputs)).sum().item() ** 2)
    assert scores.tolist() == pytest.approx(changes, rel=1e-4)


def test_norm_scale_by_hand() -> None:
    network = tiny.Chain()
    with torch.no_grad():
        network.bn1.weight.copy_(torch.tensor([1.0, -2.0, 3.0, 0.0, 4.0, 2.0]))
    scores = norm_scale(network, analyse_channels(network, torch.zeros(2, 3, 8, 8)))
    assert scores["conv1"].tolist() == pytest.approx([0.5, 1.0, 1.5, 0.0, 2.0, 1.0])
    analysis = analyse_channels(network, torch.zeros(2, 3, 8, 8))
    assert torch.equal(scores["conv2"], magnitude(network, analysis, 1)["conv2"])  # it has no normalisation


def test_geometric_median_by_hand() -> None:
    network = TwoLayers()
    with torch.no_grad():
        network.a.weight.copy_(torch.tensor([[0.0], [3.0]]))
        network.b.weight.copy_(torch.tensor([[0.0, 4.0]]))
    # Two channels at (0, 0) and (3, 4): each is 5 from the other.
    scores = geometric_median(network, analyse_channels(network, torch.ones(2, 1)))
    assert scores["a"].tolist() == [1.0, 1.0]
    wide = tiny.Concatenated()
    with torch.no_grad():
        for tensor in (wide.left.weight, wide.joint.weight):
            tensor.zero_()
        wide.left.weight[3] = 1.0
    scores = geometric_median(wide, analyse_channels(wide, torch.zeros(2, 3, 8, 8)))
    assert scores["left"].tolist() == pytest.approx([2 / 3, 2 / 3, 2 / 3, 2.0])  # three alike, one apart


def test_the_most_important_stay_in_order() -> None:
    scores = {"g": torch.tensor([0.5, 2.0, 1.0, 2.0])}
    assert most_important(scores, {"g": 2})["g"].tolist() == [1, 3]
    assert most_important(scores, {"g": 3})["g"].tolist() == [1, 2, 3]


def test_recalibration_by_hand() -> None:
    network = nn.Sequential(nn.BatchNorm1d(1), nn.Dropout(0.5)).eval()
    batches = [torch.tensor([[0.0], [2.0]]), torch.tensor([[4.0], [8.0]])]
    changed = recalibrate_batch_norm(network, batches)
    # Means 1 and 6; unbiased variances 2 and 8.
    assert changed[0].running_mean.item() == pytest.approx(3.5)
    assert changed[0].running_var.item() == pytest.approx(5.0)
    assert network[0].running_mean.item() == 0
    assert (changed[0].momentum, changed[0].training, changed.training) == (0.1, False, False)
