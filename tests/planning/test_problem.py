"""Plans against brute force, and what has to hold of any of them."""

from __future__ import annotations

import itertools
from math import inf

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxdistill.planning import fronts
from onnxdistill.planning.problem import EntangledError, Plan, Term, solve

Sizes = dict[str, int]


def random_problem(seed: int) -> tuple[Sizes, list[Term]]:
    """Choices in any relation: chains, shared widths, cycles; terms with forms, some of them impossible."""
    random = np.random.default_rng(seed)
    sizes = {f"g{index}": int(random.integers(1, 4)) for index in range(random.integers(1, 6))}
    terms = []
    for index in range(random.integers(1, 7)):
        count = int(random.integers(1, min(3, len(sizes)) + 1))
        choices = tuple(random.choice(list(sizes), count, replace=False))
        shape = (*(sizes[choice] for choice in choices), int(random.integers(1, 4)))
        # Whole numbers, so that ties occur and sums are exact.
        latency, damage = random.integers(0, 9, shape).astype(float), random.integers(0, 9, shape).astype(float)
        damage[random.random(shape) < 0.1] = inf
        terms.append(Term(f"t{index}", choices, latency, damage))
    return sizes, terms


def cost(terms: list[Term], options: dict[str, int], forms: dict[str, int]) -> tuple[float, float]:
    places = [(*(options[choice] for choice in term.choices), forms[term.name]) for term in terms]
    return (
        sum(float(term.latency_ms[place]) for term, place in zip(terms, places, strict=True)),
        sum(float(term.damage[place]) for term, place in zip(terms, places, strict=True)),
    )


def by_force(sizes: Sizes, terms: list[Term]) -> list[tuple[float, float]]:
    """All plans that no other one beats, from trying everything."""
    points = set()
    for chosen in itertools.product(*map(range, sizes.values())):
        options = dict(zip(sizes, chosen, strict=True))
        # Forms of different terms have nothing to do with each other, but are tried together all the same.
        for formed in itertools.product(*(range(term.latency_ms.shape[-1]) for term in terms)):
            forms = dict(zip((term.name for term in terms), formed, strict=True))
            points.add(cost(terms, options, forms))
    front: list[tuple[float, float]] = []
    for latency, damage in sorted(point for point in points if point[1] < inf):
        if not front or damage < front[-1][1]:
            front.append((latency, damage))
    return front


@pytest.mark.parametrize("seed", range(200))
def test_the_same_as_by_force(seed: int) -> None:
    sizes, terms = random_problem(seed)
    plans = solve(sizes, terms)
    found = [(plan.latency_ms, plan.damage) for plan in (plans[index] for index in range(len(plans)))]
    assert found == by_force(sizes, terms)


@pytest.mark.parametrize("seed", range(200, 230))
def test_a_plan_costs_what_it_says(seed: int) -> None:
    sizes, terms = random_problem(seed)
    plans = solve(sizes, terms)
    for index in range(len(plans)):
        plan = plans[index]
        assert plan.options.keys() == sizes.keys()
        assert plan.forms.keys() == {term.name for term in terms}
        assert cost(terms, dict(plan.options), dict(plan.forms)) == (plan.latency_ms, plan.damage)


def chain(seed: int, length: int, width: int) -> tuple[Sizes, list[Term]]:
    """Layers one after the other; between them widths, each with a damage that falls."""
    random = np.random.default_rng(seed)
    sizes = {f"w{index}": width for index in range(length)}
    widths = np.arange(1, width + 1)
    terms = []
    for index in range(length):
        damage = random.random() * (width / widths - 1)
        terms.append(Term(f"d{index}", (f"w{index}",), np.zeros((width, 1)), damage[:, None]))
        if index:
            time_ms = random.random() * (0.1 + np.outer(widths, widths))
            terms.append(
                Term(f"l{index}", (f"w{index - 1}", f"w{index}"), time_ms[..., None], np.zeros((width, width, 1)))
            )
    return sizes, terms


@given(seed=st.integers(0, 10_000), budgets=st.lists(st.floats(0, 3000), min_size=2, max_size=6))
@settings(max_examples=40, deadline=None)
def test_damage_never_rises_with_the_budget_and_the_budget_is_kept(seed: int, budgets: list[float]) -> None:
    plans = solve(*chain(seed, 6, 8))
    found: list[Plan | None] = [plans.within(budget) for budget in sorted(budgets)]
    for budget, plan in zip(sorted(budgets), found, strict=True):
        assert plan is None or plan.latency_ms <= budget
    damages = [inf if plan is None else plan.damage for plan in found]
    assert damages == sorted(damages, reverse=True)


def test_a_long_chain_is_thinned_out_and_hardly_worse(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, terms = chain(1, 12, 6)
    monkeypatch.setattr(fronts, "MOST_POINTS", 20_000)
    exact = solve(sizes, terms)
    monkeypatch.setattr(fronts, "MOST_POINTS", 256)
    thinned = solve(sizes, terms)
    assert len(thinned) <= 256 < len(exact)
    for share in (0.2, 0.4, 0.6, 0.8):
        budget = float(share * exact.front.latency_ms[-1] + (1 - share) * exact.front.latency_ms[0])
        best, found = exact.within(budget), thinned.within(budget)
        assert best is not None
        assert found is not None
        assert best.damage <= found.damage <= 1.05 * best.damage + 0.05


def test_no_plan_and_no_choice() -> None:
    impossible = Term("t", ("a",), np.zeros((2, 1)), np.full((2, 1), inf))
    assert len(solve({"a": 2}, [impossible])) == 0
    assert solve({"a": 2}, [impossible]).within(1e9) is None
    fixed = Term("t", (), np.array([3.0, 1.0]), np.array([0.0, 5.0]))
    plans = solve({}, [fixed])
    assert [(plan.latency_ms, plan.forms["t"]) for plan in (plans[0], plans[1])] == [(1.0, 1), (3.0, 0)]


def test_too_many_choices_at_once_are_refused() -> None:
    sizes = {f"g{index}": 10 for index in range(7)}
    everything = [
        Term(f"{one}{other}", (one, other), np.zeros((10, 10, 1)), np.zeros((10, 10, 1)))
        for one, other in itertools.combinations(sizes, 2)
    ]
    with pytest.raises(EntangledError):
        solve(sizes, everything)


def test_terms_of_the_wrong_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="t: "):
        Term("t", ("a", "b"), np.zeros((2, 1)), np.zeros((2, 1)))
