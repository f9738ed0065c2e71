"""The proof that a cut is right: the smaller network computes what the whole one does with those channels silent.

Silent means: every parameter slice of the channel is zero, and normalisations over channels take their statistics
from the others.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from onnxdistill.graph.cores import core_of
from onnxdistill.graph.groups import ChannelAnalysis, ChannelGroup, Channels
from onnxdistill.graph.surgery import cut_channels

# In float32, sums in another order differ by about 1e-6 of the largest value, and deep networks amplify that.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Failure:
    """A trial cut that failed: the innermost module that raised, if one did, and the groups to blame."""

    module: str | None
    groups: tuple[ChannelGroup, ...]
    reason: str


def prove(network: nn.Module, analysis: ChannelAnalysis, example: Tensor, *, narrow: bool = False) -> Failure | None:
    """Cuts a third of every free group on trial.

    Args:
        network: Not changed.
        analysis: Of this network.
        example: An input `[N, ...]`.
        narrow: Whether to find out which groups fail, even if a module raised.

    Returns:
        What failed; None if the cut network computes what it should.
    """
    groups = [group for group in analysis.free if group.size > 1]
    network = _shaken(network)
    outcome = _try(network, analysis, groups, example)
    if outcome is None:
        return None
    if outcome.module is not None and not narrow:
        return outcome
    return _narrowed(network, analysis, groups, example, outcome)


def _shaken(network: nn.Module) -> nn.Module:
    """A copy in which no parameter is the same all over: a head that starts at zero would hide every difference."""
    shaken = copy.deepcopy(network)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in shaken.parameters():
            if parameter.numel() > 1 and bool((parameter == parameter.flatten()[0]).all()):
                noise = torch.rand(parameter.shape, generator=generator, dtype=parameter.dtype)
                vector = parameter.numel() == max(parameter.shape)
                parameter.copy_(0.5 + noise if vector else (noise - 0.5) * (12 / parameter[0].numel()) ** 0.5)
    return shaken


def _narrowed(
    network: nn.Module, analysis: ChannelAnalysis, groups: list[ChannelGroup], example: Tensor, outcome: Failure
) -> Failure:
    """Bisects to the groups whose cut alone gives other values."""
    while len(groups) > 1:
        half = len(groups) // 2
        for part in (groups[:half], groups[half:]):
            narrower = _try(network, analysis, part, example)
            if narrower is not None:
                groups, outcome = part, narrower
                break
        else:
            break  # only together
    return Failure(outcome.module, tuple(groups), outcome.reason)


def _try(network: nn.Module, analysis: ChannelAnalysis, groups: list[ChannelGroup], example: Tensor) -> Failure | None:
    kept = {group.name: _two_thirds(group.size) for group in groups}
    if not kept:
        return None
    # One copy of the network after the other, for the sake of memory.
    expected = tree_leaves(silent_outputs(network, analysis, kept, example))
    smaller = cut_channels(network, analysis, kept, example)
    place: list[str] = []
    with torch.inference_mode(), _in_place(smaller, place):
        try:
            actual = tree_leaves(core_of(smaller.eval())(example))
        except (RuntimeError, ValueError, IndexError, AssertionError, TypeError) as error:
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)[:120]
            return Failure(_author(smaller, place), tuple(groups), reason)
    for one, other in zip(expected, actual, strict=True):
        if one.shape != other.shape:
            return Failure(None, tuple(groups), f"an output has shape {tuple(other.shape)}")
        difference = float((one - other).abs().max())
        if not difference <= TOLERANCE * max(1e-6, float(one.abs().max())):
            return Failure(None, tuple(groups), f"outputs differ by {difference:.2g}")
    return None


def _author(network: nn.Module, place: list[str]) -> str:
    """Path of the module whose code is to blame: a layer of PyTorch's only gets what its caller gives it."""
    path = place[-1] if place else ""
    module = network.get_submodule(path)
    if path and type(module).__module__.startswith("torch.nn.") and not any(module.children()):
        return path.rpartition(".")[0]
    return path


def _two_thirds(size: int) -> Channels:
    return np.array([channel for channel in range(size) if channel % 3 != 1], dtype=np.int64)


@contextmanager
def _in_place(network: nn.Module, place: list[str]) -> Iterator[None]:
    """Keeps `place` at the path of the modules that are running, the innermost last."""

    def entering(name: str) -> Callable[[nn.Module, Any], None]:
        return lambda _module, _inputs: place.append(name)

    def leaving(_module: nn.Module, _inputs: Any, _output: Any) -> None:
        place.pop()

    handles = []
    for name, module in network.named_modules():
        handles.append(module.register_forward_pre_hook(entering(name)))
        handles.append(module.register_forward_hook(leaving))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


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
        return core_of(silent)(example)


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
        part = F.group_norm(inputs[:, kept], groups, weight[kept], None if bias is None else bias[kept], eps)
        result = torch.zeros_like(inputs)
        result[:, kept] = part
        return result
