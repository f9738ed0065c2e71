"""Optimizers and schedules, worked by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torchvision
from torch import nn

from onnxdistill.training.optimizers import build_optimizer, build_schedule
from tests.training.small import table


def test_schedule_by_hand() -> None:
    network = nn.Linear(1, 1)
    settings = table(learning_rate=1.0, warmup=0.25, epochs=1)
    optimizer = build_optimizer(network, settings)
    schedule = build_schedule(optimizer, settings, steps=8)
    rates = []
    for _ in range(8):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    # Two warm-up steps of thirds, then cosine over six steps: 1, (1+cos 30°)/2, (1+cos 60°)/2 = 0.75, ...
    assert rates == pytest.approx([1 / 3, 2 / 3, 1, 0.9330, 0.75, 0.5, 0.25, 0.0670], abs=1e-4)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("linear", [0.5, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]),
        ("step", [0.5, 1, 1, 1, 0.1, 0.1, 0.01]),
        ("constant", [0.5, 1, 1, 1, 1, 1, 1]),
        # Half a cosine up, at its middle in the only step of warm-up; then down as `cosine`.
        ("one_cycle", [0.5, 1, 0.93301, 0.75, 0.5, 0.25, 0.06699]),
    ],
)
def test_other_schedules_by_hand(schedule: str, expected: list[float]) -> None:
    settings = table(learning_rate=1.0, warmup=1 / 7, schedule=schedule, epochs=1)
    optimizer = build_optimizer(nn.Linear(1, 1), settings)
    wanted = build_schedule(optimizer, settings, steps=7)
    rates = []
    for _ in range(7):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        wanted.step()
    assert rates == pytest.approx(expected, abs=1e-5)


def test_only_matrices_decay() -> None:
    network = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    groups = build_optimizer(network, table(weight_decay=0.1)).param_groups
    assert [(group["weight_decay"], len(group["params"])) for group in groups] == [(0.1, 1), (0.0, 3)]


def test_biases_and_norms_of_more_dimensions_do_not_decay() -> None:
    class Windows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.relative_position_bias_table = nn.Parameter(torch.zeros(9, 2))
            self.norm = nn.LayerNorm([2, 3, 3])
            self.linear = nn.Linear(3, 3, bias=False)

    groups = build_optimizer(Windows(), table(weight_decay=0.1)).param_groups
    assert [(group["weight_decay"], len(group["params"])) for group in groups] == [(0.1, 1), (0.0, 3)]


def test_layers_learn_at_rates_of_their_own() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token = nn.Parameter(torch.zeros(3))
            self.body = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
            self.head = nn.Linear(3, 2)
            self.tied = self.head

    network = Tokens()
    extra = nn.Parameter(torch.zeros(2, 2))
    optimizer = build_optimizer(network, table(learning_rate=1.0, layer_decay=0.5, weight_decay=0.1), [extra])
    found = [(g["lr"], g["weight_decay"], [tuple(p.shape) for p in g["params"]]) for g in optimizer.param_groups]
    assert found == [
        (0.25, 0.1, [(3, 3)]),
        (0.25, 0.0, [(3,), (3,)]),
        (0.5, 0.1, [(3, 3)]),
        (0.5, 0.0, [(3,)]),
        (1.0, 0.1, [(2, 3)]),
        (1.0, 0.0, [(2,)]),
        (1.0, 0.1, [(2, 2)]),
    ]
    schedule = build_schedule(optimizer, table(schedule="constant", warmup=0.0), 10)
    assert schedule.get_last_lr() == [0.25, 0.25, 0.5, 0.5, 1.0, 1.0, 1.0]


def test_blocks_of_a_wrapped_network_learn_at_rates_of_their_own() -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = torchvision.models.resnet18(num_classes=2)

    network = Wrapped()
    layer_of = {
        parameter: round(-math.log2(group["lr"]))
        for group in build_optimizer(network, table(learning_rate=1.0, layer_decay=0.5)).param_groups
        for parameter in group["params"]
    }
    inner = network.network
    # Eight blocks between the first convolution and the head; nothing in them is a layer by itself.
    found = [inner.fc, *[block for name in "4321" for block in reversed(getattr(inner, f"layer{name}"))], inner.conv1]
    assert [{layer_of[parameter] for parameter in layer.parameters()} for layer in found] == [{x} for x in range(10)]
    assert layer_of[inner.bn1.weight] == 9


def test_a_network_of_scales_alone_learns_at_the_full_rate() -> None:
    groups = build_optimizer(nn.Sequential(nn.PReLU()), table(learning_rate=1.0, layer_decay=0.5)).param_groups
    assert [(group["lr"], len(group["params"])) for group in groups] == [(1.0, 1)]
