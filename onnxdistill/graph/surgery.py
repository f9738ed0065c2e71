"""Removing channels from a live module."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from onnxdistill.errors import NetworkError
from onnxdistill.graph.labels import ChannelAnalysis, ChannelGroup

Channels = NDArray[np.int64]

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def remove_channels(
    network: nn.Module, analysis: ChannelAnalysis, kept: Mapping[str, Channels], example: Tensor
) -> nn.Module:
    """Returns a copy of a network without the channels that are not kept: an ordinary module that trains and exports.

    Args:
        network: Not changed.
        analysis: Of this network.
        kept: For every group to cut, by name, the sorted channels that stay, at least one.
        example: An input; the output keeps its shape.

    Raises:
        ValueError: If a frozen channel is to be removed, or nothing of a group is kept.
        NetworkError: If the result does not run: code of the network has sizes of its own.
    """
    cut = copy.deepcopy(network)
    for (tensor, dim), removed in _removed_indices(analysis, kept).items():
        _cut(cut, tensor, dim, removed)
    _update_sizes(cut)
    _check(network, cut, example)
    return cut


def _removed_indices(analysis: ChannelAnalysis, kept: Mapping[str, Channels]) -> dict[tuple[str, int], Channels]:
    removed: dict[tuple[str, int], list[Channels]] = {}
    for name, channels in kept.items():
        group = analysis[name]
        gone = np.setdiff1d(np.arange(group.size), channels)
        _check_request(group, channels, gone)
        for member in group.members:
            removed.setdefault((member.tensor, member.dim), []).extend(member.indices[channel] for channel in gone)
    return {key: np.concatenate(parts) for key, parts in removed.items() if parts}


def _check_request(group: ChannelGroup, channels: Channels, gone: Channels) -> None:
    if len(channels) == 0 or channels.min() < 0 or channels.max() >= group.size:
        raise ValueError(f"group {group.name} has channels 0..{group.size - 1}, and at least one stays")
    if group.frozen and len(gone):
        raise ValueError(f"group {group.name} is frozen")


def _cut(network: nn.Module, tensor: str, dim: int, removed: Channels) -> None:
    layer, _, name = tensor.rpartition(".")
    owner = network.get_submodule(layer)
    old = getattr(owner, name)
    stay = torch.from_numpy(np.setdiff1d(np.arange(old.shape[dim]), removed))
    new = old.detach().index_select(dim, stay).clone()
    if isinstance(old, nn.Parameter):
        setattr(owner, name, nn.Parameter(new, requires_grad=old.requires_grad))
    else:
        setattr(owner, name, new)  # a buffer stays one


def _update_sizes(network: nn.Module) -> None:
    """Brings the sizes that layers note beside their weights in line with the weights."""
    for layer in network.modules():
        if isinstance(layer, CONVOLUTIONS):
            depthwise = layer.groups > 1 and layer.groups == layer.in_channels
            multiplier = layer.out_channels // layer.groups
            layer.out_channels = layer.weight.shape[0]
            if depthwise:
                layer.groups = layer.out_channels // multiplier
            layer.in_channels = layer.weight.shape[1] * layer.groups
        elif isinstance(layer, nn.Linear):
            layer.out_features, layer.in_features = layer.weight.shape
        elif isinstance(layer, BATCH_NORMS) and layer.running_mean is not None:
            layer.num_features = layer.running_mean.shape[0]


def _check(before: nn.Module, after: nn.Module, example: Tensor) -> None:
    with torch.inference_mode():
        expected = before.eval()(example)
        try:
            actual = after.eval()(example)
        except (RuntimeError, ValueError, IndexError) as error:
            first = str(error).strip().splitlines()[0]
            raise NetworkError(
                f"{type(before).__name__} does not run with fewer channels: {first[:200]}.",
                "Its forward has sizes written into it; keep those layers with prune.skip.",
            ) from error
    if isinstance(expected, Tensor) and actual.shape != expected.shape:
        raise NetworkError(
            f"{type(before).__name__} with fewer channels gives {tuple(actual.shape)} instead of "
            f"{tuple(expected.shape)}.",
            "Its forward has sizes written into it; keep those layers with prune.skip.",
        )
