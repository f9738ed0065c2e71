"""How much every channel of a group matters; each score is one function with its paper.

Changes of the loss compare between groups as they are; all other scores are normalised to a mean of one in every group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor, nn

from onnxdistill.graph.gradients import differentiable
from onnxdistill.graph.groups import ChannelAnalysis, ChannelGroup, Member

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.modules.instancenorm._InstanceNorm)

Scores = dict[str, Tensor]
"""For every group, by name, a score `[channels]`, float64; more is more important."""


def magnitude(network: nn.Module, analysis: ChannelAnalysis, power: int) -> Scores:
    """Sum of |weight|^power over all slices of a channel.

    Source: Li et al. 2017, "Pruning Filters for Efficient ConvNets", section 3.1 (power 1, the producing layer
    alone); Fang et al. 2023, "DepGraph", equation 4 (power 2, over the whole group).
    """
    values = {name: tensor.detach().double().abs() ** power for name, tensor in network.named_parameters()}
    return _scores(analysis, values)


def norm_scale(network: nn.Module, analysis: ChannelAnalysis) -> Scores:
    """Absolute scale of the normalisations that a channel runs through; without any, its magnitude.

    Source: Liu et al. 2017, "Learning Efficient Convolutional Networks through Network Slimming", section 3.
    """
    values = {
        f"{name}.weight": layer.weight.detach().double().abs()
        for name, layer in network.named_modules()
        if isinstance(layer, NORMS) and layer.weight is not None
    }
    plain = magnitude(network, analysis, 1)
    return {
        group.name: _normalised(_summed(group, values))
        if any(member.tensor in values for member in group.members)
        else plain[group.name]
        for group in analysis.groups
    }


def geometric_median(network: nn.Module, analysis: ChannelAnalysis) -> Scores:
    """Sum of the distances to all other channels of the group: one near the middle can be made up for by others.

    Source: He et al. 2019, "Filter Pruning via Geometric Median", equation 6, over all slices of a channel instead
    of the producing filter alone.
    """
    parameters = {name: tensor.detach().double() for name, tensor in network.named_parameters() if tensor.ndim > 1}
    scores = {}
    for group in analysis.groups:
        rows = [_rows(member, parameters[member.tensor]) for member in group.members if member.tensor in parameters]
        vectors = torch.cat(rows, 1) if rows else torch.zeros(group.size, 1, dtype=torch.float64)
        scores[group.name] = _normalised(torch.cdist(vectors, vectors).sum(1))
    return scores


def first_order_taylor(
    network: nn.Module, analysis: ChannelAnalysis, losses: Iterable[Callable[[nn.Module], Tensor]]
) -> Scores:
    """Squared first-order change of the loss when a channel's own parameters become zero.

    Source: Molchanov et al. 2019, "Importance Estimation for Neural Network Pruning", equation 8: the squared sum
    of weight times gradient over the parameters of a channel, averaged over batches. Every channel counts once: by the
    scale and shift of the normalisations that it runs through (their section 3.3, "gates"), or without any by the
    layers that produce it. The convolution before a normalisation, or what consumes the channel, would count the same
    change again.

    Args:
        network: In evaluation mode; its gradients are left as they were.
        analysis: Of this network.
        losses: For every batch, a function from the network to its scalar loss.
    """
    parameters = dict(network.named_parameters())
    norms = {name for name, layer in network.named_modules() if isinstance(layer, NORMS)}
    gates = {
        group.name: [m for m in group.members if m.layer in norms and m.tensor in parameters]
        for group in analysis.groups
    }
    totals: Scores = {}
    batches = 0
    for loss in losses:
        with differentiable(network):
            gradients = torch.autograd.grad(loss(network), list(parameters.values()), allow_unused=True)
        products = {
            name: (parameter.detach() * gradient).double()
            for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True)
            if gradient is not None
        }
        for group in analysis.groups:
            own = gates[group.name]
            change = _summed(group, products, own.__contains__ if own else partial(_produces, network)) ** 2
            totals[group.name] = totals[group.name] + change if group.name in totals else change
        batches += 1
    return {name: total / max(1, batches) for name, total in totals.items()}


def _scores(analysis: ChannelAnalysis, values: dict[str, Tensor]) -> Scores:
    return {group.name: _normalised(_summed(group, values)) for group in analysis.groups}


def _summed(
    group: ChannelGroup, values: dict[str, Tensor], counts: Callable[[Member], bool] = lambda _: True
) -> Tensor:
    total = torch.zeros(group.size, dtype=torch.float64)
    for member in group.members:
        if member.tensor in values and counts(member):
            total += _by_channel(member, values[member.tensor])
    return total


def _produces(network: nn.Module, member: Member) -> bool:
    """Whether a layer gives the channels, or has a parameter of theirs, and does not only take them."""
    owner = network.get_submodule(member.tensor.rpartition(".")[0])
    outputs_second = isinstance(owner, nn.Embedding) or (isinstance(owner, TRANSPOSED) and owner.groups == 1)
    return member.dim == (1 if outputs_second and member.tensor.endswith(".weight") else 0)


def _by_channel(member: Member, values: Tensor) -> Tensor:
    by_index = values.movedim(member.dim, 0).flatten(1).sum(1) if values.ndim > 1 else values
    return torch.stack([by_index[torch.from_numpy(indices)].sum() for indices in member.indices])


def _rows(member: Member, values: Tensor) -> Tensor:
    """All values of every channel in a row, `[channels, ...]`."""
    by_index = values.movedim(member.dim, 0).flatten(1)
    return torch.stack([by_index[torch.from_numpy(indices)].flatten() for indices in member.indices])


def _normalised(scores: Tensor) -> Tensor:
    mean = scores.mean()
    return scores / mean if mean > 0 else scores
