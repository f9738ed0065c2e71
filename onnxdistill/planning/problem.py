"""Choices that share costs, and the plans that no other one beats."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import product
from math import prod

import numpy as np
import numpy.typing as npt

from onnxdistill.planning.fronts import Front, added, alternatives, united

Floats = npt.NDArray[np.float64]

MOST_CASES = 10_000
"""Combinations of choices that are looked at together; a problem whose choices are more entangled is refused."""


class EntangledError(ValueError):
    """Too many choices depend on each other."""


@dataclass(frozen=True)
class Term:
    """A cost that depends on some choices, in one of some forms.

    Attributes:
        name: Tells it from others.
        choices: Names of the choices that it depends on.
        latency_ms: For every combination of their options and every form, `[options, ..., forms]`.
        damage: Likewise; infinite where something is not possible.
    """

    name: str
    choices: tuple[str, ...]
    latency_ms: Floats
    damage: Floats

    def __post_init__(self) -> None:
        if self.latency_ms.shape != self.damage.shape or self.latency_ms.ndim != len(self.choices) + 1:
            raise ValueError(f"{self.name}: {self.latency_ms.shape} and {self.damage.shape} for {self.choices}")

    def place(self, plan: Plan, options: Mapping[str, int] | None = None) -> tuple[int, ...]:
        """Where the costs of a plan are.

        Args:
            plan: Of all choices.
            options: Other ones of some choices.
        """
        known = {**plan.options, **(options or {})}
        return (*(known[choice] for choice in self.choices), plan.forms.get(self.name, 0))


@dataclass(frozen=True)
class Plan:
    """An option of every choice, and a form of every term.

    Attributes:
        latency_ms: All terms together.
        damage: All terms together.
        options: Place of the option, by choice.
        forms: Place of the form, by term.
    """

    latency_ms: float
    damage: float
    options: Mapping[str, int]
    forms: Mapping[str, int]


@dataclass(frozen=True)
class Plans:
    """All plans of a problem that no other one beats."""

    front: Front

    def __len__(self) -> int:
        return len(self.front)

    def __getitem__(self, index: int) -> Plan:
        picks = self.front.picks(index)
        options = {pick.of.name: pick.option for pick in picks if isinstance(pick.of, _Chosen)}
        forms = {pick.of.name: pick.option for pick in picks if isinstance(pick.of, _Formed)}
        return Plan(float(self.front.latency_ms[index]), float(self.front.damage[index]), options, forms)

    def within(self, budget_ms: float) -> Plan | None:
        """The plan of least damage that takes no longer; None if all do."""
        index = int(np.searchsorted(self.front.latency_ms, budget_ms, side="right")) - 1
        return None if index < 0 else self[index]


@dataclass(frozen=True)
class _Chosen:
    name: str


@dataclass(frozen=True)
class _Formed:
    name: str


@dataclass(frozen=True)
class _Table:
    """Fronts for every combination of options of some choices."""

    choices: tuple[str, ...]
    fronts: Mapping[tuple[int, ...], Front]

    def at(self, options: Mapping[str, int]) -> Front:
        return self.fronts[tuple(options[choice] for choice in self.choices)]


def solve(sizes: Mapping[str, int], terms: Iterable[Term]) -> Plans:
    """Finds all plans that no other one beats in both latency and damage.

    Choices are eliminated one by one (Bertele and Brioschi 1972): each is decided for every combination of the choices
    that it shares terms with, as a front of latency and damage instead of one number.

    Args:
        sizes: How many options each choice has.
        terms: What is added up.

    Returns:
        Exact as long as no front has more than `MOST_POINTS`; else as good as steps of latency of that many.

    Raises:
        EntangledError: If the choices depend on each other in more ways than can be looked at.
    """
    terms = list(terms)
    order = _order([term.choices for term in terms], sizes)
    tables = [_table(term) for term in terms]
    for choice in order:
        mine = [table for table in tables if choice in table.choices]
        tables = [table for table in tables if choice not in table.choices]
        tables.append(_eliminated(choice, sizes[choice], mine, sizes))
    return Plans(reduce(added, (table.at({}) for table in tables), _nothing()))


def check_solvable(sizes: Mapping[str, int], scopes: Iterable[Sequence[str]]) -> None:
    """Makes sure that a problem can be solved, before what its terms come to is known.

    Args:
        sizes: How many options each choice has.
        scopes: The choices of every term.

    Raises:
        EntangledError: As `solve` would.
    """
    _order([tuple(scope) for scope in scopes], sizes)


def _nothing() -> Front:
    return alternatives(None, np.zeros(1), np.zeros(1))


def _table(term: Term) -> _Table:
    fronts = {
        options: alternatives(_Formed(term.name), term.latency_ms[options], term.damage[options])
        for options in product(*map(range, term.latency_ms.shape[:-1]))
    }
    return _Table(term.choices, fronts)


def _order(scopes: Sequence[Sequence[str]], sizes: Mapping[str, int]) -> list[str]:
    """In which choices are eliminated: always the one that is decided in the fewest cases.

    Raises:
        EntangledError: If one would have to be decided in too many.
    """
    left, open_ = set(sizes), [tuple(scope) for scope in scopes]
    order = []
    while left:
        cases = {choice: prod(sizes[other] for other in (choice, *_around(choice, open_))) for choice in left}
        choice = min(left, key=lambda name: (cases[name], name))
        if cases[choice] > MOST_CASES:
            raise EntangledError(f"{choice} depends on too many other choices")
        joined = tuple(_around(choice, open_))
        open_ = [*(scope for scope in open_ if choice not in scope), joined]
        left.remove(choice)
        order.append(choice)
    return order


def _around(choice: str, scopes: Iterable[Sequence[str]]) -> list[str]:
    """The choices that it shares a scope with, in the order in which they come."""
    others = (other for scope in scopes if choice in scope for other in scope if other != choice)
    return list(dict.fromkeys(others))


def _eliminated(choice: str, size: int, tables: Sequence[_Table], sizes: Mapping[str, int]) -> _Table:
    around = _around(choice, [table.choices for table in tables])
    sums = _Sums(tables)
    fronts = {}
    for options in product(*(range(sizes[other]) for other in around)):
        given = dict(zip(around, options, strict=True))
        parts = [sums.at({**given, choice: option}) for option in range(size)]
        fronts[options] = united(_Chosen(choice), parts)
    return _Table(tuple(around), fronts)


class _Sums:
    """The sums of some tables; what they share over several combinations of options is added up once.

    Args:
        tables: Of which those that depend on few choices are added first.
    """

    def __init__(self, tables: Sequence[_Table]) -> None:
        self._tables = sorted(tables, key=lambda table: len(table.choices))
        self._scopes = [
            tuple(dict.fromkeys(choice for table in self._tables[: count + 1] for choice in table.choices))
            for count in range(len(tables))
        ]
        self._known: dict[tuple[int, tuple[int, ...]], Front] = {}

    def at(self, options: Mapping[str, int]) -> Front:
        return self._first(len(self._tables), options)

    def _first(self, count: int, options: Mapping[str, int]) -> Front:
        """The sum of so many tables."""
        if not count:
            return _nothing()
        key = count, tuple(options[choice] for choice in self._scopes[count - 1])
        if key not in self._known:
            self._known[key] = added(self._first(count - 1, options), self._tables[count - 1].at(options))
        return self._known[key]
