"""Repairing what takes fewer channels than before: least squares on calibration inputs, without any training.

Layer by layer, in the order in which they run, the weight of every layer that lost inputs is fitted so that its
outputs on the inputs that it now gets come nearest to those that the whole network's layer had: the asymmetric
reconstruction of Zhang et al. 2015, "Accelerating Very Deep Convolutional Networks", section 3.3, here for removed
channels as in He et al. 2017, "Channel Pruning", equation 1. The fit is damped towards the weights that are there.
What remains is a shift of the mean, which goes into the layer's bias or into the batch norm that follows it; where
neither is there, the fit is about zero instead of about the means.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from onnxdistill.graph.columns import Layer, has_columns, input_columns, output_columns, sampled, watched
from onnxdistill.graph.groups import Channels
from onnxdistill.graph.secondorder import COLUMNS_PER_BATCH, LONGEST_COLUMN

Removed = Mapping[tuple[str, int], Channels]

# Relative to the mean of the diagonal of the inputs' second moment.
DAMPING = 1e-2
# Of all batches: the targets of all layers are held at once. Of one batch, so many all the same.
_MOST_ROWS, _FEWEST_ROWS = 2**15, 256


def layers_that_lost_inputs(network: nn.Module, removed: Removed) -> list[str]:
    """Names of the layers that take fewer channels than before and can be fitted.

    Args:
        network: After the cut.
        removed: What went, as `ChannelAnalysis.removed_indices` gives it.
    """
    return [
        name for name, layer in network.named_modules() if (f"{name}.weight", 1) in removed and _can_be_fitted(layer)
    ]


def layers_from(network: nn.Module, layers: Iterable[str], example: Tensor) -> list[str]:
    """Names of the layers that run after the first of some layers, that one included, and can be fitted."""
    wanted = set(layers)
    names = [name for name, layer in network.named_modules() if _can_be_fitted(layer) or name in wanted]
    order: list[str] = []
    with watched(network, names, lambda name, *_: order.append(name)), torch.no_grad():
        network(example)
    first = next((place for place, name in enumerate(order) if name in wanted), len(order))
    return [name for name in order[first:] if _can_be_fitted(network.get_submodule(name))]


def layers_after(network: nn.Module, blocks: Iterable[str], example: Tensor) -> list[str]:
    """Names of the layers that run after the first of some blocks and can be fitted."""
    names = [name for name, layer in network.named_modules() if _can_be_fitted(layer)]
    order: list[str] = []
    first: list[int] = []
    handles = [
        network.get_submodule(block).register_forward_hook(lambda *_: first.append(len(order))) for block in blocks
    ]
    try:
        with watched(network, names, lambda name, *_: order.append(name)), torch.no_grad():
            network(example)
    finally:
        for handle in handles:
            handle.remove()
    return order[min(first, default=len(order)) :]


def refit(
    whole: nn.Module,
    cut: nn.Module,
    layers: Sequence[str],
    removed: Removed,
    batches: Sequence[Tensor],
    stands_for: Mapping[str, str] | None = None,
) -> nn.Module:
    """Returns a copy of the cut network in which layers are fitted to the whole network's outputs.

    Args:
        whole: Before the cut, in evaluation mode; not changed.
        cut: After it; not changed.
        layers: Names of the layers to fit.
        removed: What went, as `ChannelAnalysis.removed_indices` gives it.
        batches: Inputs `[B, ...]`, each gone through once a layer.
        stands_for: Names in the whole network of layers that have other ones in the cut network: a low-rank pair's
            second layer stands for the layer that it replaces.
    """
    repaired = copy.deepcopy(cut).eval()
    order = _in_order(repaired, layers, batches[0])
    before = {name: (stands_for or {}).get(name, name) for name in order}
    found = _targets(whole, list(before.values()), batches)
    targets = {name: found[before[name]] for name in order}
    for name in order:
        layer = repaired.get_submodule(name)
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        gone = removed.get((f"{name}.weight", 0), np.zeros(0, dtype=np.int64))
        rows = torch.from_numpy(np.setdiff1d(np.arange(targets[name].shape[1]), gone))
        _fit(layer, _seen(repaired, name, batches), targets[name][:, rows], _norm_after(repaired, name, batches[0]))
    return repaired


def _can_be_fitted(layer: nn.Module) -> bool:
    return has_columns(layer) and _short(layer)


def _short(layer: nn.Module) -> bool:
    weight = layer.weight
    return isinstance(weight, Tensor) and weight[0].numel() <= LONGEST_COLUMN


def _in_order(network: nn.Module, layers: Sequence[str], inputs: Tensor) -> list[str]:
    """The layers in the order in which they run; one that runs twice is left as it is."""
    seen: list[str] = []
    with watched(network, layers, lambda name, _layer, _inputs, _outputs: seen.append(name)), torch.no_grad():
        network(inputs)
    return [name for name in dict.fromkeys(seen) if seen.count(name) == 1]


def _targets(whole: nn.Module, layers: Sequence[str], batches: Sequence[Tensor]) -> dict[str, Tensor]:
    parts: dict[str, list[Tensor]] = {name: [] for name in layers}
    rows = _rows(batches)

    def see(name: str, layer: Layer, _inputs: Tensor, outputs: Tensor) -> None:
        parts[name].append(sampled(output_columns(layer, outputs), rows, len(parts[name])))

    with watched(whole, layers, see), torch.no_grad():
        for inputs in batches:
            whole(inputs)
    return {name: torch.cat(found) for name, found in parts.items()}


def _rows(batches: Sequence[Tensor]) -> int:
    """Rows of a batch that a fit looks at, the same ones of inputs and targets."""
    return max(_FEWEST_ROWS, min(COLUMNS_PER_BATCH, _MOST_ROWS // len(batches)))


class _SeenEnoughError(Exception):
    """Ends a forward pass after the layer that it was made for."""


def _seen(network: nn.Module, name: str, batches: Sequence[Tensor]) -> Tensor:
    parts: list[Tensor] = []
    rows = _rows(batches)

    def see(_name: str, layer: Layer, inputs: Tensor, _outputs: Tensor) -> None:
        parts.append(sampled(input_columns(layer, inputs), rows, len(parts)))
        raise _SeenEnoughError

    with watched(network, [name], see), torch.no_grad():
        for inputs in batches:
            try:
                network(inputs)
            except _SeenEnoughError:
                continue
    return torch.cat(parts)


@dataclass(frozen=True)
class _Sums:
    """Means, and second moments about them; or zeros, and second moments about zero."""

    input_mean: Tensor
    output_mean: Tensor
    inputs: Tensor
    errors: Tensor


def _fit(layer: Layer, columns: Tensor, targets: Tensor, norm: _BatchNorm | None) -> None:
    """Sets weight and mean of a layer so that `columns [n, in]` come nearest to `targets [n, out]`."""
    weight = layer.weight.detach().double().flatten(1)
    takes_shift = layer.bias is not None or (norm is not None and norm.running_mean is not None)
    sums = _moments(columns.double(), targets.double(), weight, about_means=takes_shift)
    size = len(sums.inputs)
    damping = DAMPING * sums.inputs.diagonal().mean().clamp_min(1e-12)
    change = torch.linalg.solve(sums.inputs + damping * torch.eye(size, dtype=torch.float64), sums.errors).T
    fitted = weight + change
    shift = sums.output_mean - fitted @ sums.input_mean
    with torch.no_grad():
        layer.weight.copy_(fitted.reshape(layer.weight.shape))
        if layer.bias is not None:
            layer.bias.copy_(shift)
        elif norm is not None and norm.running_mean is not None:
            norm.running_mean.sub_(shift.to(norm.running_mean.dtype))


def _moments(columns: Tensor, targets: Tensor, weight: Tensor, about_means: bool) -> _Sums:
    input_mean, output_mean = columns.mean(0) * about_means, targets.mean(0) * about_means
    centred = columns - input_mean
    errors = (targets - output_mean) - centred @ weight.T
    count = len(columns)
    return _Sums(input_mean, output_mean, centred.T @ centred / count, centred.T @ errors / count)


def _norm_after(network: nn.Module, name: str, inputs: Tensor) -> _BatchNorm | None:
    """The batch norm that takes the layer's outputs as they are, if one does."""
    result: list[Tensor] = []
    found: list[_BatchNorm] = []

    def layer_ran(_module: nn.Module, _inputs: tuple[Tensor, ...], outputs: Tensor) -> None:
        result.append(outputs)

    def norm_runs(module: nn.Module, received: tuple[Tensor, ...]) -> None:
        if result and received[0] is result[0] and isinstance(module, _BatchNorm):
            found.append(module)

    handles = [network.get_submodule(name).register_forward_hook(layer_ran)]
    handles += [m.register_forward_pre_hook(norm_runs) for m in network.modules() if isinstance(m, _BatchNorm)]
    try:
        with torch.no_grad():
            network(inputs[:2])
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if len(found) == 1 else None
