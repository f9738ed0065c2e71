"""Atoms: the channels of a network as index labels, and which of them are one.

A label is an array with as many dimensions as the value that it belongs to; a dimension has the value's size where
the channels run along it, and size 1 elsewhere. Its entries are atoms. `[1, C, 1, 1]` is what a convolution gives;
after a reshape to heads the same atoms stand in `[1, heads, 1, C / heads]`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Label = NDArray[np.int64]

CONSTANT = -1
"""An entry that is no channel, such as what a padding adds."""


@dataclass(frozen=True)
class FrozenAtoms:
    """Atoms that have to stay, and the operator that fixes them."""

    operator: str
    atoms: Label


@dataclass
class Atoms:
    """Atoms that can become one (a union-find over arrays), and what each is part of.

    Attributes:
        bindings: Per `(tensor, dim)`, the atom of every index.
        values: Per tensor that is used as a value instead of as a layer's weight, the atom of every element.
        frozen: What has to stay.
        regular: Labels of which the same places have to go in every row, since the code reshapes them to rows.
        fixed: Labels and axes of them along which the number is fixed by another tensor, and the operator.
    """

    bindings: dict[tuple[str, int], Label] = field(default_factory=dict)
    values: dict[str, Label] = field(default_factory=dict)
    frozen: list[FrozenAtoms] = field(default_factory=list)
    regular: list[Label] = field(default_factory=list)
    fixed: list[tuple[Label, int, str]] = field(default_factory=list)
    _parents: Label = field(default_factory=lambda: np.arange(1024, dtype=np.int64))
    _count: int = 0

    def new(self, *shape: int) -> Label:
        """Makes atoms, one an entry of an array of that shape."""
        first, self._count = self._count, self._count + int(np.prod(shape))
        if self._count > len(self._parents):
            grown = np.arange(2 * self._count, dtype=np.int64)
            grown[: len(self._parents)] = self._parents
            self._parents = grown
        return np.arange(first, self._count, dtype=np.int64).reshape(shape)

    def roots(self, label: Label) -> Label:
        """For every entry the atom that stands for all that became one with it; constants stay."""
        current = np.where(label == CONSTANT, 0, label)
        while True:
            above = self._parents[current]
            if np.array_equal(above, current):
                break
            current = self._parents[above]
        known = label != CONSTANT
        self._parents[label[known]] = current[known]  # shorter ways for the next time
        return np.where(known, current, CONSTANT)

    def unite(self, one: Label, other: Label, operator: str) -> None:
        """Makes atoms at equal places one, with broadcasting; beside a constant, an atom is frozen."""
        one, other = np.broadcast_arrays(one, other)
        both = (one != CONSTANT) & (other != CONSTANT)
        alone = (one != CONSTANT) ^ (other != CONSTANT)
        if alone.any():
            self.freeze(np.maximum(one, other)[alone], operator)
        a, b = one[both], other[both]
        while len(a):
            a, b = self.roots(a), self.roots(b)
            differ = a != b
            a, b = a[differ], b[differ]
            # Of several wishes for one atom the last holds; the next round sees to the others.
            self._parents[np.maximum(a, b)] = np.minimum(a, b)

    def tie(self, label: Label, axis: int, operator: str) -> None:
        """Makes the atoms along an axis one."""
        if label.shape[axis] > 1:
            self.unite(label, label.take([0], axis), operator)

    def freeze(self, label: Label, operator: str) -> None:
        """Marks the atoms of a label as not removable."""
        atoms = label[label != CONSTANT]
        if len(atoms):
            self.frozen.append(FrozenAtoms(operator, np.unique(atoms)))

    def bind(self, tensor: str, dim: int, label: Label) -> None:
        """Notes that index i of a tensor's dimension belongs to the atom `label[i]`.

        A parameter that is used twice makes one of what it meets in either place.
        """
        known = self.bindings.setdefault((tensor, dim), label)
        if known is not label:
            self.unite(known, label, f"shared {tensor}")
        elif tensor in self.values:
            self._join(tensor, dim)

    def as_value(self, tensor: str, shape: tuple[int, ...]) -> Label:
        """The atoms of a tensor that is used as a value, an element each; one with those of a layer that has it."""
        if tensor not in self.values:
            self.values[tensor] = self.new(*shape)
            for name, dim in list(self.bindings):
                if name == tensor:
                    self._join(tensor, dim)
        return self.values[tensor]

    def _join(self, tensor: str, dim: int) -> None:
        value = self.values[tensor]
        along = self.bindings[tensor, dim].reshape([-1 if axis == dim else 1 for axis in range(value.ndim)])
        self.unite(value, along, f"shared {tensor}")

    def varying(self, label: Label) -> list[int]:
        """The axes along which atoms differ."""
        roots = self.roots(label)
        return [axis for axis in range(roots.ndim) if (roots != roots.take([0], axis)).any()]

    def settle(self) -> None:
        """Applies what `regular` and `fixed` ask for; of a regular label only the last axis that varies stays free."""
        changed = True
        while changed:
            changed = False
            for label in self.regular:
                *others, _ = self.varying(label) or [0]
                for axis in others:
                    self.tie(label, axis, "reshape")
                    changed = True
        for label, axis, operator in self.fixed:
            if axis in self.varying(label):
                self.freeze(label, operator)


def compressed(label: Label) -> Label:
    """The label with size 1 wherever it is the same all along."""
    for axis in range(label.ndim):
        first = label.take([0], axis)
        if label.shape[axis] > 1 and (label == first).all():
            label = first
    return label


def at(label: Label, axis: int, index: int) -> Label:
    """The label at one index of an axis, without that axis."""
    return np.asarray(label.take(index, axis))
