"""Removing channels from a live module."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from onnxdistill.errors import NetworkError, is_of_memory
from onnxdistill.graph.cores import core_of
from onnxdistill.graph.groups import ChannelAnalysis, Channels, Removed, ScaledByWidth
from onnxdistill.graph.rules.elementwise import scalar_factor
from onnxdistill.graph.silence import difference, silent_outputs

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


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
        ValueError: If there is no such group or channel, a frozen channel is to be removed, or nothing is kept.
        NetworkError: If the result does not run, or computes something else than the network with those channels
            silent: code of the network has sizes of its own.
    """
    cut = cut_channels(network, analysis, kept, example)
    _check(silent_outputs(network, analysis, kept, example), cut, example)
    return cut


def cut_channels(
    network: nn.Module, analysis: ChannelAnalysis, kept: Mapping[str, Channels], example: Tensor
) -> nn.Module:
    """The same without a check that the result runs."""
    removed = analysis.removed_indices(kept)
    before = {name: len(layer.weight) for name, layer in network.named_modules() if isinstance(layer, CONVOLUTIONS)}
    # The copy finds the smaller tensors in place of the whole ones, under all of their names.
    cut = copy.deepcopy(network, _smaller_tensors(network, removed))
    _update_layers(cut, analysis, before)
    _update_sizes_in_code(cut, analysis, kept)
    _keep_scalings(cut, analysis, kept, removed, example)
    return cut


def _smaller_tensors(network: nn.Module, removed: Removed) -> dict[int, Any]:
    """By identity of every tensor that is cut, what it becomes."""
    named: dict[str, Tensor] = dict(network.named_parameters(remove_duplicate=False))
    named |= dict(network.named_buffers(remove_duplicate=False))
    smaller: dict[int, Any] = {}
    for (tensor, dim), indices in removed.items():
        old = named[tensor]
        now = smaller.get(id(old), old)
        stay = torch.from_numpy(np.setdiff1d(np.arange(now.shape[dim]), indices))
        new = now.detach().index_select(dim, stay)
        # What is cut has to recover, whether it was frozen or not.
        smaller[id(old)] = nn.Parameter(new, new.is_floating_point()) if isinstance(old, nn.Parameter) else new
    return smaller


def _update_layers(network: nn.Module, analysis: ChannelAnalysis, outputs_before: Mapping[str, int]) -> None:
    """Brings the sizes that PyTorch's layers note beside their weights in line with the weights."""
    for name, layer in network.named_modules():
        if isinstance(layer, CONVOLUTIONS):
            _update_convolution(layer, name in analysis.whole_groups, outputs_before[name])
        elif isinstance(layer, TRANSPOSED):
            depthwise = layer.groups > 1 and layer.groups == layer.in_channels
            layer.in_channels = layer.weight.shape[0]
            layer.groups = layer.in_channels if depthwise else layer.groups
            layer.out_channels = layer.weight.shape[1] * layer.groups
        elif isinstance(layer, nn.Linear):
            layer.out_features, layer.in_features = layer.weight.shape
        elif isinstance(layer, nn.Embedding):
            layer.embedding_dim = layer.weight.shape[1]
        elif isinstance(layer, nn.PReLU):
            layer.num_parameters = layer.weight.shape[0]
        else:
            _update_norm(layer)


def _update_norm(layer: nn.Module) -> None:
    if isinstance(layer, nn.LayerNorm | nn.RMSNorm) and layer.weight is not None:
        layer.normalized_shape = tuple(layer.weight.shape)
    elif isinstance(layer, nn.GroupNorm) and layer.weight is not None:
        if layer.num_groups == layer.num_channels:
            layer.num_groups = layer.weight.shape[0]
        layer.num_channels = layer.weight.shape[0]
    elif isinstance(layer, nn.modules.batchnorm._NormBase):
        tensor = layer.weight if layer.weight is not None else layer.running_mean
        layer.num_features = layer.num_features if tensor is None else tensor.shape[0]


def _update_convolution(layer: nn.Module, whole_groups: bool, outputs_before: int) -> None:
    assert isinstance(layer, CONVOLUTIONS)
    outputs = layer.weight.shape[0]
    if layer.groups > 1 and (whole_groups or layer.groups == layer.in_channels):
        layer.groups = layer.groups * outputs // outputs_before
    layer.out_channels = outputs
    layer.in_channels = layer.weight.shape[1] * layer.groups


def _update_sizes_in_code(network: nn.Module, analysis: ChannelAnalysis, kept: Mapping[str, Channels]) -> None:
    """Sets integer attributes, such as a number of heads, that are the old size of what a module's code reshapes."""
    for module, sizes in _new_sizes(analysis, kept).items():
        owner = network.get_submodule(module)
        changed = {old: min(new) for old, new in sizes.items() if len(new - {old}) == 1}
        for name, value in vars(owner).items():
            if type(value) is int and value in changed and not name.startswith("_"):
                setattr(owner, name, changed[value])


def _new_sizes(analysis: ChannelAnalysis, kept: Mapping[str, Channels]) -> dict[str, dict[int, set[int]]]:
    """Per module and old size, what it becomes."""
    atoms = analysis.removed_atoms(kept)
    gone: dict[tuple[str, str], np.ndarray[Any, np.dtype[np.bool_]]] = {}
    shapes: dict[tuple[str, str], tuple[int, ...]] = {}
    for size in analysis.sizes:
        key = (size.module, size.node)
        mask = np.isin(size.label, atoms[size.kind])
        gone[key] = gone[key] | mask if key in gone else mask
        shapes[key] = size.shape
    sizes: dict[str, dict[int, set[int]]] = {}
    for (module, node), mask in gone.items():
        for axis, old in enumerate(shapes[module, node]):
            if mask.shape[axis] == old:
                others = tuple(other for other in range(mask.ndim) if other != axis)
                left = old - int(mask.all(axis=others).sum())
                sizes.setdefault(module, {}).setdefault(old, set()).add(left)
    return sizes


def _keep_scalings(
    network: nn.Module,
    analysis: ChannelAnalysis,
    kept: Mapping[str, Channels],
    removed: Removed,
    example: Tensor,
) -> None:
    """Where code scales by a width that has changed, scales what it scales by the inverse of that change."""
    atoms = analysis.removed_atoms(kept)["channels"]
    touched = [scaling for scaling in analysis.scalings if np.isin(scaling.label, atoms).any()]
    now = _scalars(network, example) if any(scaling.factor is not None for scaling in touched) else {}
    for scaling in touched:
        if scaling.factor is None:
            change = (scaling.shape[-1] / _width_left(scaling, atoms)) ** 0.5
        else:
            change = now.get(scaling.node, scaling.factor) / scaling.factor
        for tensor, rows in scaling.producers.items():
            stay = np.setdiff1d(np.arange(len(rows)), removed.get((tensor, 0), np.zeros(0, dtype=np.int64)))
            parameter = network.get_parameter(tensor)
            with torch.no_grad():
                parameter[torch.from_numpy(rows[stay])] /= change


def _width_left(scaling: ScaledByWidth, removed: Channels) -> int:
    label = scaling.label
    if label.shape[-1] == 1:
        return scaling.shape[-1]
    gone = np.isin(label, removed).all(axis=tuple(range(label.ndim - 1)))
    return scaling.shape[-1] - int(gone.sum())


def _scalars(network: nn.Module, example: Tensor) -> dict[str, float]:
    """The numbers that the code of a network now multiplies by, by traced operator."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.export(core_of(network).eval(), (example,), strict=False)
    except Exception as error:  # a user's code runs, which can raise anything
        if is_of_memory(error):
            raise
        return {}  # it does not run either, which the check will find
    return {node.name: factor for node in program.graph.nodes if (factor := scalar_factor(node)) is not None}


def _check(expected: Any, cut: nn.Module, example: Tensor) -> None:
    name = type(cut).__name__
    fix = "Its forward has sizes written into it; keep those layers with prune.skip or plan.skip."
    modes = {module: module.training for module in cut.modules()}
    try:
        with torch.inference_mode():
            actual = core_of(cut.eval())(example.clone())
    except Exception as error:  # a user's code runs, which can raise anything
        if is_of_memory(error):
            raise
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise NetworkError(f"{name} does not run with fewer channels: {first[:200]}.", fix) from error
    finally:
        for module, mode in modes.items():
            module.training = mode
    if reason := difference(expected, actual):
        raise NetworkError(f"{name} with fewer channels computes something else than it should: {reason}.", fix)
