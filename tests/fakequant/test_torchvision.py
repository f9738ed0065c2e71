"""Networks of torchvision with random weights, at 64 x 64: all of their operators, layer by layer and as a whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor

from onnxdistill.fakequant import FakeQuantized
from tests.fakequant.files import (
    assert_equal,
    compare_layers,
    exported,
    images,
    last_scale,
    lively,
    outputs_of,
    quantized,
)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
def test_outputs_are_those_of_the_file(name: str, tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = lively(torchvision.models.get_model(name, weights=None))
    samples, inputs = images(8, 3, 64, 64), images(8, 3, 64, 64, seed=1)
    source = exported(network, tmp_path / "float.onnx", samples)
    path = quantized(source, tmp_path / "int8.onnx", samples)
    differing, total = compare_layers(path, inputs)
    assert total > 1_000_000
    assert differing <= 2e-5 * total
    module = FakeQuantized.from_file(path, source)
    with torch.inference_mode():
        actual = module(inputs)
    assert isinstance(actual, Tensor)
    for optimized in (False, True):
        apart = np.abs(actual.numpy() - outputs_of(path, inputs, optimized=optimized)) / last_scale(path)
        assert apart.max() < 6.5
        assert apart.mean() < 0.6
    module.write(tmp_path / "same.onnx")
    assert_equal(tmp_path / "same.onnx", path)
