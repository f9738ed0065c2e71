"""Pareto fronts of latency and damage: what is worth considering among alternatives, added up and united."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]

MOST_POINTS = 512
"""A front that has more is thinned out; fronts of small problems stay exact."""


class Origin(Protocol):
    """What a front was made of."""

    def trace(self, index: int) -> Iterator[tuple[Front, int] | Pick]:
        """What a point of the front comes from: points of other fronts, and picks."""
        ...


@dataclass(frozen=True)
class Pick:
    """One of some alternatives.

    Attributes:
        of: Tells who has the alternatives.
        option: Place of the one that was taken.
    """

    of: object
    option: int


@dataclass(frozen=True)
class Front:
    """Points of which none is better than another in both ways.

    Attributes:
        latency_ms: Rising.
        damage: Falling.
        origin: What it was made of.
    """

    latency_ms: Floats
    damage: Floats
    origin: Origin = field(repr=False)

    def __len__(self) -> int:
        return len(self.latency_ms)

    def picks(self, index: int) -> list[Pick]:
        """All that was picked for a point."""
        found: list[Pick] = []
        open_: list[tuple[Front, int]] = [(self, index)]
        while open_:
            front, place = open_.pop()
            for part in front.origin.trace(place):
                if isinstance(part, Pick):
                    found.append(part)
                else:
                    open_.append(part)
        return found


@dataclass(frozen=True)
class _Alternatives:
    of: object
    options: Indices

    def trace(self, index: int) -> Iterator[Pick]:
        yield Pick(self.of, int(self.options[index]))


@dataclass(frozen=True)
class _Sum:
    parts: tuple[Front, Front]
    places: tuple[Indices, Indices]

    def trace(self, index: int) -> Iterator[tuple[Front, int]]:
        for part, places in zip(self.parts, self.places, strict=True):
            yield part, int(places[index])


@dataclass(frozen=True)
class _Union:
    of: object
    parts: Sequence[Front]
    options: Indices
    places: Indices

    def trace(self, index: int) -> Iterator[tuple[Front, int] | Pick]:
        option = int(self.options[index])
        yield Pick(self.of, option)
        yield self.parts[option], int(self.places[index])


def alternatives(of: object, latency_ms: Floats, damage: Floats) -> Front:
    """The front of some alternatives; those of infinite damage are none.

    Args:
        of: Who has them.
        latency_ms: Of each, `[alternatives]`.
        damage: Of each.
    """
    kept = _worthwhile(latency_ms, damage)
    return Front(latency_ms[kept], damage[kept], _Alternatives(of, kept))


def added(one: Front, other: Front) -> Front:
    """The front of all sums of a point of each."""
    latency_ms = (one.latency_ms[:, None] + other.latency_ms).ravel()
    damage = (one.damage[:, None] + other.damage).ravel()
    kept = _worthwhile(latency_ms, damage)
    places = np.unravel_index(kept, (len(one), len(other)))
    return Front(latency_ms[kept], damage[kept], _Sum((one, other), (places[0], places[1])))


def united(of: object, parts: Sequence[Front]) -> Front:
    """The front of all points of some fronts, each of which is an option.

    Args:
        of: Who has the options.
        parts: Their fronts, which may be empty.
    """
    latency_ms = np.concatenate([part.latency_ms for part in parts])
    damage = np.concatenate([part.damage for part in parts])
    options = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    places = np.concatenate([np.arange(len(part)) for part in parts])
    kept = _worthwhile(latency_ms, damage)
    return Front(latency_ms[kept], damage[kept], _Union(of, parts, options[kept], places[kept]))


def _worthwhile(latency_ms: Floats, damage: Floats) -> Indices:
    """Places of the points that no other one beats, by latency; at most `MOST_POINTS`, both ends among them."""
    order = np.lexsort((damage, latency_ms))
    order = order[np.isfinite(damage[order])]
    if not len(order):
        return order
    least = np.minimum.accumulate(damage[order])
    better = np.concatenate([[True], least[1:] < least[:-1]])
    kept: Indices = order[better]
    if len(kept) > MOST_POINTS:
        kept = kept[_thinned(latency_ms[kept])]
    return kept


def _thinned(latency_ms: Floats) -> Indices:
    """Of rising latencies, the first of each of equal steps, and the ends."""
    steps = (latency_ms - latency_ms[0]) / (latency_ms[-1] - latency_ms[0]) * (MOST_POINTS - 2)
    first = np.concatenate([[True], np.diff(np.floor(steps)) > 0])
    first[-1] = True
    return np.flatnonzero(first)
