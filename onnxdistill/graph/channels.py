"""Channel groups: which slices of which parameters have to be removed together.

They are read off the same `torch.export` graph that the ONNX exporter uses. Every dimension of every value in the
graph carries a label or none; a label names an *atom* for each index. An atom is born as an output channel of a
convolution or a linear layer, flows through the graph, and collects the slices of parameters that it meets. Where
two atoms meet (a residual sum), they become one. The dependency itself is that of Fang et al. 2023, "DepGraph",
section 3; deriving it from index labels instead of from layer types needs no list of supported models.

An operator without a rule freezes the atoms that touch it, and so does an output of the network: a frozen channel is
never removed. The analysis tells which operator froze which layers.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from onnxdistill.errors import NetworkError
from onnxdistill.graph.labels import Atoms, ChannelAnalysis, ChannelGroup, Freeze, Member
from onnxdistill.graph.rules import Walk

__all__ = ["ChannelAnalysis", "ChannelGroup", "Freeze", "Member", "analyse_channels"]

Slices = dict[int, dict[tuple[str, int], list[int]]]
"""For every atom, the indices that it has in every dimension of every tensor."""


def analyse_channels(network: nn.Module, example: Tensor) -> ChannelAnalysis:
    """Reads the channel groups off a network.

    Args:
        network: Maps a tensor to a tensor (or a tuple or dict of tensors); not changed.
        example: An input `[N, ...]` with N > 1.

    Raises:
        NetworkError: If `torch.export` cannot trace the network.
    """
    walk = Walk(_trace(network, example))
    walk.run()
    return _collect(walk.atoms)


def _trace(network: nn.Module, example: Tensor) -> ExportedProgram:
    training = network.training
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # advice to authors of the traced code
            return torch.export.export(network.eval(), (example,), strict=False)
    except (RuntimeError, TypeError, ValueError) as error:
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise NetworkError(
            f"{type(network).__name__} cannot be traced by torch.export: {first[:200].rstrip('.')}.",
            "Leave out [prune], or remove data-dependent control flow from the network's forward.",
        ) from error
    finally:
        network.train(training)


def _collect(atoms: Atoms) -> ChannelAnalysis:
    slices: Slices = {}
    for key, label in atoms.bindings.items():
        for index, atom in enumerate(label.tolist()):
            if atom >= 0:
                slices.setdefault(atoms.find(atom), {}).setdefault(key, []).append(index)
    frozen = {atoms.find(atom) for atom in atoms.frozen}
    kinds: dict[tuple[object, ...], list[int]] = {}
    for root, members in slices.items():
        # Channels are alike, and one group, if they have as many indices in the same places.
        signature = (root in frozen, *((key, len(indices)) for key, indices in members.items()))
        kinds.setdefault(signature, []).append(root)
    groups = [_group(roots, slices, frozen) for roots in kinds.values()]
    names: dict[str, int] = {}
    unique = [_renamed(group, names) for group in groups]
    return ChannelAnalysis(tuple(unique), tuple(_freezes(atoms, slices)))


def _group(roots: list[int], slices: Slices, frozen: set[int]) -> ChannelGroup:
    keys = list(slices[roots[0]])
    first = keys[0]
    roots = sorted(roots, key=lambda root: slices[root][first])
    members = tuple(
        Member(tensor, dim, tuple(np.array(slices[root][tensor, dim], dtype=np.int64) for root in roots))
        for tensor, dim in keys
    )
    return ChannelGroup(members[0].layer, len(roots), members, roots[0] in frozen)


def _renamed(group: ChannelGroup, names: dict[str, int]) -> ChannelGroup:
    """A layer whose channels belong to several groups names them `layer`, `layer#2`, …."""
    names[group.name] = names.get(group.name, 0) + 1
    if names[group.name] == 1:
        return group
    return ChannelGroup(f"{group.name}#{names[group.name]}", group.size, group.members, group.frozen)


def _freezes(atoms: Atoms, slices: Slices) -> Iterable[Freeze]:
    seen: dict[Freeze, None] = {}
    for operator, label in atoms.freezes:
        layers = dict.fromkeys(
            next(iter(slices[root]))[0].rpartition(".")[0]
            for root in dict.fromkeys(atoms.find(atom) for atom in label.tolist())
            if root in slices
        )
        seen[Freeze(operator, tuple(layers))] = None
    return seen
