"""Importance, widths, and recalibration, by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from onnxdistill.graph.channels import analyse_channels
from onnxdistill.graph.importance import first_order_taylor, magnitude
from onnxdistill.graph.recalibrate import recalibrate_batch_norm
from onnxdistill.graph.widths import most_important, uniform_widths
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
    assert first_order_taylor(network, analysis, losses)["a"].tolist() == pytest.approx([9 / 6.5, 4 / 6.5])
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
    assert scores.tolist() == pytest.approx((np.array(changes) / np.mean(changes)).tolist())


def test_widths_by_hand() -> None:
    analysis = analyse_channels(tiny.Concatenated(), torch.zeros(2, 3, 8, 8))
    assert uniform_widths(analysis, 0.5, 1, 1, []) == {"left": 2, "right": 3, "joint": 3}
    assert uniform_widths(analysis, 0.5, 4, 1, []) == {"right": 4, "joint": 4}  # 2 rounds up to 4, all of left
    assert uniform_widths(analysis, 0.5, 1, 3, ["joi*"]) == {"left": 3, "right": 3}
    assert uniform_widths(analysis, 0.3, 1, 1, ["left", "right"]) == {"joint": 5}


def test_grouped_channels_count_in_channels_of_the_layer() -> None:
    analysis = analyse_channels(tiny.Grouped(), torch.zeros(2, 3, 8, 8))
    # The stem's 8 channels go in pairs: 4 layer channels are 2 of the group.
    assert uniform_widths(analysis, 0.5, 4, 4, ["grouped"]) == {"stem": 2}


@settings(max_examples=60)
@given(ratio=st.floats(0.01, 0.99), multiple=st.integers(1, 8), minimum=st.integers(1, 8))
def test_widths_are_multiples_and_never_below_what_was_asked(ratio: float, multiple: int, minimum: int) -> None:
    analysis = analyse_channels_once()
    for name, width in uniform_widths(analysis, ratio, multiple, minimum, []).items():
        group = analysis[name]
        assert width % multiple == 0
        assert min(group.size, minimum) <= width < group.size
        assert width >= (1 - ratio) * group.size - 1e-6


_CACHE: dict[str, object] = {}


def analyse_channels_once():  # type: ignore[no-untyped-def]
    if "wide" not in _CACHE:
        wide = nn.Sequential(nn.Conv2d(3, 24, 1), nn.ReLU(), nn.Conv2d(24, 17, 1), nn.ReLU(), nn.Conv2d(17, 2, 1))
        _CACHE["wide"] = analyse_channels(wide, torch.zeros(2, 3, 4, 4))
    return _CACHE["wide"]


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
