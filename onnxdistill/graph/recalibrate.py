"""New statistics for batch normalisation after the layers before it have changed."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


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
            changed(inputs)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
    return changed
