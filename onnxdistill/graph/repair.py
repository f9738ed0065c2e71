"""Repairing what takes fewer channels than before: least squares on calibration inputs, without any training.

Layer by layer, in the order in which they run, the weight of every layer that lost inputs is fitted so that its outputs
on the inputs that it now gets come nearest to those that the whole network's layer had: the asymmetric reconstruction
of Zhang et al. 2015, "Accelerating Very Deep Convolutional Networks", section 3.3, here for removed channels as in He
et al. 2017, "Channel Pruning", equation 1. Where a block adds its input to its branch, the last layer of the branch
makes up for what that input has come to differ by, too, so that errors don't add up from block to block (He et al.
2017, section 3.3). The fit is damped towards the weights that are there. What remains is a shift of the mean, which
goes into the layer's bias or into the batch norm that follows it; where neither is there, the fit is about zero instead
of about the means.

As many inputs as fit go through the network at once, and every layer is fitted when it is about to run: one pass for
all of them. The whole network runs once for as many layers as memory is to hold at once.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from onnxdistill.graph.columns import Layer, Sample, has_columns, input_columns, output_columns, watched
from onnxdistill.graph.groups import Removed
from onnxdistill.graph.places import Place, entered, largest_result, places_of
from onnxdistill.graph.secondorder import LONGEST_COLUMN

# Relative to the mean of the diagonal of the inputs' second moment.
DAMPING = 1e-2
# Positions that a fit looks at.
_POSITIONS = Sample(2**15, 0)
# Of what layers should give, and of what their blocks get: for deeper networks, the whole one runs again.
_HELD_BYTES = 2**31
# Of the largest tensor for all inputs at once, of which some four live at the same time: 512 MiB each.
_MOST_VALUES = 2**27
# Inputs that go through all the same.
_FEWEST = 16
# A share of the largest scale of a batch norm: less lets hardly anything through.
_LEAST_SCALE = 1e-3


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
        network(example.clone())
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
            network(example.clone())
    finally:
        for handle in handles:
            handle.remove()
    return order[min(first, default=len(order)) :]


def refit(
    whole: nn.Module,
    cut: nn.Module,
    layers: Sequence[str],
    removed: Removed,
    batches: Iterable[Tensor],
    stands_for: Mapping[str, str] | None = None,
) -> nn.Module:
    """Returns a copy of the cut network in which layers are fitted to the whole network's outputs.

    Args:
        whole: Before the cut, in evaluation mode; not changed.
        cut: After it; not changed.
        layers: Names of the layers to fit.
        removed: What went, as `ChannelAnalysis.removed_indices` gives it.
        batches: Inputs `[B, ...]`, the same from the beginning every time; as many of the first samples as go through
            at once are looked at.
        stands_for: Names in the whole network of layers that have other ones in the cut network: a low-rank pair's
            second layer stands for the layer that it replaces.
    """
    repaired = copy.deepcopy(cut).eval()
    example = next(iter(batches))[:1]
    places = places_of(repaired, layers, example)
    inputs = _first(batches, max(_FEWEST, _MOST_VALUES // largest_result(whole, example)))
    targets = _Targets(whole, places, stands_for or {}, removed, inputs.clone())
    now: dict[str, Tensor] = {}

    def enter(place: Place, received: Tensor) -> None:
        now[place.block] = output_columns(_layer(repaired, place.layer), received, _POSITIONS)

    def fit(place: Place, received: Tensor) -> None:
        layer = _layer(repaired, place.layer)
        norm = repaired.get_submodule(place.norm) if place.norm else None
        assert norm is None or isinstance(norm, _BatchNorm)
        target = targets.of(place, norm, now.pop(place.block, None))
        if target is not None:
            _fit(layer, input_columns(layer, received, _POSITIONS), target, norm)

    seen = {place.block: partial(enter, place) for place in places if place.block}
    seen |= {place.layer: partial(fit, place) for place in places}
    with entered(repaired, seen), torch.no_grad():
        repaired(inputs)
    return repaired


def _first(batches: Iterable[Tensor], samples: int) -> Tensor:
    """The first samples, and no memory for the others."""
    taken, left = list[Tensor](), samples
    for batch in batches:
        if left <= 0:
            break
        taken.append(batch[:left])
        left -= len(batch)
    return torch.cat(taken)


def _can_be_fitted(layer: nn.Module) -> bool:
    return has_columns(layer) and _short(layer)


def _short(layer: nn.Module) -> bool:
    weight = layer.weight
    return isinstance(weight, Tensor) and weight[0].numel() <= LONGEST_COLUMN


def _layer(network: nn.Module, name: str) -> Layer:
    layer = network.get_submodule(name)
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    return layer


class _Targets:
    """What layers gave in the whole network, and what their blocks got, at the positions that are looked at.

    Args:
        whole: See `refit`.
        places: Of the layers to fit, in the order in which they are asked for.
        stands_for: See `refit`.
        removed: See `refit`.
        inputs: Of the whole network.
    """

    def __init__(
        self,
        whole: nn.Module,
        places: Sequence[Place],
        stands_for: Mapping[str, str],
        removed: Removed,
        inputs: Tensor,
    ) -> None:
        self._whole = whole
        self._inputs = inputs
        self._removed = removed
        self._before = {place.layer: stands_for.get(place.layer, place.layer) for place in places}
        self._coming = list(places)
        self._outputs: dict[str, Tensor] = {}
        self._shortcuts: dict[str, Tensor] = {}
        self._unknown: set[str] = set()
        self._collect()  # before the other network's tensors live, too

    def _collect(self) -> None:
        """Runs the whole network for the next places."""
        places, held_bytes = list[Place](), 0
        while self._coming and (not places or held_bytes < _HELD_BYTES):
            places.append(self._coming.pop(0))
            outputs = len(_layer(self._whole, self._before[places[-1].layer]).weight)
            held_bytes += (2 if places[-1].block else 1) * 4 * _POSITIONS.count * outputs
        whole, after = self._whole, {self._before[place.layer]: place.layer for place in places}
        runs: Counter[str] = Counter()

        def see(name: str, layer: Layer, _inputs: Tensor, outputs: Tensor) -> None:
            runs[name] += 1
            self._outputs[after[name]] = output_columns(layer, outputs, _POSITIONS)

        def enter(place: Place, received: Tensor) -> None:
            # Copied: what follows may overwrite what it gets.
            layer = _layer(whole, self._before[place.layer])
            self._shortcuts[place.block] = output_columns(layer, received, _POSITIONS).clone()

        blocks = {place.block: partial(enter, place) for place in places if place.block}
        with watched(whole, after, see), entered(whole, blocks), torch.no_grad():
            whole(self._inputs.clone())
        # Of a layer that ran elsewhere, too, before that went.
        for name in (name for name, count in runs.items() if count > 1):
            self._unknown.add(after[name])
            del self._outputs[after[name]]

    def of(self, place: Place, norm: _BatchNorm | None, shortcut: Tensor | None) -> Tensor | None:
        """What a layer should give: `[positions, out]`; None, where the whole network runs it more than once.

        Args:
            place: Of the layer.
            norm: That follows it.
            shortcut: What its block gets now, if it ends the branch of one.
        """
        while place in self._coming:
            self._collect()
        if place.layer in self._unknown:
            self._shortcuts.pop(place.block, None)
            return None
        gone = self._removed.get((f"{place.layer}.weight", 0), np.zeros(0, dtype=np.int64))
        target = self._outputs.pop(place.layer)
        rows = torch.from_numpy(np.setdiff1d(np.arange(target.shape[1]), gone))
        target = target[:, rows]
        if shortcut is None:
            return target
        behind = self._shortcuts.pop(place.block)[:, rows] - shortcut
        return target + behind / _scale(norm) if norm is not None else target + behind


def _scale(norm: _BatchNorm) -> Tensor:
    """By which a batch norm multiplies each channel; infinite, where it hardly lets anything through."""
    if norm.running_var is None:
        return torch.full((norm.num_features,), torch.inf)
    scale = (norm.running_var + norm.eps).rsqrt() * (1.0 if norm.weight is None else norm.weight.detach())
    return torch.where(scale.abs() > _LEAST_SCALE * scale.abs().max(), scale, torch.inf)


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
    # Fewer positions than unknowns say less of what else there is.
    damping = DAMPING * max(1.0, size / len(columns)) * sums.inputs.diagonal().mean().clamp_min(1e-12)
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
