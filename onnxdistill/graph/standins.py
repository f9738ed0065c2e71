"""Whether other modules can stand where some are: code around a module may read more of it than what it gives."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from onnxdistill.errors import is_of_memory
from onnxdistill.graph.cores import core_of


def replaceable(
    network: nn.Module, names: Sequence[str], example: Tensor, stand_in: Callable[[nn.Module], nn.Module]
) -> list[str]:
    """Those of the named modules in whose places stand-ins run, all at once, whatever they compute.

    Of modules that lie in each other, only one can have a stand-in at a time. A forward like
    `x.view(-1, self.fc.in_features)`, or one that asks its blocks for an attribute, does not run with every module in
    their place.

    Args:
        network: In evaluation mode; not changed.
        names: Of modules.
        example: An input.
        stand_in: Makes another module from one.
    """
    found = list[str]()
    for level in _levels(names):
        running = level
        if not _runs(network, [*_beside(found, level), *level], example, stand_in):
            running = []
            for name in level:
                tried = [*running, name]
                if _runs(network, [*_beside(found, tried), *tried], example, stand_in):
                    running = tried
        found += running
    return [name for name in names if name in found]


def _levels(names: Sequence[str]) -> list[list[str]]:
    """Those that lie in none of the others, then those that lie in one of them, and so on."""
    depths = {name: sum(name.startswith(f"{other}.") for other in names) for name in names}
    return [[name for name in names if depths[name] == depth] for depth in sorted(set(depths.values()))]


def _beside(found: Sequence[str], names: Sequence[str]) -> list[str]:
    """Those that are around none of some, nor in each other: the outer ones."""
    apart = [one for one in found if not any(name.startswith(f"{one}.") for name in names)]
    return _levels(apart)[0] if apart else []


def _runs(
    network: nn.Module, names: Sequence[str], example: Tensor, stand_in: Callable[[nn.Module], nn.Module]
) -> bool:
    changed = copy.deepcopy(network)
    with torch.inference_mode():
        expected = _shapes(core_of(network)(example.clone()))
    try:
        for name in names:
            changed.set_submodule(name, stand_in(changed.get_submodule(name)))
        with torch.inference_mode():
            return _shapes(core_of(changed)(example.clone())) == expected
    except Exception as error:  # a user's code runs, which can raise anything
        if is_of_memory(error):
            raise
        return False


def _shapes(outputs: Any) -> list[torch.Size]:
    if isinstance(outputs, Tensor):
        return [outputs.shape]
    parts = outputs.values() if isinstance(outputs, dict) else outputs if isinstance(outputs, list | tuple) else ()
    return [shape for part in parts for shape in _shapes(part)]
