"""Silent channels: the network as it would be without them, at its full size.

Silent means: every parameter slice of the channel is zero, and normalisations over channels take their statistics
from the others.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from onnxdistill.graph.cores import core_of
from onnxdistill.graph.groups import ChannelAnalysis, Channels

# In float32, sums in another order differ by about 1e-6 of the largest value, and deep networks amplify that.
TOLERANCE = 1e-3


def difference(expected: Any, actual: Any) -> str:
    """How the outputs of two networks differ, in words; empty if they don't, beyond rounding.

    Args:
        expected: A tensor, or tensors in tuples, lists and dicts; what is no tensor counts for nothing.
        actual: The same of the other network.
    """
    wanted, given = tensors_in(expected), tensors_in(actual)
    if len(wanted) != len(given):
        return f"there are {len(given)} outputs instead of {len(wanted)}"
    for one, other in zip(wanted, given, strict=True):
        if one.shape != other.shape:
            return f"an output has shape {tuple(other.shape)} instead of {tuple(one.shape)}"
        if not one.is_floating_point():
            # A comparison with a threshold may tip over by rounding: a sample or two, not all.
            if one.numel() and float((one != other).float().mean()) > TOLERANCE:
                return "outputs that are no real numbers differ"
            continue
        if not one.numel():
            continue
        if not torch.equal(one.isnan(), other.isnan()):
            return "one of two outputs is NaN"
        gap = float((one - other).abs().nan_to_num().max())
        if not gap <= TOLERANCE * max(1e-6, float(one.abs().nan_to_num().max())):
            return f"outputs differ by {gap:.2g}"
    return ""


def tensors_in(outputs: Any) -> list[Tensor]:
    """The tensors among what a network returns, in order."""
    return [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]


def silent_outputs(network: nn.Module, analysis: ChannelAnalysis, kept: Mapping[str, Channels], example: Tensor) -> Any:
    """Outputs of a network (of its traceable core) in which all channels but the kept ones are silent.

    Args:
        network: Not changed.
        analysis: Of this network.
        kept: As for `remove_channels`.
        example: An input.
    """
    silent = copy.deepcopy(network).eval()
    parameters = dict(silent.named_parameters(remove_duplicate=False))
    norms: dict[int, Tensor] = {}
    for (tensor, dim), removed in analysis.removed_indices(kept).items():
        parameter = parameters.get(tensor)
        if parameter is None:
            continue  # a buffer: what is normalised by it goes on into zeros
        with torch.no_grad():
            parameter.index_fill_(dim, torch.from_numpy(removed), 0.0)
        if parameter.ndim == 1:
            norms[id(parameter)] = torch.from_numpy(np.setdiff1d(np.arange(len(parameter)), removed))
    with torch.inference_mode(), _StatisticsOfTheKept(norms):
        return core_of(silent)(example.clone())


class _StatisticsOfTheKept(TorchFunctionMode):
    """Normalises over the channels that are kept, and gives zeros for the others.

    Args:
        kept: Per weight of a normalisation (by identity), the channels that are kept.
    """

    def __init__(self, kept: dict[int, Tensor]) -> None:
        super().__init__()
        self._kept = kept

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.layer_norm:
            weight = args[2] if len(args) > 2 else kwargs.get("weight")
            if id(weight) in self._kept:
                return self._layer_norm(*args, **kwargs)
        if func is F.group_norm:
            weight = args[2] if len(args) > 2 else kwargs.get("weight")
            if id(weight) in self._kept:
                return self._group_norm(*args, **kwargs)
        if func is F.rms_norm:
            weight = args[2] if len(args) > 2 else kwargs.get("weight")
            if id(weight) in self._kept:
                return self._rms_norm(args[0], weight, args[3] if len(args) > 3 else kwargs.get("eps"))
        return func(*args, **kwargs)

    def _layer_norm(
        self, inputs: Tensor, shape: Any, weight: Tensor, bias: Tensor | None = None, eps: float = 1e-5
    ) -> Tensor:
        kept = self._kept[id(weight)]
        part = F.layer_norm(inputs[..., kept], (len(kept),), weight[kept], None if bias is None else bias[kept], eps)
        result = torch.zeros_like(inputs)
        result[..., kept] = part
        return result

    def _group_norm(
        self, inputs: Tensor, groups: int, weight: Tensor, bias: Tensor | None = None, eps: float = 1e-5
    ) -> Tensor:
        kept = self._kept[id(weight)]
        if groups == inputs.shape[1]:
            groups = len(kept)  # a group a channel: it goes with its channel
        part = F.group_norm(inputs[:, kept], groups, weight[kept], None if bias is None else bias[kept], eps)
        result = torch.zeros_like(inputs)
        result[:, kept] = part
        return result

    def _rms_norm(self, inputs: Tensor, weight: Tensor, eps: float | None) -> Tensor:
        kept = self._kept[id(weight)]
        result = torch.zeros_like(inputs)
        result[..., kept] = F.rms_norm(inputs[..., kept], (len(kept),), weight[kept], eps)
        return result
