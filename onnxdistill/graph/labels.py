"""Atoms, the channels of a network as index labels, and the groups that they come to."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch.fx import Node

Label = NDArray[np.int64]
"""The atom of every index of a dimension; CONSTANT where there is none."""

CONSTANT = -1
UNBOUND = -2


@dataclass(frozen=True)
class Member:
    """A dimension of a parameter or buffer that a group runs through.

    Attributes:
        tensor: Qualified name, as in `state_dict()`.
        dim: The dimension.
        indices: For every channel of the group, its indices in that dimension (several after a flatten).
    """

    tensor: str
    dim: int
    indices: tuple[Label, ...]

    @property
    def layer(self) -> str:
        """Qualified name of the layer."""
        return self.tensor.rpartition(".")[0]


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that are removed or kept one by one, each with all of its slices.

    Attributes:
        name: The layer that produces the channels first.
        size: Number of channels.
        members: Everything that a channel is part of.
        frozen: Whether they have to stay.
    """

    name: str
    size: int
    members: tuple[Member, ...]
    frozen: bool

    @property
    def layers(self) -> list[str]:
        """The layers that the group runs through, in order."""
        return list(dict.fromkeys(member.layer for member in self.members))

    @property
    def indices_per_channel(self) -> int:
        """Output channels of the producing layer that one channel of the group stands for."""
        return len(self.members[0].indices[0])


@dataclass(frozen=True)
class Freeze:
    """Why channels have to stay: the operator, and the layers that the channels come from."""

    operator: str
    layers: tuple[str, ...]


@dataclass(frozen=True)
class ChannelAnalysis:
    """All channel groups of a network, and what froze some of them."""

    groups: tuple[ChannelGroup, ...]
    freezes: tuple[Freeze, ...]

    def __getitem__(self, name: str) -> ChannelGroup:
        """The group of that name."""
        return next(group for group in self.groups if group.name == name)


@dataclass
class Atoms:
    """Atoms that can become one (a union-find with path halving), and what each is part of."""

    parents: list[int] = field(default_factory=list)
    frozen: set[int] = field(default_factory=set)
    bindings: dict[tuple[str, int], Label] = field(default_factory=dict)
    freezes: list[tuple[str, Label]] = field(default_factory=list)

    def new(self, count: int) -> Label:
        """Makes `count` atoms."""
        first = len(self.parents)
        self.parents.extend(range(first, first + count))
        return np.arange(first, first + count, dtype=np.int64)

    def find(self, atom: int) -> int:
        """The atom that stands for all that became one with `atom`."""
        while self.parents[atom] != atom:
            self.parents[atom] = self.parents[self.parents[atom]]
            atom = self.parents[atom]
        return atom

    def unite(self, one: Label, other: Label, operator: str) -> Label:
        """Makes the atoms at equal places one; beside a constant, an atom is frozen.

        Returns:
            The label of the result: an atom wherever either side has one.
        """
        for a, b in zip(one.tolist(), other.tolist(), strict=True):
            if a != CONSTANT and b != CONSTANT:
                self.parents[self.find(b)] = self.find(a)
        alone = (one == CONSTANT) != (other == CONSTANT)
        merged = np.where(one == CONSTANT, other, one)
        if alone.any():
            self.freeze(merged[alone], operator)
        return merged

    def freeze(self, label: Label, operator: str) -> None:
        """Marks the atoms of a label as not removable."""
        atoms = label[label != CONSTANT]
        if len(atoms):
            self.frozen.update(atoms.tolist())
            self.freezes.append((operator, atoms))

    def bind(self, tensor: str, dim: int, label: Label) -> None:
        """Notes that index i of a tensor's dimension belongs to the atom `label[i]`."""
        known = self.bindings.setdefault((tensor, dim), np.full(len(label), UNBOUND, dtype=np.int64))
        for index, atom in enumerate(label.tolist()):
            if known[index] == UNBOUND:
                known[index] = atom
            elif known[index] != atom:
                # A parameter that is used twice: whatever meets it in either place goes together.
                one, other = np.array([known[index]]), np.array([atom])
                known[index] = self.unite(one, other, f"shared {tensor}")[0]


def value_shape(node: Node) -> tuple[int, ...]:
    """The sizes of a value of the graph."""
    return tuple(int(size) for size in node.meta["val"].shape)
