"""Statistics for batch normalisation after the layers before it have changed: new ones, or the old ones adapted."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from onnxdistill.graph.groups import Removed

# Inputs go through the network at once, as many as have so many values: 341 images of 32 pixels; but at least so many.
_MOST_INPUTS, _FEWEST_SAMPLES = 2**20, 64
# Relative to the mean of the variances: less is that of a dead channel, and no measure for another.
_LEAST_VARIANCE = 1e-6


def recalibrate_batch_norm(network: nn.Module, batches: Iterable[Tensor]) -> nn.Module:
    """Returns a copy whose batch norms have the mean and variance of `batches`; needs no labels.

    Only the statistics change. The mean over batches is cumulative, so that every batch counts the same.

    Args:
        network: Not changed.
        batches: Inputs `[B, ...]`, of equal size but for the last. A batch of one has no variance and is left
            out; where nothing else is left, the statistics stay as they are.
    """
    changed = copy.deepcopy(network).eval()
    usable = (inputs for inputs in batches if len(inputs) > 1)
    first = next(usable, None)
    if first is None:
        return changed
    norms = [m for m in changed.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the cumulative average
        norm.train()
    with torch.no_grad():
        for inputs in chain([first], usable):
            changed(inputs.clone())  # it may work in place on what it gets
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
    return changed


def match_batch_norm(whole: nn.Module, cut: nn.Module, removed: Removed, batches: Iterable[Tensor]) -> nn.Module:
    """Returns a copy of the cut network whose batch norms give what they gave before: see `NormMatcher`.

    Args:
        whole: Before the cut, in evaluation mode; not changed.
        cut: After it; not changed.
        removed: Which channels went, as `ChannelAnalysis.removed_indices` gives it.
        batches: Inputs `[B, ...]`; as many of the first as go through at once are looked at.
    """
    return NormMatcher(whole, batches).matched(cut, removed)


class NormMatcher:
    """Lets the batch norms of changed networks give the means and variances that a network's gave.

    What a batch norm has learned of the training stays, and only the difference between the networks goes into it,

        var' = var v_cut / v_whole        mean' = m_cut - sqrt(var' / var) (m_whole - mean)

    with the means m and variances v of its inputs in either network. Statistics of `batches` alone would forget the
    crops, paddings and flips of the training: the ResNet-20 for CIFAR-10 whose weights were adapted to JPEG loses 5
    points by `recalibrate_batch_norm` with nothing cut at all, and none by this.

    Args:
        whole: Before any change, in evaluation mode; not changed.
        batches: Inputs `[B, ...]`; as many of the first as go through at once are looked at.
    """

    def __init__(self, whole: nn.Module, batches: Iterable[Tensor]) -> None:
        self._inputs = _at_once(batches)
        self._before = _seen_by_norms(whole, self._inputs.clone())

    def matched(self, cut: nn.Module, removed: Removed) -> nn.Module:
        """A copy of a changed network, of which `removed` went, as `ChannelAnalysis.removed_indices` gives it."""
        changed = copy.deepcopy(cut).eval()
        with self.matching(changed, removed), torch.no_grad():
            changed(self._inputs.clone())
        return changed

    @contextmanager
    def matching(self, cut: nn.Module, removed: Removed) -> Iterator[None]:
        """While this is entered, a pass of the inputs adapts the norms of a changed network, which is changed itself.

        One pass is enough: every norm gets its statistics before it runs, and what follows sees its outputs.

        Args:
            cut: In evaluation mode; it is to get the inputs that the norms are matched on, or others like them.
            removed: Which channels went, as `ChannelAnalysis.removed_indices` gives it.
        """

        def match(norm: _BatchNorm, received: Tensor, name: str) -> None:
            if name not in self._before or norm.running_mean is None or norm.running_var is None:
                return
            mean, variance, known_mean, known_variance = self._before[name]
            kept = torch.from_numpy(np.setdiff1d(np.arange(len(mean)), removed.get((f"{name}.running_mean", 0), [])))
            mean, variance, known_mean, known_variance = (
                values[kept] for values in (mean, variance, known_mean, known_variance)
            )
            if len(mean) != norm.num_features:
                return
            now_mean, now_variance = _moments(received)
            least = _LEAST_VARIANCE * variance.mean()
            alive = (variance > least) & (now_variance > least)
            ratio = torch.where(alive, now_variance / variance.clamp_min(least), torch.ones_like(variance))
            with torch.no_grad():
                norm.running_mean.copy_(now_mean - ratio.sqrt() * (mean - known_mean))
                norm.running_var.copy_(known_variance * ratio)

        with _showing_norms(cut, match):
            yield


Statistics = tuple[Tensor, Tensor, Tensor, Tensor]


def _seen_by_norms(network: nn.Module, inputs: Tensor) -> dict[str, Statistics]:
    """Mean and variance of the inputs of every batch norm that runs once, and those that it knows."""
    seen: dict[str, Statistics] = {}
    calls: dict[str, int] = {}

    def see(norm: _BatchNorm, received: Tensor, name: str) -> None:
        calls[name] = calls.get(name, 0) + 1
        if norm.running_mean is not None and norm.running_var is not None:
            seen[name] = (*_moments(received), norm.running_mean.clone(), norm.running_var.clone())

    with _showing_norms(network, see), torch.no_grad():
        network(inputs)
    return {name: statistics for name, statistics in seen.items() if calls[name] == 1}


@contextmanager
def _showing_norms(network: nn.Module, see: Callable[[_BatchNorm, Tensor, str], None]) -> Iterator[None]:
    """While this is entered, the inputs of a network's batch norms are shown, each before it runs."""

    def showing(name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def before(norm: nn.Module, received: tuple[Any, ...], named: dict[str, Any]) -> None:
            assert isinstance(norm, _BatchNorm)
            see(norm, received[0] if received else named["input"], name)

        return before

    norms = [(name, module) for name, module in network.named_modules() if isinstance(module, _BatchNorm)]
    handles = [module.register_forward_pre_hook(showing(name), with_kwargs=True) for name, module in norms]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _moments(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of the channels of `[N, C, ...]`, without Bessel's correction.

    By those of every sample and channel (the law of total variance): over several dimensions at once, PyTorch takes
    ten times as long on a CPU, nearly half as long as the convolution before it.
    """
    rows = values.to(torch.promote_types(values.dtype, torch.float32)).unsqueeze(-1).flatten(2)
    means = rows.mean(2)
    variances = (rows - means.unsqueeze(2)).square_().mean(2)
    return means.mean(0), variances.mean(0) + means.var(0, correction=0)


def _at_once(batches: Iterable[Tensor]) -> Tensor:
    taken = list[Tensor]()
    for inputs in batches:
        values = sum(map(torch.numel, taken)) + inputs.numel()
        if taken and values > _MOST_INPUTS and sum(map(len, taken)) >= _FEWEST_SAMPLES:
            break
        taken.append(inputs)
    return torch.cat(taken)
