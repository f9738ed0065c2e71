"""Stage `plan`: spend a latency budget on widths and blocks, by what each of them costs on the target.

In several cuts: each time, channels are scored, the network is traced as it is deployed, and of all widths and blocks
those are taken that let the outputs move the least within the next part of the budget. What is left is repaired, and
its latency is measured: the plan of the next cut begins with that, and the last cuts make up for what was predicted
wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from onnxdistill.device.places import Place
from onnxdistill.device.session import SessionSettings
from onnxdistill.errors import NetworkError
from onnxdistill.graph.channels import analyse_channels
from onnxdistill.graph.groups import Narrowed
from onnxdistill.planning.decisions import Decision
from onnxdistill.planning.problem import EntangledError
from onnxdistill.recipe import PlanTable
from onnxdistill.stages.plan.account import PlannedLayer, account_decisions, account_layers
from onnxdistill.stages.plan.cut import Planner, Remember, Step
from onnxdistill.stages.plan.deployed import Deployed
from onnxdistill.tasks import Task

# Cuts after the last one of the recipe, where the latency is still too high.
_MOST_CORRECTIONS = 3
# Of a latency: two measurements of the same file differ by as much.
_FASTER = 0.98


@dataclass(frozen=True)
class Cut:
    """One of the cuts.

    Attributes:
        budget_ms: What was allowed.
        predicted_ms: What the plan was to take.
        measured_ms: What it takes.
        damage: By how much the outputs were to move.
    """

    budget_ms: float
    predicted_ms: float
    measured_ms: float
    damage: float


@dataclass(frozen=True)
class PlanResult:
    """The smaller network, and how it came about.

    Attributes:
        network: Trains and exports like any other.
        widths: Channel groups that got narrower.
        blocks: Residual blocks that were left out.
        pairs: Rank of every low-rank pair, by the layer that it stands for.
        cuts: Those that were kept, in their order.
        latency_ms: What a call takes now, as deployed.
        fits: Whether the budget is kept to.
        notes: A sentence each.
        decisions: What became of every choice, and what the other option would have been.
        layers: What became of every layer.
    """

    network: nn.Module
    widths: list[Narrowed]
    blocks: list[str]
    pairs: dict[str, int]
    cuts: list[Cut]
    latency_ms: float
    fits: bool
    notes: list[str]
    decisions: list[Decision]
    layers: list[PlannedLayer]


def plan(
    network: nn.Module,
    task: Task,
    table: PlanTable,
    budget_ms: float,
    deploy: Callable[[nn.Module], Deployed],
    place: Place,
    settings: SessionSettings,
    batch: int = 1,
    tune: Callable[[nn.Module, int], nn.Module] | None = None,
    remember: Remember = lambda _key, decide: decide(),
    on_progress: Callable[[str], None] = lambda _text: None,
) -> PlanResult:
    """Makes a network as fast as asked, with the least damage.

    Args:
        network: Not changed.
        task: Gives calibration samples, and the score on validation.
        table: The recipe's `[plan]`.
        budget_ms: What a call of the deployed student may take.
        deploy: Exports, quantizes and times a network.
        place: Where the deployed student will run.
        settings: How deployed files run.
        batch: Items a call.
        tune: Trains a network that more is to be cut from, after the cut of that number; None for no training.
        remember: Returns what was decided before under a key, or else decides.
        on_progress: Told what is being done.

    Raises:
        NetworkError: If the network cannot be traced, does not run with fewer channels, or has choices that depend on
            each other in too many ways.
    """
    planner = Planner(task, table, place, settings, batch, remember, on_progress)
    current, notes = network, list[str]()
    cuts, steps = list[Cut](), list[Step]()
    deployed = deploy(network)
    states = [_State(network, deployed)]
    for number in range(table.steps + _MOST_CORRECTIONS):
        if deployed.latency_ms <= budget_ms:
            break
        # From where the last cut has led, in equal ratios.
        left = max(1, table.steps - number)
        allowed_ms = deployed.latency_ms * (budget_ms / deployed.latency_ms) ** (1 / left)
        if number >= table.steps and cuts:  # by as much as the last plan was too slow
            allowed_ms *= min(1.0, cuts[-1].predicted_ms / cuts[-1].measured_ms)
        try:
            step = planner.step(current, deployed, allowed_ms)
        except EntangledError as error:
            raise NetworkError(
                f"The choices that {type(network).__name__} offers are too entangled to plan: {error}.",
                "Leave out [plan], and say how much goes with [prune].",
            ) from error
        if step is None:
            break
        current = step.network
        steps.append(step)
        on_progress("timing what is left")
        deployed = deploy(current)
        # The last cut is followed by the long training.
        if tune is not None and number + 1 < table.steps and deployed.latency_ms > budget_ms:
            current = tune(current, number + 1)
            on_progress("timing what was trained")
            deployed = deploy(current)  # the next cut reads the weights off this file
        cuts.append(Cut(allowed_ms, step.predicted_ms, deployed.latency_ms, step.damage))
        notes.append(
            f"plan, cut {len(cuts)}: {step.predicted_ms:.3g} ms predicted, {deployed.latency_ms:.3g} ms measured, of "
            f"{allowed_ms:.3g} ms allowed."
        )
        notes += [f"plan, cut {len(cuts)}, was planned with times to doubt. {doubt}" for doubt in step.doubts]
        states.append(_State(current, deployed))
    kept = _kept(states, budget_ms, notes)
    current, deployed, cuts, steps = states[kept].network, states[kept].deployed, cuts[:kept], steps[:kept]
    if deployed.latency_ms > budget_ms:
        why = "it has made as many cuts as it makes"
        if len(states) <= table.steps + _MOST_CORRECTIONS:
            why = "nothing is left to cut that would be faster"
        notes.append(f"plan stopped at {deployed.latency_ms:.3g} ms, above its budget of {budget_ms:.3g} ms: {why}.")
    layers = list[PlannedLayer]()
    if steps:
        layers = account_layers(steps[0].layers, steps[-1].layers, planner.layers(current, deployed))
    return PlanResult(
        network=current,
        widths=_widths(network, current, task),
        blocks=[block for step in steps for block in step.blocks],
        pairs={layer.name: layer.rank for layer in layers if layer.rank is not None},
        cuts=cuts,
        latency_ms=deployed.latency_ms,
        fits=deployed.latency_ms <= budget_ms,
        notes=notes,
        decisions=account_decisions(step.decisions for step in steps),
        layers=layers,
    )


@dataclass(frozen=True)
class _State:
    network: nn.Module
    deployed: Deployed


def _kept(states: Sequence[_State], budget_ms: float, notes: list[str]) -> int:
    """After how many cuts the budget is kept to, or else nothing that follows is measurably faster."""
    latencies = [state.deployed.latency_ms for state in states]
    enough_ms = max(budget_ms, min(latencies) / _FASTER if min(latencies) > budget_ms else 0.0)
    kept = next(cuts for cuts, latency_ms in enumerate(latencies) if latency_ms <= enough_ms)
    if kept + 1 < len(states):
        what = f"what cut {kept} had left" if kept else "the whole network"
        notes.append(f"plan went back to {what}: nothing after it was measured to be faster.")
    return kept


def _widths(before: nn.Module, after: nn.Module, task: Task) -> list[Narrowed]:
    """The groups that are narrower than they were; those of blocks that have gone are not among them."""
    example, layers = task.example_input(2), dict(before.named_modules())

    def known_as(name: str) -> str:
        # Of a pair, the second layer gives the channels that were the whole layer's.
        while name not in layers and name.endswith(".1"):
            name = name.removesuffix(".1")
        return name

    left = {known_as(group.name): group.size for group in analyse_channels(after, example).groups}
    return [
        Narrowed(group.name, group.size, left[group.name], group.layers)
        for group in analyse_channels(before, example).groups
        if left.get(group.name, group.size) < group.size
    ]
