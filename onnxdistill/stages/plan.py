"""Stage `plan`: spend a latency budget on widths and blocks, by what each of them costs on the target.

In several cuts: each time, channels are scored, the network is traced as it is deployed, and of all widths and blocks
those are taken that let the loss grow the least within the next part of the budget. What is left is repaired, and its
latency is measured: the plan of the next cut begins with that, and the last cuts make up for what was predicted wrong.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from torch import nn

from onnxdistill.device.costs.deviceprofile import DeviceProfile, profile_device
from onnxdistill.device.costs.layers import read_exported
from onnxdistill.device.costs.network import NetworkCosts, deployed_layers, network_costs
from onnxdistill.device.profiling.trace import trace
from onnxdistill.device.session import SessionSettings
from onnxdistill.graph.blocks import removable_blocks, without_blocks
from onnxdistill.graph.channels import ChannelAnalysis, analyse_channels
from onnxdistill.graph.importance import Scores, magnitude
from onnxdistill.graph.secondorder import second_order
from onnxdistill.graph.surgery import remove_channels
from onnxdistill.graph.widths import Steps, most_important
from onnxdistill.planning.network import Choices, Costing, Damages, Graph, choices_of, read_graph
from onnxdistill.planning.problem import EntangledError, Plan, solve
from onnxdistill.recipe import PlanTable
from onnxdistill.tasks import Task
from onnxdistill.training.repaired import best_repaired, calibration_loss, calibration_losses

# Cuts after the last one of the recipe, where the latency is still too high.
_MOST_CORRECTIONS = 3
# How often weights in the caches are estimated from the plan that they led to.
_CACHE_ROUNDS = 2

Remember = Callable[[str, Callable[[], Any]], Any]
"""Returns what was decided before under a key, or else decides."""


@dataclass(frozen=True)
class Deployed:
    """A network in the form in which it is deployed.

    Attributes:
        exported: Its float file.
        path: The file that runs.
        latency_ms: What a call takes.
    """

    exported: Path
    path: Path
    latency_ms: float


@dataclass(frozen=True)
class Width:
    """A channel group before and after; `layers` are those that it runs through."""

    name: str
    channels_before: int
    channels_after: int
    layers: list[str]


@dataclass(frozen=True)
class Cut:
    """One of the cuts.

    Attributes:
        budget_ms: What was allowed.
        predicted_ms: What the plan was to take.
        measured_ms: What it takes.
        damage: By how much the loss was to grow.
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
        cuts: In their order.
        notes: A sentence each.
    """

    network: nn.Module
    widths: list[Width]
    blocks: list[str]
    cuts: list[Cut]
    notes: list[str]


def plan(
    network: nn.Module,
    task: Task,
    table: PlanTable,
    budget_ms: float,
    deploy: Callable[[nn.Module], Deployed],
    settings: SessionSettings,
    batch: int = 1,
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
        settings: How deployed files run.
        batch: Items a call.
        remember: Returns what was decided before under a key, or else decides.
        on_progress: Told what is being done.

    Raises:
        NetworkError: If the network cannot be traced, or does not run with fewer channels.
    """
    planner = _Planner(task, table, settings, batch, remember, on_progress)
    current, gone, notes = network, list[str](), list[str]()
    cuts: list[Cut] = []
    deployed = deploy(network)
    whole_ms = deployed.latency_ms
    for number in range(1, table.steps + _MOST_CORRECTIONS + 1):
        if deployed.latency_ms <= budget_ms:
            break
        share = min(1.0, number / table.steps)
        allowed_ms = whole_ms * (budget_ms / whole_ms) ** share
        if number > table.steps and cuts:  # by as much as the last plan was too slow
            allowed_ms *= min(1.0, cuts[-1].predicted_ms / cuts[-1].measured_ms)
        try:
            step = planner.step(current, deployed, allowed_ms)
        except EntangledError as error:
            notes.append(f"plan stopped: {error}; use [prune] for this network.")
            break
        if step is None:
            notes.append(f"plan stopped at {deployed.latency_ms:.3g} ms: nothing is left to cut.")
            break
        current = step.network
        gone += step.blocks
        deployed = deploy(current)
        cuts.append(Cut(allowed_ms, step.predicted_ms, deployed.latency_ms, step.damage))
        notes.append(
            f"plan, cut {len(cuts)}: {step.predicted_ms:.3g} ms predicted, {deployed.latency_ms:.3g} ms measured, of "
            f"{allowed_ms:.3g} ms allowed."
        )
    return PlanResult(current, _widths(network, current, task), gone, cuts, notes)


@dataclass(frozen=True)
class _Step:
    network: nn.Module
    blocks: list[str]
    predicted_ms: float
    damage: float


@dataclass(frozen=True)
class _Known:
    """What one cut is planned from."""

    choices: Choices
    analysis: ChannelAnalysis
    graph: Graph
    costs: NetworkCosts
    profile: DeviceProfile


class _Planner:
    def __init__(
        self,
        task: Task,
        table: PlanTable,
        settings: SessionSettings,
        batch: int,
        remember: Remember,
        on_progress: Callable[[str], None],
    ) -> None:
        self._task = task
        self._table = table
        self._settings = settings
        self._batch = batch
        self._remember = remember
        self._say = on_progress

    def step(self, network: nn.Module, deployed: Deployed, budget_ms: float) -> _Step | None:
        """One cut; None if there is nothing that makes the network faster."""
        analysis = analyse_channels(network, self._task.example_input(2))
        scores = self._scores(network, analysis)
        digest = hashlib.sha256(deployed.exported.read_bytes()).hexdigest()
        key = f"plan {self._table} {digest}"
        decided = self._remember(key, lambda: self._decided(network, analysis, scores, deployed, budget_ms))
        if not decided:
            return None
        self._say("cutting and repairing")
        smaller = self._cut(network, analysis, scores, decided["widths"], decided["blocks"])
        return _Step(smaller, decided["blocks"], decided["latency_ms"], decided["damage"])

    def _decided(
        self,
        network: nn.Module,
        analysis: ChannelAnalysis,
        scores: Scores,
        deployed: Deployed,
        budget_ms: float,
    ) -> dict[str, Any]:
        """Widths and blocks, with what they cost, as plain values; nothing, if nothing is faster."""
        known = self._known(network, analysis, deployed)
        damages = self._damages(network, known, scores)
        self._say("solving")
        chosen = self._solved(known, damages, budget_ms)
        if chosen is None or chosen.latency_ms >= deployed.latency_ms:
            return {}
        return {
            "widths": known.choices.kept(chosen),
            "blocks": known.choices.gone(chosen),
            "latency_ms": chosen.latency_ms,
            "damage": chosen.damage,
        }

    def _known(self, network: nn.Module, analysis: ChannelAnalysis, deployed: Deployed) -> _Known:
        self._say("tracing")
        feeds = {self._task.input_name: self._task.example_input(self._batch).numpy()}
        traced = trace(deployed.path, feeds, self._settings)
        layers = deployed_layers(read_exported(deployed.exported, feeds).layers, traced)
        profile = profile_device(
            layers, self._settings, self._table.multiple_of, on_kind=lambda kind, _: self._say(f"measuring {kind}")
        )
        blocks = removable_blocks(network, self._task.example_input(2)) if self._table.blocks else []
        steps = Steps(self._table.multiple_of, self._table.minimum, tuple(self._table.skip))
        return _Known(
            choices_of(analysis, steps, blocks),
            analysis,
            read_graph(onnx.load(deployed.exported), dict(network.named_parameters())),
            network_costs(layers, traced, profile, deployed.latency_ms),
            profile,
        )

    def _scores(self, network: nn.Module, analysis: ChannelAnalysis) -> Scores:
        self._say("scoring channels")
        if not self._task.measurable:
            return magnitude(network, analysis, 2)
        return second_order(network, analysis, calibration_losses(self._task))

    def _damages(self, network: nn.Module, known: _Known, scores: Scores) -> Damages:
        widths = {}
        for name in known.choices.widths:
            rising = np.sort(scores[name].double().numpy())
            # With w channels left, the others have gone, the least important ones.
            widths[name] = np.concatenate([np.cumsum(rising)[::-1], [0.0]])
        self._say("scoring blocks")
        if not self._task.measurable:
            mean = float(np.mean([damage[0] for damage in widths.values()])) if widths else 1.0
            return Damages(widths, dict.fromkeys(known.choices.blocks, mean))
        before = calibration_loss(network, self._task)
        blocks = {
            block: max(0.0, calibration_loss(without_blocks(network, [block]), self._task) - before)
            for block in known.choices.blocks
        }
        return Damages(widths, blocks)

    def _solved(self, known: _Known, damages: Damages, budget_ms: float) -> Plan | None:
        """The plan of least damage within the budget, or the fastest one."""
        weight_bytes, chosen = known.costs.weight_bytes, None
        for _ in range(_CACHE_ROUNDS):
            costing = Costing(known.choices, known.analysis, known.graph, known.costs, known.profile, weight_bytes)
            plans = solve(known.choices.sizes, costing.terms(damages))
            if not len(plans):
                return None
            chosen = plans.within(budget_ms) or plans[0]
            weight_bytes = sum(layer.weight_bytes for layer in costing.layers_of(chosen))
        return chosen

    def _cut(
        self,
        network: nn.Module,
        analysis: ChannelAnalysis,
        scores: Scores,
        widths: Mapping[str, int],
        blocks: Sequence[str],
    ) -> nn.Module:
        shorter = without_blocks(network, blocks)
        example = self._task.example_input(2)
        if blocks:
            if self._task.measurable:
                shorter = best_repaired(network, shorter, {}, blocks, self._task, fit=self._table.repair)
            analysis = analyse_channels(shorter, example)
        left = {group.name: group.size for group in analysis.free}
        narrower = {name: width for name, width in widths.items() if width < left.get(name, 0)}
        if not narrower:
            return shorter
        kept = most_important(scores, narrower)
        smaller = remove_channels(shorter, analysis, kept, example)
        if not self._task.measurable:
            return smaller
        removed = analysis.removed_indices(kept)
        return best_repaired(shorter, smaller, removed, (), self._task, fit=self._table.repair)


def _widths(before: nn.Module, after: nn.Module, task: Task) -> list[Width]:
    """The groups that are narrower than they were; those of blocks that have gone are not among them."""
    example = task.example_input(2)
    left = {group.name: group.size for group in analyse_channels(after, example).groups}
    return [
        Width(group.name, group.size, left[group.name], group.layers)
        for group in analyse_channels(before, example).groups
        if left.get(group.name, group.size) < group.size
    ]
