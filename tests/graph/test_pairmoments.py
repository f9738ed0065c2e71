"""Moments for low-rank pairs: the columns and gradients that belong to a pair's products."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from onnxdistill.graph.columns import Sample
from onnxdistill.graph.lowrank import _matrix, decompose, low_rank_pair, scheme_of
from onnxdistill.graph.pairmoments import added_columns, longest_column, pair_moments, seen_columns

LAYERS = [
    nn.Conv2d(4, 6, 3, padding=1),
    nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False),
    nn.Conv2d(5, 4, (3, 5), stride=(2, 3), padding=(0, 2)),
    nn.Conv2d(6, 5, 1, stride=2),
]


@pytest.mark.parametrize("scheme", ["spatial", "channel"])
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_gradients_belong_to_the_products(layer: nn.Conv2d, scheme: str) -> None:
    """Outputs are linear in the products: <g, conv(x)> is the sum of gradients times products."""
    torch.manual_seed(0)
    layer = layer.double()
    fitting = scheme_of(layer, scheme)  # type: ignore[arg-type]  # one of the two
    inputs = torch.randn(3, layer.in_channels, 9, 8, dtype=torch.float64)
    outputs = nn.functional.conv2d(inputs, layer.weight, None, layer.stride, layer.padding)
    gradient = torch.randn_like(outputs)
    columns = seen_columns(layer, inputs, fitting)
    products = columns @ _matrix(layer.weight, fitting).T
    gradients = added_columns(layer, inputs, gradient, fitting)
    assert gradients.shape == products.shape
    assert longest_column(layer, fitting) == max(columns.shape[1], gradients.shape[1])
    assert (gradients * products).sum().item() == pytest.approx((gradient * outputs).sum().item())
    sample = Sample(20, 1)
    chosen = sample.of(len(columns))
    assert torch.equal(seen_columns(layer, inputs, fitting, sample), columns[chosen])
    assert torch.equal(added_columns(layer, inputs, gradient, fitting, sample), gradients[chosen])


def test_moments_of_a_linear_layer_by_hand() -> None:
    layer = nn.Linear(2, 2, bias=False)
    first, second = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[3.0, 0.0], [0.0, 0.0]])
    weights = torch.tensor([1.0, 4.0])
    # The mean over two samples of y . w: each sample's own gradient is w.
    losses = [lambda net, x=x: (net(x) * weights).sum(1).mean() for x in (first, second)]
    (moments,) = pair_moments(nn.Sequential(layer), {"0": ["channel"]}, losses, with_worth=True).values()
    assert torch.allclose(moments.inputs, torch.diag(torch.tensor([10.0, 4.0])).double() / 4)
    assert moments.worth is not None
    assert torch.allclose(moments.worth, 0.5 * torch.outer(weights, weights).double())
    assert layer.weight.grad is None


def test_a_layer_that_runs_twice_has_the_mean_of_its_inputs_and_the_sum_of_its_worth() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(1, 1, bias=False)
            self.layer.weight.data.fill_(2.0)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(self.layer(x))

    (moments,) = pair_moments(
        Twice(), {"layer": ["channel"]}, [lambda net: net(torch.ones(1, 1)).sum()], with_worth=True
    ).values()
    assert moments.inputs.item() == (1 + 4) / 2
    assert moments.worth is not None
    assert moments.worth.item() == 0.5 * (4 + 1)


def test_what_the_loss_does_not_depend_on_has_no_worth() -> None:
    class Aside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.aside = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.aside(x)
            return self.used(x)

    layers = {"used": ["channel"], "aside": ["channel"]}
    found = pair_moments(Aside(), layers, [lambda net: net(torch.ones(3, 2)).sum()], with_worth=True)  # type: ignore[arg-type]
    assert found["used", "channel"].worth is not None
    assert found["aside", "channel"].worth is None


def test_knowing_the_worth_keeps_what_the_loss_depends_on() -> None:
    """Half of the outputs are hardly read: a pair that knows keeps the other half."""
    torch.manual_seed(0)
    layer = nn.Conv2d(6, 8, 3, padding=1, bias=False)
    read = nn.Conv2d(8, 1, 1, bias=False)
    with torch.no_grad():
        read.weight[:, 4:] *= 1e-3
    network = nn.Sequential(layer, read).double().eval()
    inputs = torch.randn(16, 6, 8, 8, dtype=torch.float64)
    errors = []
    for with_worth in (False, True):
        runs = [lambda net: net(inputs).square().mean()]
        moments = pair_moments(network, {"0": ["spatial"]}, runs, with_worth=with_worth)["0", "spatial"]
        pair = low_rank_pair(layer, decompose(layer, "spatial", moments), 6, "spatial")
        errors.append((read(pair(inputs)) - network(inputs)).norm().item())
    assert errors[1] < 0.5 * errors[0]


def test_nothing_is_asked_of_no_layer() -> None:
    assert pair_moments(nn.Linear(2, 2), {}, [lambda net: net(torch.ones(1, 2)).sum()], with_worth=True) == {}


def test_layers_without_gradients_have_no_worth() -> None:
    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                x = self.first(x)
            return self.last(x)

    layers = {"first": ["channel"], "last": ["channel"]}
    found = pair_moments(Frozen(), layers, [lambda net: net(torch.ones(3, 2)).sum()], with_worth=True)  # type: ignore[arg-type]
    assert found["first", "channel"].worth is None
    assert found["last", "channel"].worth is not None


@pytest.mark.parametrize("few", [4096, 3])
def test_windows_of_a_sample_are_no_samples(few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    class Windows(nn.Module):
        def __init__(self, apart: bool) -> None:
            super().__init__()
            self.layer, self.apart = nn.Linear(2, 2), apart

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x.flatten(0, 1) if self.apart else x).reshape(x.shape)

    worth = []
    for apart in (False, True):
        network = Windows(apart)
        monkeypatch.setattr("onnxdistill.graph.pairmoments.COLUMNS_PER_BATCH", few)
        runs = [lambda net: net(torch.ones(4, 5, 2)).sum((1, 2)).mean()]
        (moments,) = pair_moments(network, {"layer": ["channel"]}, runs, with_worth=True).values()
        assert moments.worth is not None
        worth.append(moments.worth)
    # Five products a sample, each with a gradient of one.
    assert torch.allclose(worth[0], torch.full((2, 2), 2.5, dtype=torch.float64))
    assert torch.allclose(worth[1], worth[0])


def test_frozen_layers_have_gradients_and_stay_frozen() -> None:
    layer = nn.Linear(2, 2).requires_grad_(False)
    (moments,) = pair_moments(
        nn.Sequential(layer), {"0": ["channel"]}, [lambda net: net(torch.ones(1, 2)).sum()], with_worth=True
    ).values()
    assert moments.worth is not None
    assert not layer.weight.requires_grad
