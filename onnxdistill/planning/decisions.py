"""What a plan decided on every choice, and another option beside it: what that would have cost, and damaged."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from onnxdistill.planning.network import GOES, STAYS, Choices, Damages, form_of
from onnxdistill.planning.problem import Plan, Term

Kind = Literal["width", "block", "pair"]

THERE, GONE = 1, 0
"""States of a block."""


@dataclass(frozen=True)
class Decision:
    """What became of a choice.

    Attributes:
        kind: A group's `width` in channels; a `block` that is there (1) or has gone (0); the rank of a low-rank `pair`
            in the place of a layer, or 0 if the layer stays.
        name: Of the group, the block, or the layer.
        before: What it was.
        after: What it is.
        damage: By how much the outputs were to move.
        other: The other option: what it was before, if it has changed; else what would save most time for its damage.
            None if nothing else would have been faster.
        other_ms: By how much longer a call would take with the other option; shorter, if negative.
        other_damage: By how much more the outputs would move with the other option; less, if negative. None if
            the network would give nothing that is a number.
    """

    kind: Kind
    name: str
    before: int
    after: int
    damage: float
    other: int | None = None
    other_ms: float | None = None
    other_damage: float | None = None


def decisions_of(choices: Choices, damages: Damages, terms: Sequence[Term], plan: Plan) -> list[Decision]:
    """What a plan decided on every choice that matters in it; those within blocks that have gone do not.

    Args:
        choices: Of the network.
        damages: Of the options.
        terms: What the plan is the sum of.
        plan: Of all choices.
    """
    balance = _Balance(terms, plan)
    return [*_widths(choices, balance, plan), *_blocks(choices, balance, plan), *_pairs(damages, balance, plan)]


@dataclass(frozen=True)
class _Difference:
    """Of a plan in which one thing is another, to the plan."""

    latency_ms: float
    damage: float


class _Balance:
    """What a plan's terms would be if one thing were another."""

    def __init__(self, terms: Sequence[Term], plan: Plan) -> None:
        self._plan = plan
        self._by_name = {term.name: term for term in terms}
        self._of_choice: dict[str, list[Term]] = defaultdict(list)
        for term in terms:
            for choice in term.choices:
                self._of_choice[choice].append(term)

    def with_options(self, options: Mapping[str, int]) -> _Difference:
        """With other options of some choices."""
        terms = {term.name: term for choice in options for term in self._of_choice[choice]}
        places = [(term, term.place(self._plan, options)) for term in terms.values()]
        return self._difference(places)

    def with_form(self, name: str, form: int) -> _Difference:
        """With a term in another form."""
        term = self._by_name[name]
        return self._difference([(term, (*term.place(self._plan)[:-1], form))])

    def _difference(self, places: Iterable[tuple[Term, tuple[int, ...]]]) -> _Difference:
        latency_ms = damage = 0.0
        for term, then in places:
            now = term.place(self._plan)
            latency_ms += float(term.latency_ms[then] - term.latency_ms[now])
            damage += float(term.damage[then] - term.damage[now])
        return _Difference(latency_ms, damage)

    def together_with(self, choice: str) -> set[str]:
        """The choices that it shares terms with, itself included."""
        return {other for term in self._of_choice[choice] for other in term.choices}


def _widths(choices: Choices, balance: _Balance, plan: Plan) -> Iterator[Decision]:
    for name, widths in choices.widths.items():
        chosen, whole = plan.options[name], len(widths) - 1
        others = _other_widths(balance, name, len(widths), chosen)
        if _matters(others):
            damage = 0.0 - others[whole].damage if chosen != whole else 0.0
            yield _decision("width", name, (widths[whole], widths[chosen]), damage, others, dict(enumerate(widths)))


def _blocks(choices: Choices, balance: _Balance, plan: Plan) -> Iterator[Decision]:
    states = {STAYS: THERE, GOES: GONE}
    for block in choices.blocks:
        chosen = plan.options[block]
        if chosen == STAYS:
            others = {GOES: balance.with_options({block: GOES})}
            yield _decision("block", block, (THERE, THERE), 0.0, others, states)
            continue
        # It would stay with all the widths that are nobody's concern without it.
        near = balance.together_with(block) & choices.widths.keys()
        sizes = {name: len(choices.widths[name]) for name in near}
        inside = [name for name in near if not _matters(_other_widths(balance, name, sizes[name], plan.options[name]))]
        whole = balance.with_options({block: STAYS, **{name: sizes[name] - 1 for name in inside}})
        yield _decision("block", block, (THERE, GONE), 0.0 - whole.damage, {STAYS: whole}, states)


def _pairs(damages: Damages, balance: _Balance, plan: Plan) -> Iterator[Decision]:
    for weight, pairs in damages.pairs.items():
        term = form_of(weight)
        chosen = plan.forms.get(term, 0)
        others = {form: balance.with_form(term, form) for form in range(len(pairs) + 1) if form != chosen}
        if _matters(others):
            ranks = {0: 0, **{form: pair.rank for form, pair in enumerate(pairs, start=1)}}
            damage = 0.0 - others[0].damage if chosen else 0.0
            yield _decision("pair", weight.removesuffix(".weight"), (0, ranks[chosen]), damage, others, ranks)


def _other_widths(balance: _Balance, name: str, size: int, chosen: int) -> dict[int, _Difference]:
    return {option: balance.with_options({name: option}) for option in range(size) if option != chosen}


def _matters(others: Mapping[int, _Difference]) -> bool:
    return any(one.latency_ms or one.damage for one in others.values())


def _decision(
    kind: Kind,
    name: str,
    change: tuple[int, int],
    damage: float,
    others: Mapping[int, _Difference],
    values: Mapping[int, int],
) -> Decision:
    """With the option that it had before, if it has changed, or else with the best of those that are faster."""
    before, after = change
    if before != after:
        other = next(option for option in others if values[option] == before)
    else:
        faster = [option for option, one in others.items() if one.latency_ms < 0]
        if not faster:
            return Decision(kind, name, before, after, damage)
        other = min(faster, key=lambda option: others[option].damage / -others[option].latency_ms)
    then = others[other]
    growth = then.damage if math.isfinite(then.damage) else None
    return Decision(kind, name, before, after, damage, values[other], then.latency_ms, growth)
