"""Low-rank pairs: exact at full rank, optimal below, and better when they know the inputs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from onnxdistill.graph.columns import has_columns
from onnxdistill.graph.cost import count_macs
from onnxdistill.graph.lowrank import (
    Factors,
    RankOptions,
    can_factorize,
    choose_ranks,
    decompose,
    input_shapes,
    layer_macs,
    low_rank_pair,
    pair_macs,
    scheme_of,
)
from onnxdistill.graph.pairmoments import Moments, pair_moments

CONVOLUTIONS = [
    nn.Conv2d(4, 6, 3, padding=1),
    nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False),
    nn.Conv2d(5, 4, (3, 5), stride=(2, 1), padding=(0, 2)),
    nn.Conv2d(6, 5, 1),
]


@pytest.mark.parametrize("scheme", ["spatial", "channel"])
@pytest.mark.parametrize("layer", CONVOLUTIONS, ids=str)
def test_full_rank_is_the_layer(layer: nn.Conv2d, scheme: str) -> None:
    layer = layer.double()
    fitting = scheme_of(layer, scheme)  # type: ignore[arg-type]  # one of the two
    inputs = torch.randn(3, layer.in_channels, 9, 8, dtype=torch.float64)
    network = nn.Sequential(layer)
    runs = [lambda net: net(inputs).square().mean()]
    known_inputs = pair_moments(network, {"0": [fitting]}, runs, with_worth=False)["0", fitting]
    known_both = pair_moments(network, {"0": [fitting]}, runs, with_worth=True)["0", fitting]
    for known in (None, known_inputs, known_both):
        factors = decompose(layer, fitting, known)
        pair = low_rank_pair(layer, factors, len(factors.errors) - 1, fitting)
        assert torch.allclose(pair(inputs), layer(inputs), atol=1e-6)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("layer", CONVOLUTIONS, ids=str)
def test_both_layers_of_a_pair_have_weights_of_one_norm(layer: nn.Conv2d, scale: float) -> None:
    """Whatever the scale of the inputs that they are fitted to: else the first steps of a training tear one apart."""
    layer = layer.double()
    fitting = scheme_of(layer, "spatial")
    inputs = scale * torch.randn(3, layer.in_channels, 9, 8, dtype=torch.float64)
    runs = [lambda net: (net(inputs) / scale).square().mean()]
    known = pair_moments(nn.Sequential(layer), {"0": [fitting]}, runs, with_worth=True)["0", fitting]
    first, second = low_rank_pair(layer, decompose(layer, fitting, known), 2, fitting)
    assert first.weight.norm().item() == pytest.approx(second.weight.norm().item())


def test_a_layer_of_zeros_becomes_a_pair_of_zeros() -> None:
    layer = nn.Linear(3, 2)
    nn.init.zeros_(layer.weight)
    pair = low_rank_pair(layer, decompose(layer, "channel"), 1, "channel")
    assert torch.equal(pair(torch.ones(1, 3)), layer.bias[None])


def test_linear_by_hand() -> None:
    layer = nn.Linear(2, 2, bias=True).double()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[3.0, 0.0], [0.0, 1.0]]))
    factors = decompose(layer, "channel")
    # Singular values 3 and 1: rank 1 loses 1 of 10.
    assert factors.errors.tolist() == pytest.approx([1.0, 0.1, 0.0])
    pair = low_rank_pair(layer, factors, 1, "channel")
    assert torch.allclose(pair[1].weight @ pair[0].weight, torch.tensor([[3.0, 0], [0, 0]], dtype=torch.float64))
    assert torch.equal(pair[1].bias, layer.bias)
    # With inputs that vary ten times as much in the second direction, it is the first that goes: 3^2 against 10.
    factors = decompose(layer, "channel", Moments(torch.diag(torch.tensor([1.0, 10.0]))))
    assert factors.errors.tolist() == pytest.approx([1.0, 9 / 19, 0.0])
    pair = low_rank_pair(layer, factors, 1, "channel")
    assert torch.allclose(
        pair[1].weight @ pair[0].weight, torch.tensor([[0.0, 0], [0, 1.0]], dtype=torch.float64), atol=1e-9
    )
    # Or if the loss depends a hundred times as much on the second output; what grows is the loss, 1 x 3^2.
    moments = Moments(torch.eye(2), torch.diag(torch.tensor([1.0, 100.0])))
    factors = decompose(layer, "channel", moments)
    assert factors.errors.tolist() == pytest.approx([109.0, 9.0, 0.0])
    pair = low_rank_pair(layer, factors, 1, "channel")
    assert torch.allclose(
        pair[1].weight @ pair[0].weight, torch.tensor([[0.0, 0], [0, 1.0]], dtype=torch.float64), atol=1e-9
    )


@settings(max_examples=20)
@given(rank=st.integers(1, 7), seed=st.integers(0, 100))
def test_the_lost_energy_is_the_predicted_one(rank: int, seed: int) -> None:
    """Eckart-Young in the metric of the inputs: the mean squared change of the outputs, for a linear layer exactly."""
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Linear(8, 10, bias=False).double()
    inputs = torch.randn(50, 8, generator=generator, dtype=torch.float64) @ torch.randn(
        8, 8, generator=generator, dtype=torch.float64
    )
    factors = decompose(layer, "channel", Moments(inputs.T @ inputs / len(inputs)))
    pair = low_rank_pair(layer, factors, rank, "channel")
    lost = ((pair(inputs) - layer(inputs)) ** 2).sum() / (layer(inputs) ** 2).sum()
    assert lost.item() == pytest.approx(factors.errors[rank].item(), abs=1e-6)


@pytest.mark.parametrize("scheme", ["spatial", "channel"])
def test_knowing_the_inputs_helps(scheme: str) -> None:
    torch.manual_seed(0)  # the layers' own weights, whatever ran before
    generator = torch.Generator().manual_seed(0)
    mix = nn.Conv2d(8, 8, 1)  # correlates the channels
    with torch.no_grad():
        mix.weight.copy_(torch.randn(8, 8, 1, 1, generator=generator) * torch.logspace(0, -2, 8)[None, :, None, None])
    layer = nn.Conv2d(8, 8, 3, padding=1)
    network = nn.Sequential(mix, nn.ReLU(), layer).eval()
    inputs = torch.randn(16, 8, 10, 10, generator=generator)
    moment = pair_moments(network, {"2": [scheme]}, [lambda net: net(inputs)], with_worth=False)["2", scheme]  # type: ignore[list-item,index]
    seen = network[:2](inputs)
    errors = [
        (low_rank_pair(layer, decompose(layer, scheme, known), 6, scheme)(seen) - layer(seen)).norm()  # type: ignore[arg-type]
        for known in (None, moment)
    ]
    assert errors[1] < 0.8 * errors[0]


def test_inputs_that_never_vary_do_no_harm() -> None:
    layer = nn.Linear(4, 4)
    inputs = torch.randn(100, 4) * torch.tensor([1.0, 1.0, 0.0, 0.0])
    factors = decompose(layer, "channel", Moments(inputs.T.double() @ inputs.double() / 100))
    pair = low_rank_pair(layer, factors, 2, "channel")
    assert all(torch.isfinite(parameter).all() for parameter in pair.parameters())
    assert torch.allclose(pair(inputs), layer(inputs), atol=1e-4)


@pytest.mark.parametrize("layer", [*CONVOLUTIONS, nn.Linear(12, 7)], ids=str)
def test_macs_agree_with_the_counter(layer: nn.Module) -> None:
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    layer = layer.float()
    shape = (12,) if isinstance(layer, nn.Linear) else (layer.in_channels, 9, 8)
    assert layer_macs(layer, shape) == count_macs(layer, torch.zeros(1, *shape))
    for scheme in ("spatial", "channel"):
        fitting = scheme_of(layer, scheme)  # type: ignore[arg-type]
        pair = low_rank_pair(layer, decompose(layer, fitting), 2, fitting)
        assert pair_macs(layer, shape, 2, fitting) == count_macs(pair, torch.zeros(1, *shape))
    assert input_shapes(nn.Sequential(layer), ["0"], torch.zeros(2, *shape)) == {"0": [shape]}


def test_what_can_be_factorized() -> None:
    assert can_factorize(nn.Linear(2, 2))
    assert not can_factorize(nn.Conv2d(4, 4, 3, groups=2))
    assert not can_factorize(nn.Conv2d(4, 4, 3, dilation=2))
    assert not can_factorize(nn.Conv2d(4, 4, 3, padding="same"))
    assert not can_factorize(nn.BatchNorm2d(4))


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1.0, 1e12])
def test_units_of_errors_do_not_matter(scale: float) -> None:
    errors = [[0.2, 0.05, 0.01], [0.9, 0.8, 0.3], [0.02, 0.01, 0.005]]
    options = {
        str(index): RankOptions(1e7, [1, 2, 3], [1e6, 4e6, 8e6], [scale * error for error in each])
        for index, each in enumerate(errors)
    }
    assert choose_ranks(options, 1.5e7) == {"0": 2, "1": None, "2": 1}


def test_ranks_by_hand() -> None:
    options = {
        "a": RankOptions(dense=10, ranks=[1, 2], costs=[2, 6], errors=[0.2, 0.05]),
        "b": RankOptions(dense=10, ranks=[1, 2], costs=[2, 6], errors=[0.9, 0.8]),
    }
    assert choose_ranks(options, 20) == {"a": None, "b": None}
    assert choose_ranks(options, 12) == {"a": 1, "b": None}
    assert choose_ranks(options, 4) == {"a": 1, "b": 1}
    assert choose_ranks(options, 0) == {"a": 1, "b": 1}  # cannot be met: the cheapest


@settings(max_examples=40)
@given(st.lists(st.lists(st.floats(0.01, 10), min_size=6, max_size=6), min_size=1, max_size=5), st.floats(0.3, 1))
def test_the_budget_holds_wherever_it_can(spectra: list[list[float]], share: float) -> None:
    options = {}
    for index, values in enumerate(spectra):
        energy = torch.tensor(sorted(values, reverse=True), dtype=torch.float64) ** 2
        tail = torch.cat([energy.flip(0).cumsum(0).flip(0), torch.zeros(1, dtype=torch.float64)])
        errors = Factors(torch.empty(0), torch.empty(0), tail / tail[0]).errors
        options[str(index)] = RankOptions(12, [1, 2, 3, 4], [3, 6, 9, 11], [float(errors[r]) for r in (1, 2, 3, 4)])
    budget = share * 12 * len(options)
    chosen = choose_ranks(options, budget)
    assert sum(options[name].cost(rank) for name, rank in chosen.items()) <= budget + 1e-9
    assert chosen.keys() == options.keys()


class PadsByItself(nn.Conv2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(nn.functional.pad(x, (1, 1, 1, 1)))


def test_only_plain_layers_become_pairs() -> None:
    """What a derived class does besides would be lost."""
    assert can_factorize(nn.Conv2d(3, 4, 3))
    assert can_factorize(nn.modules.linear.NonDynamicallyQuantizableLinear(3, 4))
    computed = nn.utils.parametrizations.weight_norm(nn.Linear(3, 4))
    for layer in (PadsByItself(3, 4, 3), computed):
        assert not can_factorize(layer)
        assert not has_columns(layer)
