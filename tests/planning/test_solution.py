"""Plans are priced with the weights that they leave."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from onnxdistill.device.costs.coldness import CacheLoad
from onnxdistill.planning import solution
from onnxdistill.planning.problem import Plans, Term, solve
from onnxdistill.planning.solution import Solution, best_solution
from tests.planning.test_network import Case, case_of


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Layers that take three times as long in the network as alone, most of that since all weights push others out."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(),
        nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 8, 1),
    )  # fmt: skip
    path = tmp_path_factory.mktemp("solution") / "n.onnx"
    case = case_of(network, torch.randn(2, 3, 8, 8), path, correction=3.0)
    whole = solve(case.choices.sizes, case.costing.terms(case.damages))
    return replace(case, costs=replace(case.costs, latency_ms=float(whole.front.latency_ms[-1])))


@pytest.fixture
def solved(monkeypatch: pytest.MonkeyPatch) -> list[Plans]:
    """All plans of every time that the problem was solved."""
    times: list[Plans] = []

    def recorded(sizes: Mapping[str, int], terms: Sequence[Term]) -> Plans:
        times.append(solve(sizes, terms))
        return times[-1]

    monkeypatch.setattr(solution, "solve", recorded)
    return times


def best(case: Case, budget_ms: float) -> Solution:
    found = best_solution(case.choices, case.costing, case.damages, budget_ms)
    assert found is not None
    return found


def its_own(case: Case, found: Solution) -> int:
    """Size of the weights that a plan leaves."""
    return sum(layer.weight_bytes for layer in found.costing.layers_of(found.plan, case.damages))


def test_a_network_that_is_fast_enough_is_priced_once(chain: Case, solved: list[Plans]) -> None:
    found = best(chain, 1.01 * chain.costs.latency_ms)
    assert (found.plan.damage, len(solved)) == (0.0, 1)


def test_where_no_weights_push_anything_out_two_prices_do(chain: Case, solved: list[Plans]) -> None:
    warm = replace(chain, costs=replace(chain.costs, corrections=dict.fromkeys(chain.costs.corrections, 1.0)))
    found = best(warm, chain.costs.latency_ms / 6)
    assert len(solved) == 2
    assert found.costing.load == CacheLoad(its_own(warm, found), chain.costs.latency_ms / 6)
    assert found.plan == solved[0].within(chain.costs.latency_ms / 6)


@pytest.mark.parametrize("speedup", [1.5, 2.0, 3.0, 5.0, 8.0, 30.0])
def test_a_plan_is_priced_with_about_what_it_leaves(chain: Case, solved: list[Plans], speedup: float) -> None:
    budget_ms = chain.costs.latency_ms / speedup
    found = best(chain, budget_ms)
    assert found.plan.latency_ms <= budget_ms
    assert len(solved) <= 3
    # Widths come in steps.
    assert its_own(chain, found) == pytest.approx(found.costing.load.weight_bytes, rel=0.2)
    # With all weights still there, much more would have to go.
    dearer = solved[0].within(budget_ms) or solved[0][0]
    assert found.plan.damage < dearer.damage


def test_what_fits_once_fits_in_every_larger_budget(chain: Case, solved: list[Plans]) -> None:
    whole_ms = chain.costs.latency_ms
    solutions = {budget_ms: best(chain, budget_ms) for budget_ms in np.geomspace(whole_ms / 80, whole_ms / 2, 200)}
    fits = [found.plan.latency_ms <= budget_ms for budget_ms, found in solutions.items()]
    assert fits == sorted(fits)
    assert fits[-1]
    assert not fits[0]
    # What fits in none is the fastest one.
    tightest = next(iter(solutions.values()))
    assert set(chain.choices.kept(tightest.plan).values()) == {
        min(chain.choices.widths[name]) for name in chain.choices.widths
    }


def test_a_dearer_price_does_not_take_a_plan_away(
    chain: Case, solved: list[Plans], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a plan with few weights leads to the price of many, nothing fits: the fastest one would be useless."""
    prices = iter([math.log(chain.costs.load.weight_bytes / 50), math.log(chain.costs.load.weight_bytes)])
    monkeypatch.setattr(solution, "_same", lambda _: next(prices))
    budget_ms = 0.9 * float(solve(chain.choices.sizes, chain.costing.terms(chain.damages)).front.latency_ms[0])
    found = best(chain, budget_ms)
    assert [plans.within(budget_ms) is None for plans in solved] == [True, False, True]
    assert found.plan == solved[1].within(budget_ms)


def test_no_plan_at_all(chain: Case) -> None:
    hopeless = replace(chain.damages, widths={name: np.full(65, np.inf) for name in chain.choices.widths})
    assert best_solution(chain.choices, chain.costing, hopeless, 1.0) is None
