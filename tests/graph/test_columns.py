"""Columns of inputs and outputs: what the weight is multiplied with, at all positions or at some of them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from onnxdistill.graph.columns import Layer, Sample, input_columns, output_columns

LAYERS: list[tuple[Layer, tuple[int, ...]]] = [
    (nn.Conv2d(4, 6, 3, padding=1), (3, 4, 7, 9)),
    (nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(0, 1), dilation=(1, 2)), (3, 4, 7, 9)),
    (nn.Conv2d(4, 6, (3, 5), padding="same"), (3, 4, 7, 9)),
    (nn.Conv2d(4, 6, 1, stride=2), (3, 4, 7, 9)),
    (nn.Linear(4, 6), (3, 5, 4)),
    (nn.Linear(4, 6), (30, 4)),
]


@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=str)
def test_columns_times_the_weight_are_the_outputs(layer: Layer, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    inputs = torch.randn(shape)
    columns = input_columns(layer, inputs)
    assert layer.bias is not None
    with torch.no_grad():
        expected = output_columns(layer, layer(inputs))
        assert torch.allclose(columns @ layer.weight.flatten(1).T + layer.bias, expected, atol=1e-5)


@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=str)
def test_a_sample_has_the_same_positions_of_inputs_and_outputs(layer: Layer, shape: tuple[int, ...]) -> None:
    inputs = torch.randn(shape)
    outputs = layer(inputs).detach()
    sample = Sample(11, 3)
    chosen = sample.of(len(input_columns(layer, inputs)))
    assert chosen is not None
    assert len(chosen) == 11
    assert torch.equal(input_columns(layer, inputs, sample), input_columns(layer, inputs)[chosen])
    assert torch.equal(output_columns(layer, outputs, sample), output_columns(layer, outputs)[chosen])


def test_a_sample_of_few_positions_is_all_of_them() -> None:
    layer, inputs = nn.Conv2d(2, 3, 3), torch.randn(2, 2, 5, 5)
    assert Sample(18, 0).of(18) is None
    assert torch.equal(input_columns(layer, inputs, Sample(18, 0)), input_columns(layer, inputs))
