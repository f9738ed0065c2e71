"""New statistics of batch norm, where there is enough to take them from."""

from __future__ import annotations

import torch
from torch import nn

from onnxdistill.graph.recalibrate import recalibrate_batch_norm


def flat_norm() -> nn.Module:
    """One value a channel and image, as after a pooling to 1 x 1: a single image has no variance."""
    return nn.Sequential(nn.BatchNorm1d(2)).eval()


def test_a_last_batch_of_one_is_left_out() -> None:
    four = torch.tensor([[0.0, 1.0], [2.0, 5.0], [4.0, 3.0], [6.0, 3.0]])
    changed = recalibrate_batch_norm(flat_norm(), iter([four, torch.full((1, 2), 1000.0)]))
    assert changed.state_dict()["0.running_mean"].tolist() == [3.0, 3.0]
    assert torch.allclose(changed.state_dict()["0.running_var"], four.var(0))
    assert not any(module.training for module in changed.modules())


def test_of_a_single_image_the_statistics_stay() -> None:
    network = flat_norm()
    network.state_dict()["0.running_mean"].fill_(7.0)
    changed = recalibrate_batch_norm(network, [torch.ones(1, 2)])
    assert changed.state_dict()["0.running_mean"].tolist() == [7.0, 7.0]
