"""The proof that a cut is right: the smaller network computes what the whole one does with those channels silent."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from onnxdistill.errors import is_of_memory
from onnxdistill.graph.cores import core_of
from onnxdistill.graph.groups import ChannelAnalysis, ChannelGroup, Channels
from onnxdistill.graph.silence import difference, silent_outputs
from onnxdistill.graph.surgery import cut_channels


@dataclass(frozen=True)
class Failure:
    """A trial cut that failed: the innermost module that raised, if one did, and the groups to blame."""

    module: str | None
    groups: tuple[ChannelGroup, ...]
    reason: str


def prove(network: nn.Module, analysis: ChannelAnalysis, example: Tensor, *, narrow: bool = False) -> Failure | None:
    """Cuts every free group on trial: a third of each, and then another share of each, with its first channel.

    Args:
        network: Not changed.
        analysis: Of this network.
        example: An input `[N, ...]`.
        narrow: Whether to find out which groups fail, even if a module raised.

    Returns:
        What failed; None if the cut networks compute what they should, and train if the whole one does.
    """
    groups = [group for group in analysis.free if group.size > 1]
    if not groups:
        return None
    trial = _Trial(_shaken(network), analysis, example)
    for pattern in (_a_third, _varied):
        outcome = trial.failure(groups, pattern)
        if outcome is None:
            continue
        if outcome.module is not None and not narrow:
            return outcome
        return _narrowed(trial, groups, pattern, outcome)
    return None


Pattern = Callable[[int, int], Channels]
"""Which channels of a group stay, by its place among the groups and its size."""


def _a_third(_place: int, size: int) -> Channels:
    return np.array([channel for channel in range(size) if channel % 3 != 1], dtype=np.int64)


def _varied(place: int, size: int) -> Channels:
    """Groups lose different shares: code that takes two of them for equally wide is found out."""
    every = 2 + place % 3
    return np.array([channel for channel in range(size) if channel % every], dtype=np.int64)


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


def _narrowed(trial: _Trial, groups: list[ChannelGroup], pattern: Pattern, outcome: Failure) -> Failure:
    """Bisects to the groups whose cut alone gives other values."""
    while len(groups) > 1:
        half = len(groups) // 2
        for part in (groups[:half], groups[half:]):
            narrower = trial.failure(part, pattern)
            if narrower is not None:
                groups, outcome = part, narrower
                break
        else:
            break  # only together
    return Failure(outcome.module, tuple(groups), outcome.reason)


class _Trial:
    """Cuts of one network, on one example."""

    def __init__(self, network: nn.Module, analysis: ChannelAnalysis, example: Tensor) -> None:
        self._network = network
        self._analysis = analysis
        self._example = example
        self._places = {group.name: place for place, group in enumerate(analysis.free)}
        # With such small maps that a batch norm has one value a channel, say, the whole network cannot train either.
        buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
        self._trains = _raised(network.train(), example, []) is None
        for name, buffer in network.eval().named_buffers():  # training moves statistics
            buffer.copy_(buffers[name])

    def failure(self, groups: list[ChannelGroup], pattern: Pattern) -> Failure | None:
        """What goes wrong if these groups are cut."""
        kept = {group.name: pattern(self._places[group.name], group.size) for group in groups}
        # One copy of the network after the other, for the sake of memory.
        expected = silent_outputs(self._network, self._analysis, kept, self._example)
        smaller = cut_channels(self._network, self._analysis, kept, self._example)
        outputs: list[Any] = []
        place: list[str] = []
        reason = _raised(smaller.eval(), self._example, outputs, place)
        if reason is not None:
            return Failure(_author(smaller, place), tuple(groups), reason)
        if reason := difference(expected, outputs[0]):
            return Failure(None, tuple(groups), reason)
        if self._trains and (reason := _raised(smaller.train(), self._example, outputs, place)) is not None:
            return Failure(_author(smaller, place), tuple(groups), f"in training, {reason}")
        return None


def _raised(network: nn.Module, example: Tensor, outputs: list[Any], place: list[str] | None = None) -> str | None:
    """What a forward pass raises, in words; None if it gives outputs, which go into `outputs`."""
    where: list[str] = [] if place is None else place
    where.clear()
    with torch.no_grad(), _in_place(network, where):
        try:
            outputs.append(core_of(network)(example.clone()))
        except Exception as error:  # a user's code runs, which can raise anything
            if is_of_memory(error):
                raise
            return next(iter(str(error).strip().splitlines()), type(error).__name__)[:120]
    return None


def _author(network: nn.Module, place: list[str]) -> str:
    """Path of the module whose code is to blame: a layer of PyTorch's only gets what its caller gives it."""
    path = place[-1] if place else ""
    module = network.get_submodule(path)
    if path and type(module).__module__.startswith("torch.nn.") and not any(module.children()):
        return path.rpartition(".")[0]
    return path


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
