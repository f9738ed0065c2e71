"""What a plan decided and what else it could have: by hand, and that no other option would have been better."""

from __future__ import annotations

import math

import numpy as np
import pytest

from onnxdistill.planning.decisions import Decision, decisions_of
from onnxdistill.planning.network import Choices, Damages, Pair
from onnxdistill.planning.problem import Plan, Term, solve

CHOICES = Choices({"a": [8, 16]}, ["block"])
DAMAGES = Damages({}, {}, {"w.weight": [Pair(True, 8, 0.1)]})


def term(name: str, choices: tuple[str, ...], latency_ms: list[object], damage: list[object]) -> Term:
    return Term(name, choices, np.array(latency_ms, float), np.array(damage, float))


TERMS = [
    # By the width of `a`, 8 or 16, and by whether the block that it lies in stays or goes.
    term("latency of a", ("a", "block"), [[[1], [0]], [[2], [0]]], [[[0], [0]], [[0], [0]]]),
    term("damage of a", ("a", "block"), [[[0], [0]], [[0], [0]]], [[[0.5], [0]], [[0], [0]]]),
    term("damage without block", ("block",), [[0], [0]], [[0], [0.3]]),
    term("form of w.weight", (), [1, 0.4], [0, 0.1]),  # type: ignore[list-item]
]


def plan(width: int, block: int, form: int) -> Plan:
    return Plan(0.0, 0.0, {"a": width, "block": block}, {"form of w.weight": form})


def close(decision: Decision) -> object:
    """Comparable, where differences of floating-point numbers are in it."""
    values = (decision.damage, decision.other_ms, decision.other_damage)
    return pytest.approx([math.nan if value is None else value for value in values], nan_ok=True)


def check(found: list[Decision], expected: list[Decision]) -> None:
    assert [(one.kind, one.name, one.before, one.after, one.other) for one in found] == [
        (one.kind, one.name, one.before, one.after, one.other) for one in expected
    ]
    for one, other in zip(found, expected, strict=True):
        assert close(other) == [
            math.nan if value is None else value for value in (one.damage, one.other_ms, one.other_damage)
        ]


def test_what_has_changed_is_compared_with_what_it_was() -> None:
    check(
        decisions_of(CHOICES, DAMAGES, TERMS, plan(0, 0, 1)),
        [
            Decision("width", "a", 16, 8, 0.5, 16, 1.0, -0.5),
            Decision("block", "block", 1, 1, 0.0, 0, -1.0, -0.2),
            Decision("pair", "w", 0, 8, 0.1, 0, 0.6, -0.1),
        ],
    )


@pytest.mark.parametrize("width", [0, 1])
def test_the_widths_of_a_block_that_has_gone_do_not_matter(width: int) -> None:
    check(
        decisions_of(CHOICES, DAMAGES, TERMS, plan(width, 1, 0)),
        [
            # It would have stayed with all of its channels.
            Decision("block", "block", 1, 0, 0.3, 1, 2.0, -0.3),
            Decision("pair", "w", 0, 0, 0.0, 8, -0.6, 0.1),
        ],
    )


def test_what_has_stayed_is_compared_with_what_saves_most_for_its_damage() -> None:
    choices = Choices({"a": [4, 8, 16]}, [])
    terms = [term("a", ("a",), [[1], [1.5], [2]], [[0.6], [0.2], [0]])]
    whole = Plan(2.0, 0.0, {"a": 2}, {})
    check(decisions_of(choices, Damages({}, {}), terms, whole), [Decision("width", "a", 16, 16, 0.0, 8, -0.5, 0.2)])
    slower = [term("a", ("a",), [[2.1], [2], [2]], [[0.6], [0.2], [0]])]
    check(decisions_of(choices, Damages({}, {}), slower, whole), [Decision("width", "a", 16, 16, 0.0)])
    endless = [term("a", ("a",), [[1], [2], [2]], [[math.inf], [math.inf], [0]])]
    check(decisions_of(choices, Damages({}, {}), endless, whole), [Decision("width", "a", 16, 16, 0.0, 4, -1.0, None)])


def test_no_single_other_option_would_have_been_better() -> None:
    """Of random problems, in every plan that no other one beats; and the damages add up to the plan's."""
    generator = np.random.default_rng(0)
    for _ in range(20):
        widths = {name: [8, 16, 24] for name in "abc"}
        choices = Choices(widths, ["block"])
        terms = []
        for names in (("a", "b"), ("b", "c"), ("c", "block")):
            shape = tuple(choices.sizes[name] for name in names)
            terms.append(Term(f"latency of {names}", names, generator.random((*shape, 1)), np.zeros((*shape, 1))))
        for name in widths:
            damage = np.array([[generator.random() + 0.5], [generator.random() / 2], [0]])
            terms.append(Term(f"damage of {name}", (name,), np.zeros((3, 1)), damage))
        terms.append(Term("damage without", ("block",), np.zeros((2, 1)), np.array([[0], [generator.random()]])))
        plans = solve(choices.sizes, terms)
        for index in range(len(plans)):
            found = decisions_of(choices, Damages({}, {}), terms, plans[index])
            for one in found:
                if one.other_ms is not None and one.other_damage is not None and one.other_ms < -1e-9:
                    assert one.other_damage > -1e-9
            changed = [one for one in found if one.before != one.after]
            assert sum(one.damage for one in changed) == pytest.approx(plans[index].damage)
            assert [one.after for one in found if one.kind == "width"] == list(choices.kept(plans[index]).values())
