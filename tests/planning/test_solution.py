"""Plans are priced at the load that they lead to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from onnxdistill.device.costs.coldness import Coldness
from onnxdistill.planning import solution
from onnxdistill.planning.problem import Plans, Term, solve
from onnxdistill.planning.solution import Solution, _fixed_point, best_solution
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
    """With the load that its plan leads to, by which its layers add up to its latency."""
    found = best_solution(case.choices, case.costing, case.damages, budget_ms)
    assert found is not None
    left = found.costing.layers_of(found.plan, case.damages)
    assert found.costing.load.weight_bytes == sum(layer.weight_bytes for layer in left)
    # All other nodes: 0.5 ms each, and 1.5 for all the channels of the layer before them.
    layers, kept = case.costs.layers, found.costing.layers_of(found.plan, case.damages)
    widths = dict(zip((layer.name for layer in layers), zip(layers, kept, strict=True), strict=True))
    others_ms = 0.0
    for node in case.costs.others:
        (origin,) = case.graph.origins[node.name]
        before, after = widths[origin]
        others_ms += 0.5 + 1.5 * after.outputs / before.outputs
    layers_ms = sum(found.costing.layers_ms(found.plan, case.damages).values())
    assert found.plan.latency_ms == pytest.approx(3.0 + others_ms + layers_ms)
    return found


def test_a_network_that_is_fast_enough_is_solved_once(chain: Case, solved: list[Plans]) -> None:
    found = best(chain, 1.01 * chain.costs.latency_ms)
    assert (found.plan.damage, len(solved)) == (0.0, 1)


def test_where_no_weights_push_anything_out_no_load_matters(chain: Case, solved: list[Plans]) -> None:
    warm = replace(chain, costs=replace(chain.costs, corrections=dict.fromkeys(chain.costs.corrections, 1.0)))
    found = best(warm, chain.costs.latency_ms / 6)
    assert len(solved) <= 2
    assert found.plan == solved[0].within(chain.costs.latency_ms / 6)


@pytest.mark.parametrize("speedup", [1.5, 2.0, 3.0, 5.0, 8.0, 30.0])
def test_a_plan_is_chosen_at_about_what_it_leads_to(chain: Case, solved: list[Plans], speedup: float) -> None:
    budget_ms = chain.costs.latency_ms / speedup
    found = best(chain, budget_ms)
    assert len(solved) <= 3
    # Widths come in steps.
    assert 0.85 * budget_ms < found.plan.latency_ms <= budget_ms
    # With all weights still there, much more would have to go.
    dearer = solved[0].within(budget_ms) or solved[0][0]
    assert found.plan.damage < dearer.damage


def test_what_fits_once_fits_in_every_larger_budget(chain: Case) -> None:
    whole_ms = chain.costs.latency_ms
    solutions = {budget_ms: best(chain, budget_ms) for budget_ms in np.geomspace(whole_ms / 80, whole_ms / 2, 40)}
    fits = [found.plan.latency_ms <= budget_ms for budget_ms, found in solutions.items()]
    assert fits == sorted(fits)
    assert fits[-1]
    assert not fits[0]
    # What fits in none is the fastest one.
    tightest = next(iter(solutions.values()))
    smallest = {name: widths[0] for name, widths in chain.choices.widths.items()}
    assert chain.choices.kept(tightest.plan) == smallest


def test_a_plan_that_was_chosen_at_too_small_a_load_is_none(
    chain: Case, solved: list[Plans], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It seems to be within the budget, and is not at the load that it leads to."""
    budget_ms, whole = chain.costs.latency_ms / 4, math.log(chain.costs.load.weight_bytes)
    loads = iter([whole - 5, whole, whole])
    monkeypatch.setattr(solution, "_fixed_point", lambda _: next(loads))
    found = best(chain, budget_ms)
    first, second, *others = (plans.within(budget_ms) for plans in solved)
    assert first is not None
    assert second is not None
    assert others == [first]
    # Another one of those that were chosen from with it does, and is better than one that was chosen with care.
    assert second.damage < found.plan.damage < first.damage
    assert found.plan.latency_ms <= budget_ms


def test_weights_that_get_cold_with_time_do_so_within_the_budget(chain: Case) -> None:
    """At first nothing fits, at the load of all weights; that says nothing of how long what fits will take."""
    whole_ms = chain.costs.latency_ms
    coldness = Coldness([0, 1], [0.0, 0.0], [0.0, whole_ms / 20, whole_ms / 10], [0.0, 0.0, 1.0], ms_per_byte=1.0)
    cold = replace(chain, profile=replace(chain.profile, coldness=coldness))
    found = best(cold, whole_ms / 20)
    assert found.plan.latency_ms <= whole_ms / 20
    assert found.costing.load.latency_ms == whole_ms / 20
    # What takes longer than that finds its weights cold.
    found = best(cold, whole_ms / 400)
    assert found.plan.latency_ms > whole_ms / 400
    assert found.costing.load.latency_ms > whole_ms / 400


def test_no_plan_at_all(chain: Case) -> None:
    hopeless = replace(chain.damages, widths={name: np.full(65, np.inf) for name in chain.choices.widths})
    assert best_solution(chain.choices, chain.costing, hopeless, 1.0) is None


@pytest.mark.parametrize(
    ("tried", "expected"),
    [
        ([(5.0, 2.0)], 2.0),  # as far as is known, it leads to the same again
        ([(5.0, 2.0), (2.0, 2.0)], 2.0),
        ([(5.0, 1.0), (1.0, 3.0)], 7 / 3),  # 3.5 - x / 2
        ([(5.0, 4.0), (4.0, 3.5)], 3.5),  # it would be 3, which nothing led to yet
        ([(5.0, 4.0), (4.0, 2.5)], 2.5),  # falls faster than it is made smaller
    ],
)
def test_where_what_goes_in_comes_out(tried: list[tuple[float, float]], expected: float) -> None:
    assert _fixed_point(tried) == pytest.approx(expected)
