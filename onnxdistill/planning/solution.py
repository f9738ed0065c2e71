"""The best plan within a latency, priced with what the network that it leaves will ask of the caches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import exp, log

from onnxdistill.device.costs.coldness import CacheLoad
from onnxdistill.planning.network import Choices, Costing, Damages
from onnxdistill.planning.problem import Plan, Term, solve

# How often a plan is made, each priced with the load of those before it, and by what share its own may be another one
# for it to be the last.
_ROUNDS, _NEAR = 3, 0.02


@dataclass(frozen=True)
class Solution:
    """A plan, and what it is the best of.

    Attributes:
        plan: The plan.
        terms: That it is a sum of.
        costing: That made them.
    """

    plan: Plan
    terms: Sequence[Term]
    costing: Costing


def best_solution(choices: Choices, costing: Costing, damages: Damages, budget_ms: float) -> Solution | None:
    """The plan of least damage within the budget, or else the fastest one; None if there is no plan at all.

    The fewer weights a plan leaves, the less its layers take, and the less a plan has to leave out for the budget.
    The weights that a plan leaves are taken to be a power of those that it is priced with, as the last two plans tell.

    Args:
        choices: Of the network.
        costing: Of these choices, at the load of the network as it is.
        damages: Of the options.
        budget_ms: What a call may take.
    """
    load, found, tried = replace(costing.load, latency_ms=budget_ms), None, list[tuple[float, float]]()
    for _ in range(_ROUNDS):
        priced = costing.at(load)
        terms = priced.terms(damages)
        plans = solve(choices.sizes, terms)
        if not len(plans):
            return None
        within = plans.within(budget_ms)
        if within is None and found is not None and found.plan.latency_ms <= budget_ms:
            break  # the fastest plan would leave out far more than the one that was within a moment ago
        found = Solution(within or plans[0], terms, priced)
        weight_bytes = sum(layer.weight_bytes for layer in priced.layers_of(found.plan, damages))
        its_own = CacheLoad(weight_bytes, max(budget_ms, found.plan.latency_ms))
        if its_own.near(load, _NEAR):
            break
        tried.append((log(max(1, load.weight_bytes)), log(max(1, weight_bytes))))
        load = replace(its_own, weight_bytes=round(exp(_same(tried))))
    return found


def _same(tried: Sequence[tuple[float, float]]) -> float:
    """Where what is put in comes out, on the line through the last two of what was tried, and no further than these."""
    (*_, (before, led_to)), (last, now) = tried[:-1] or tried, tried[-1]
    rise = (now - led_to) / (last - before) if last != before else 0.0
    found = (now - rise * last) / (1 - rise) if rise != 1 else now
    return min(max(found, min(now, last)), max(now, last))
