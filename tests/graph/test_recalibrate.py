"""New statistics of batch norm, where there is enough to take them from."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from onnxdistill.graph.recalibrate import _moments, match_batch_norm, recalibrate_batch_norm


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


def two_layers() -> nn.Sequential:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3, bias=False), nn.BatchNorm2d(4)
    )
    with torch.no_grad():
        for norm in (network[1], network[4]):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2.0)
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_()
    return network.eval()


@pytest.mark.parametrize("shape", [(5, 3), (5, 3, 7), (5, 3, 4, 6), (2, 3, 2, 3, 4), (1, 3, 1, 1)])
def test_what_norms_are_matched_by_are_means_and_variances(shape: tuple[int, ...]) -> None:
    values = 3 + torch.rand(3).view(1, 3, *[1] * (len(shape) - 2)) * torch.randn(shape)
    others = [dim for dim in range(len(shape)) if dim != 1]
    variances, means = torch.var_mean(values, others, correction=0)
    for given in (values, *([values.to(memory_format=torch.channels_last)] if len(shape) == 4 else [])):
        torch.testing.assert_close(_moments(given), (means, variances))
        torch.testing.assert_close(_moments(given.double()), (means.double(), variances.double()), rtol=1e-5, atol=1e-6)


def batches() -> list[torch.Tensor]:
    return [torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]


def moments(network: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.no_grad():
        outputs = network(torch.cat(batches()))
    return outputs.mean((0, 2, 3)), outputs.std((0, 2, 3))


def test_nothing_changes_where_nothing_is_cut() -> None:
    network = two_layers()
    before = {name: values.clone() for name, values in network.state_dict().items()}
    matched = match_batch_norm(network, network, {}, batches())
    for name, values in matched.state_dict().items():
        torch.testing.assert_close(values, before[name], rtol=1e-4, atol=1e-5)
    assert not any(module.training for module in matched.modules())


def test_outputs_have_the_means_and_variances_that_they_had() -> None:
    network, changed = two_layers(), two_layers()
    with torch.no_grad():
        changed[0].weight.mul_(3.0).add_(0.3)
        changed[3].weight.mul_(2.0)[:, :2] = 0.0
    matched = match_batch_norm(network, changed, {}, batches())
    for expected, given in zip(moments(network), moments(matched), strict=True):
        torch.testing.assert_close(given, expected, rtol=1e-3, atol=1e-3)
    (_, deviation), (_, expected) = moments(changed), moments(network)
    assert (deviation / expected).max() > 1.5


def test_norms_may_get_their_inputs_by_name() -> None:
    class Named(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = two_layers()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            first, norm, relu, *rest = self.inner
            x = relu(norm(input=first(x)))
            for layer in rest:
                x = layer(x)
            return x

    network, changed = Named().eval(), Named().eval()
    with torch.no_grad():
        changed.inner[0].weight.mul_(3.0).add_(0.3)
    matched = match_batch_norm(network, changed, {}, batches())
    plain = match_batch_norm(network.inner, changed.inner, {}, batches())
    for name, values in plain.state_dict().items():
        assert torch.equal(values, matched.state_dict()[f"inner.{name}"])


def test_channels_that_went_are_left_out() -> None:
    network = two_layers()
    narrow = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), *two_layers()[3:]).eval()
    narrow[3] = nn.Conv2d(4, 4, 3, bias=False)
    kept = [0, 2, 3, 5]
    with torch.no_grad():
        for part in ("0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var"):
            narrow.state_dict()[part].copy_(network.state_dict()[part][kept])
        narrow[3].weight.copy_(network[3].weight[:, kept])
    removed = {("1.running_mean", 0): np.array([1, 4])}
    matched = match_batch_norm(network, narrow, removed, batches())
    torch.testing.assert_close(matched[1].running_var, network[1].running_var[kept], rtol=1e-4, atol=1e-5)
    for expected, given in zip(moments(network), moments(matched), strict=True):
        torch.testing.assert_close(given, expected, rtol=1e-3, atol=1e-3)


def test_a_dead_channel_keeps_its_variance() -> None:
    network, dead = two_layers(), two_layers()
    with torch.no_grad():
        dead[0].weight[1] = 0.0
    matched = match_batch_norm(network, dead, {}, batches())
    assert matched[1].running_var[1] == network[1].running_var[1]
    assert all(values.isfinite().all() for values in matched.state_dict().values())
