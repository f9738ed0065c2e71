"""Channel groups: which slices of which tensors go together. What the analysis of a network results in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from onnxdistill.graph.labels import Label

Channels = NDArray[np.int64]
Kind = Literal["channels", "heads"]

Removed = Mapping[tuple[str, int], Channels]
"""Indices that went, by tensor and dimension."""


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
        """Qualified name of the layer; of a network's own parameter, the parameter's."""
        return self.tensor.rpartition(".")[0] or self.tensor


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that are removed or kept one by one, each with all of its slices.

    Attributes:
        name: The layer that produces the channels first; of attention heads, with `:heads`.
        size: Number of channels.
        members: Everything that a channel is part of.
        frozen: Whether they have to stay.
        kind: `heads` if a channel is a whole attention head.
        atoms: For every channel the atom of its kind's labels.
    """

    name: str
    size: int
    members: tuple[Member, ...]
    frozen: bool
    kind: Kind = "channels"
    atoms: Label = field(default_factory=lambda: np.zeros(0, dtype=np.int64), compare=False, repr=False)

    @property
    def layers(self) -> list[str]:
        """The layers that the group runs through, in order."""
        return list(dict.fromkeys(member.layer for member in self.members))

    @property
    def names(self) -> list[str]:
        """What it can be called by: its name, and the layers whose own channels these are."""
        return [self.name, *dict.fromkeys(member.layer for member in self.members if member.dim == 0)]

    @property
    def indices_per_channel(self) -> int:
        """Output channels of the producing layer that one channel of the group stands for."""
        return len(self.members[0].indices[0])


@dataclass(frozen=True)
class Narrowed:
    """A channel group before and after it was cut; `layers` are those that it runs through."""

    name: str
    channels_before: int
    channels_after: int
    layers: list[str]


@dataclass(frozen=True)
class Freeze:
    """Why channels have to stay: the operator, and the layers that the channels come from."""

    operator: str
    layers: tuple[str, ...]


@dataclass(frozen=True)
class SizeInCode:
    """A result whose sizes the code of a module names, such as that of a reshape.

    Attributes:
        module: Path of the module.
        kind: Whose atoms the label holds.
        label: The atoms of the result.
        shape: Its shape.
        node: The traced operator.
    """

    module: str
    kind: Kind
    label: Label
    shape: tuple[int, ...]
    node: str


@dataclass(frozen=True)
class ScaledByWidth:
    """A scaling that comes from a width: attention divides by the root of its head's width.

    Attributes:
        node: The traced operator.
        label: The atoms of what is scaled, by kind `channels`.
        shape: Its shape.
        factor: The number; None for attention's own.
        producers: Per tensor, which rows of it give what is scaled.
    """

    node: str
    label: Label
    shape: tuple[int, ...]
    factor: float | None
    producers: dict[str, NDArray[np.bool_]]


@dataclass(frozen=True)
class ChannelAnalysis:
    """All channel groups of a network, and what froze some of them.

    Attributes:
        groups: The groups.
        freezes: Why frozen channels have to stay.
        sizes: Sizes in the network's code that follow the widths.
        scalings: Scalings that follow the widths.
        whole_groups: Grouped convolutions that lose whole groups.
    """

    groups: tuple[ChannelGroup, ...]
    freezes: tuple[Freeze, ...]
    sizes: tuple[SizeInCode, ...] = ()
    scalings: tuple[ScaledByWidth, ...] = ()
    whole_groups: frozenset[str] = frozenset()

    def __getitem__(self, name: str) -> ChannelGroup:
        """The group of that name.

        Raises:
            KeyError: If there is none.
        """
        for group in self.groups:
            if group.name == name:
                return group
        raise KeyError(name)

    @property
    def free(self) -> list[ChannelGroup]:
        """The groups that channels can be removed from."""
        return [group for group in self.groups if not group.frozen]

    def removed_indices(self, kept: Mapping[str, Channels]) -> dict[tuple[str, int], Channels]:
        """What goes, per tensor and dimension.

        Args:
            kept: For every group to cut, by name, the channels that stay, at least one.

        Raises:
            ValueError: If there is no such group or channel, a frozen channel is to be removed, or nothing is kept.
        """
        removed: dict[tuple[str, int], list[Channels]] = {}
        names = {group.name for group in self.groups}
        for name, wanted in kept.items():
            if name not in names:
                raise ValueError(f"there is no group {name}; there are {', '.join(sorted(names)[:5])}, …")
            group = self[name]
            channels = _channels(group, wanted)
            gone = np.setdiff1d(np.arange(group.size), channels)
            _check_request(group, channels, gone)
            for member in group.members:
                removed.setdefault((member.tensor, member.dim), []).extend(member.indices[channel] for channel in gone)
        return {key: np.unique(np.concatenate(parts)) for key, parts in removed.items() if parts}

    def removed_atoms(self, kept: Mapping[str, Channels]) -> dict[Kind, Channels]:
        """What goes, as atoms of either kind."""
        removed: dict[Kind, list[Channels]] = {"channels": [], "heads": []}
        for name, channels in kept.items():
            group = self[name]
            removed[group.kind].append(group.atoms[np.setdiff1d(np.arange(group.size), channels)])
        return {kind: np.concatenate([*parts, np.zeros(0, dtype=np.int64)]) for kind, parts in removed.items()}


def _channels(group: ChannelGroup, wanted: object) -> Channels:
    channels = np.asarray(wanted)
    if channels.ndim != 1 or (channels.size and channels.dtype.kind not in "iu"):
        raise ValueError(f"the channels of group {group.name} to keep are not a list of whole numbers")
    return channels.astype(np.int64)


def _check_request(group: ChannelGroup, channels: Channels, gone: Channels) -> None:
    if len(channels) == 0 or channels.min() < 0 or channels.max() >= group.size:
        raise ValueError(f"group {group.name} has channels 0..{group.size - 1}, and at least one stays")
    if group.frozen and len(gone):
        raise ValueError(f"group {group.name} is frozen")
