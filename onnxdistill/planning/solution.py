"""The best plan within a latency, priced with what the network that it leaves will ask of the caches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import exp, isclose, log

from onnxdistill.device.costs.coldness import CacheLoad
from onnxdistill.planning.network import Choices, Costing, Damages
from onnxdistill.planning.problem import Plan, Term, solve

# At most so many times the problem is solved, each time at a load that the plans before suggest. Fewer are enough where
# a plan leaves as many weights as it was chosen at, or takes all that it may, but for such a share.
_ROUNDS, _NEAR = 3, 0.02


@dataclass(frozen=True)
class Solution:
    """A plan, priced at the load that it leads to if it takes all of the budget, or what it takes if that is more.

    Attributes:
        plan: The plan, with its latency at that load.
        terms: What it is the sum of.
        costing: That made them.
    """

    plan: Plan
    terms: Sequence[Term]
    costing: Costing


def best_solution(choices: Choices, costing: Costing, damages: Damages, budget_ms: float) -> Solution | None:
    """A plan of little damage within the budget, or else a fast one; None if there is no plan at all.

    The fewer weights a plan leaves, the less its layers take, and the less a plan has to leave out for the budget. The
    weights that a plan leaves are taken to be a power of those that it is chosen at, as the last two plans tell.

    Args:
        choices: Of the network.
        costing: Of these choices, at the load of the network as it is.
        damages: Of the options.
        budget_ms: What a call may take.
    """
    load, found, tried = replace(costing.load, latency_ms=budget_ms), list[Solution](), list[tuple[float, float]]()
    for _ in range(_ROUNDS):
        plans = solve(choices.sizes, costing.at(load).terms(damages))
        if not len(plans):
            return None
        chosen = _priced(plans.within(budget_ms) or plans[0], costing, damages, budget_ms)
        found.append(chosen)
        # One that is over the budget at its own load may have another beside it that is not.
        over = chosen.plan.latency_ms / budget_ms
        if over > 1 and (less := plans.within(budget_ms / over)):
            found.append(_priced(less, costing, damages, budget_ms))
        left_bytes = chosen.costing.load.weight_bytes
        uses_all = any(1 - _NEAR <= one.plan.latency_ms / budget_ms <= 1 for one in found)
        if uses_all or isclose(left_bytes, load.weight_bytes, rel_tol=_NEAR):
            break
        tried.append((log(max(1, load.weight_bytes)), log(max(1, left_bytes))))
        load = replace(load, weight_bytes=round(exp(_fixed_point(tried))))
    fitting = [one for one in found if one.plan.latency_ms <= budget_ms]
    if fitting:
        return min(fitting, key=lambda one: one.plan.damage)
    fastest = min(found, key=lambda one: one.plan.latency_ms).plan
    return _priced(fastest, costing, damages, fastest.latency_ms)  # in which weights get colder than in the budget


def _priced(plan: Plan, costing: Costing, damages: Damages, called_every_ms: float) -> Solution:
    left_bytes = sum(layer.weight_bytes for layer in costing.layers_of(plan, damages))
    own = costing.at(CacheLoad(left_bytes, called_every_ms))
    terms = own.terms(damages)
    latency_ms = sum(float(term.latency_ms[term.place(plan)]) for term in terms)
    return Solution(replace(plan, latency_ms=latency_ms), terms, own)


def _fixed_point(tried: Sequence[tuple[float, float]]) -> float:
    """Where what goes in comes out, on the line through the last two points, and no further than the last one tells."""
    (*_, (earlier_in, earlier_out)), (last_in, last_out) = tried[:-1] or tried, tried[-1]
    rise = (last_out - earlier_out) / (last_in - earlier_in) if last_in != earlier_in else 0.0
    found = (last_out - rise * last_in) / (1 - rise) if rise < 1 else last_out
    return min(max(found, min(last_in, last_out)), max(last_in, last_out))
