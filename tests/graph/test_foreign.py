"""Networks that are neither ours nor torchvision's: timm's, whose layers are of its own make."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch

from onnxdistill.graph.channels import analyse_channels
from onnxdistill.graph.cost import count_macs
from onnxdistill.graph.structure import rebuild, structure_of
from onnxdistill.graph.surgery import remove_channels
from tests.graph.test_channels import assert_cut_is_right, randomised


@pytest.mark.parametrize("name", ["resnet26d", "mobilenetv3_small_100", "efficientnet_lite0"])
def test_timm(name: str) -> None:
    torch.manual_seed(0)
    network = randomised(timm.create_model(name, pretrained=False, num_classes=7))
    example = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    analysis = analyse_channels(network, example)
    assert_cut_is_right(network, analysis, example, np.random.default_rng(0))
    kept = {group.name: np.arange(-(-group.size // 2)) for group in analysis.free}
    halved = remove_channels(network, analysis, kept, example)
    assert count_macs(halved, example) < 0.32 * count_macs(network, example)
    halved.train()(example).sum().backward()
    torch.manual_seed(1)
    fresh = timm.create_model(name, pretrained=False, num_classes=7).double().eval()
    again = rebuild(fresh, structure_of(halved, fresh), halved.state_dict())
    with torch.inference_mode():
        assert torch.equal(again(example), halved.eval()(example))
