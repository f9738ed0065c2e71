"""One cut: what a network's choices cost and damage, the best of them within a budget, and the network after it."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any

import onnx
import torch
from torch import nn

import onnxdistill
from onnxdistill.device.costs.layers import pair_of, read_exported
from onnxdistill.device.costs.network import deployed_layers, layer_times_ms, network_costs
from onnxdistill.device.places import Place
from onnxdistill.device.session import SessionSettings
from onnxdistill.graph.blocks import removable_blocks, without_blocks
from onnxdistill.graph.channels import ChannelAnalysis, analyse_channels
from onnxdistill.graph.importance import Scores, magnitude
from onnxdistill.graph.lowrank import can_factorize, input_shapes, scheme_of
from onnxdistill.graph.pairmoments import Scheme, longest_column
from onnxdistill.graph.secondorder import second_order
from onnxdistill.graph.standins import replaceable
from onnxdistill.graph.surgery import remove_channels
from onnxdistill.graph.widths import Steps, most_important
from onnxdistill.planning.decisions import Decision, decisions_of
from onnxdistill.planning.exportedgraph import Graph, read_graph
from onnxdistill.planning.network import Damages, choices_of, scopes_of
from onnxdistill.planning.solution import best_solution
from onnxdistill.planning.thinning import solvable
from onnxdistill.recipe import PlanTable
from onnxdistill.stages.plan.account import LayerState, done
from onnxdistill.stages.plan.damages import Appraiser
from onnxdistill.stages.plan.deployed import Deployed, Seen
from onnxdistill.stages.plan.known import Known
from onnxdistill.tasks import Task
from onnxdistill.training.checkpoint import fingerprint
from onnxdistill.training.job import FINGERPRINT_BATCH
from onnxdistill.training.pairs import PairForm, best_fitted, pair_factors, with_pairs
from onnxdistill.training.repaired import best_repaired, calibration_losses

# Of columns whose second moments are decomposed in each cut.
_LONGEST_COLUMN = 2400

Remember = Callable[[str, Callable[[], Any]], Any]
"""Returns what was decided before under a key, or else decides."""


@dataclass(frozen=True)
class Step:
    """A cut.

    Attributes:
        network: After it.
        blocks: Residual blocks that it left out.
        predicted_ms: What the network was to take.
        damage: By how much the outputs were to move.
        decisions: What became of every choice.
        layers: What was to become of every layer, by its module.
        doubts: Reasons not to trust the times that it was planned with, a sentence each.
    """

    network: nn.Module
    blocks: list[str]
    predicted_ms: float
    damage: float
    decisions: list[Decision]
    layers: dict[str, LayerState]
    doubts: list[str]


@dataclass(frozen=True)
class _Appraisal:
    """What a network's choices cost and damage, whatever is allowed.

    Attributes:
        known: What it offers, and what that costs.
        damages: By how much its outputs would move.
    """

    known: Known
    damages: Damages


class _Subject:
    """A network that cuts are made of, with what is known of it."""

    def __init__(self, network: nn.Module, task: Task) -> None:
        self.network = network
        self.analysis = analyse_channels(network, task.example_input(2))
        self.scores = score_channels(network, self.analysis, task)
        self.appraisal: _Appraisal | None = None


class Planner:
    """Plans and makes cuts.

    Args:
        task: Gives calibration samples, and the score on validation.
        table: The recipe's `[plan]`.
        place: Where the deployed student will run.
        settings: How deployed files run.
        batch: Items a call.
        keep: Names of modules that stay, with the blocks that they are in.
        remember: See `Remember`.
        on_progress: Told what is being done.
    """

    def __init__(
        self,
        task: Task,
        table: PlanTable,
        place: Place,
        settings: SessionSettings,
        batch: int,
        keep: Sequence[str],
        remember: Remember,
        on_progress: Callable[[str], None],
    ) -> None:
        self._task = task
        self._keep = keep
        self._table = table
        self._place = place
        self._settings = settings
        self._batch = batch
        self._remember = remember
        self._say = on_progress
        self._last: _Subject | None = None

    def step(self, network: nn.Module, deployed: Deployed, budget_ms: float) -> Step | None:
        """One cut; None if there is nothing that makes the network faster.

        Another cut of the same network takes a fraction of the time of the first.
        """
        if self._last is None or self._last.network is not network:
            self._say("scoring channels")
            self._last = _Subject(network, self._task)
        subject = self._last
        analysis, scores = subject.analysis, subject.scores
        decided = self._remember(self._key(deployed, budget_ms), lambda: self._decided(subject, deployed, budget_ms))
        if not decided:
            return None
        self._say("cutting and repairing")
        smaller, widths = self._cut(network, analysis, scores, decided["widths"], decided["blocks"])
        forms = {name: PairForm(scheme, rank) for name, (scheme, rank) in decided["pairs"].items()}
        if forms:
            smaller, forms = self._factorized(smaller, forms)
        if smaller is network:
            return None
        ranks = {name: form.rank for name, form in forms.items()}
        return Step(
            smaller,
            decided["blocks"],
            decided["latency_ms"],
            decided["damage"],
            done(map(_decision, decided["decisions"]), widths, ranks),
            {name: LayerState(**each) for name, each in decided["layers"].items()},
            decided["doubts"],
        )

    def layers(self, network: nn.Module, deployed: Deployed) -> dict[str, LayerState]:
        """What the layers of a network take as it is deployed, by their modules."""
        seen = self._see(network, deployed)
        return seen.states(layer_times_ms(seen.layers, seen.traced, deployed.latency_ms), {})

    @cached_property
    def _samples(self) -> str:
        """Of the calibration samples as they are read now: large images are described by their files alone."""
        return fingerprint(*(fingerprint(batch.inputs) for batch in self._task.calibration_batches(FINGERPRINT_BATCH)))

    def _key(self, deployed: Deployed, budget_ms: float) -> str:
        """Of all that a decision hangs on; what it is timed with is remembered itself."""
        digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (deployed.exported, deployed.path)]
        settings = f"{self._settings} {self._batch} {self._place.key}"
        data = f"{self._task.describe_data()} {self._samples}"
        version = f"plan 13 {onnxdistill.__version__}"
        table = self._table.model_copy(update={"epochs": 0})  # what was trained is in the files
        return f"{version} {table} {self._keep} {settings} {data} {budget_ms!r} {' '.join(digests)}"

    def _decided(self, subject: _Subject, deployed: Deployed, budget_ms: float) -> dict[str, Any]:
        """Widths, blocks and pairs, with what they cost, as plain values; nothing, if nothing is faster."""
        if subject.appraisal is None:
            network = subject.network
            known = self._known(network, subject.analysis, deployed)
            appraiser = Appraiser(network, known, subject.scores, self._task, self._table, self._say)
            subject.appraisal = _Appraisal(known, appraiser.damages())
        known, damages = subject.appraisal.known, subject.appraisal.damages
        self._say("solving")
        solution = best_solution(known.choices, known.costing(), damages, budget_ms)
        if solution is None or solution.plan.latency_ms >= deployed.latency_ms:
            return {}
        chosen, costing = solution.plan, solution.costing
        decisions = decisions_of(known.choices, damages, solution.terms, chosen)
        states = known.states(costing.layers_ms(chosen, damages))
        return {
            "widths": known.choices.kept(chosen),
            "blocks": known.choices.gone(chosen),
            "pairs": {
                weight.removesuffix(".weight"): ["spatial" if pair.spatial else "channel", pair.rank]
                for weight, pair in costing.pairs_of(chosen, damages).items()
            },
            "latency_ms": chosen.latency_ms,
            "damage": chosen.damage,
            "decisions": [asdict(decision) for decision in decisions],
            "layers": {name: asdict(state) for name, state in states.items()},
            "doubts": known.doubts(subject.network),
        }

    def _see(self, network: nn.Module, deployed: Deployed) -> Seen:
        self._say("tracing")
        feeds = {self._task.input_name: self._task.example_input(self._batch).numpy()}
        traced = self._place.trace(deployed.path, feeds, self._settings)
        layers = deployed_layers(read_exported(deployed.exported, feeds).layers, traced)
        parameters = dict(network.named_parameters())
        return Seen(layers, read_graph(onnx.load(deployed.exported), parameters, [one.name for one in layers]), traced)

    def _known(self, network: nn.Module, analysis: ChannelAnalysis, deployed: Deployed) -> Known:
        seen = self._see(network, deployed)
        layers, graph = seen.layers, seen.graph
        schemes = self._schemes(network, graph)
        pairs = [
            part
            for layer in layers
            for scheme in schemes.get(graph.weights.get(layer.name, "").removesuffix(".weight"), ())
            for part in pair_of(layer, min(layer.inputs, layer.outputs), spatial=scheme == "spatial")
        ]
        example, stay = self._task.example_input(2), [*self._table.skip, *self._keep]
        blocks = removable_blocks(network, example, stay) if self._table.blocks else []
        steps = Steps(self._table.multiple_of, self._table.minimum, tuple(self._table.skip))
        choices = choices_of(analysis, steps, blocks)
        # Before anything is timed.
        choices = solvable(choices, scopes_of(choices, analysis, graph, [layer.name for layer in layers]))
        profile = self._place.profile([*layers, *pairs], self._settings, self._table.multiple_of, self._say)
        return Known(
            choices,
            analysis,
            seen,
            network_costs(layers, seen.traced, profile, deployed.latency_ms),
            profile,
            schemes,
        )

    def _schemes(self, network: nn.Module, graph: Graph) -> dict[str, list[Scheme]]:
        """How layers can become pairs, by name."""
        if not (self._table.pairs and self._task.measurable):
            return {}
        found: dict[str, list[Scheme]] = {}
        nodes = Counter(graph.weights.values())
        layers = {
            name: module
            for name, module in network.named_modules()
            if name and nodes[f"{name}.weight"] == 1 and isinstance(module, nn.Conv2d | nn.Linear)
        }
        # Another module may take the weight, as attention does with that of its last layer.
        called = input_shapes(network, layers, self._task.example_input(2))
        for name, layer in layers.items():
            if name not in called or not can_factorize(layer):
                continue
            if any(fnmatchcase(name, pattern) for pattern in self._table.skip):
                continue
            wanted = dict.fromkeys(scheme_of(layer, scheme) for scheme in ("spatial", "channel"))
            found[name] = [scheme for scheme in wanted if longest_column(layer, scheme) <= _LONGEST_COLUMN]
        return {
            name: found[name] for name in replaceable(network, list(found), self._task.example_input(2), nn.Sequential)
        }

    def _factorized(self, network: nn.Module, forms: Mapping[str, PairForm]) -> tuple[nn.Module, dict[str, PairForm]]:
        """The network with low-rank pairs, of the layers that are still there and wide enough."""
        left = dict(network.named_modules())
        schemes = {name: [form.scheme] for name, form in forms.items() if name in left}
        factors = pair_factors(network, self._task, schemes, torch.Generator().manual_seed(0))
        fitting = {}
        for name in schemes:
            scheme, rank = forms[name]
            if rank < len(factors[name][scheme].errors) - 1:
                fitting[name] = forms[name]
        if not fitting:
            return network, {}
        changed = with_pairs(network, factors, fitting)
        return best_fitted(network, changed, fitting, self._task, fit=self._table.repair), fitting

    def _cut(
        self,
        network: nn.Module,
        analysis: ChannelAnalysis,
        scores: Scores,
        widths: Mapping[str, int],
        blocks: Sequence[str],
    ) -> tuple[nn.Module, dict[str, int]]:
        """Without blocks and channels, as good as it can be made; and the widths of the groups that were cut."""
        shorter = without_blocks(network, blocks) if blocks else network
        example = self._task.example_input(2)
        if blocks:
            if self._task.measurable:
                shorter = best_repaired(network, shorter, {}, blocks, self._task, fit=self._table.repair)
            analysis = analyse_channels(shorter, example)
        # A group that has become another one with the blocks that went stays as it is.
        left = {group.name: group.size for group in analysis.free if group.size == len(scores.get(group.name, ()))}
        narrower = {name: width for name, width in widths.items() if width < left.get(name, 0)}
        if not narrower:
            return shorter, {}
        kept = most_important(scores, narrower)
        smaller = remove_channels(shorter, analysis, kept, example)
        if self._task.measurable:
            removed = analysis.removed_indices(kept)
            smaller = best_repaired(shorter, smaller, removed, (), self._task, fit=self._table.repair)
        return smaller, narrower


def _decision(values: Mapping[str, Any]) -> Decision:
    return Decision(**values)


def score_channels(network: nn.Module, analysis: ChannelAnalysis, task: Task) -> Scores:
    """How much each channel of a group matters; by magnitude, where there is no data to ask."""
    if not task.measurable:
        return magnitude(network, analysis, 2)
    return second_order(network, analysis, calibration_losses(network, task))
