"""The choices that a network offers: how wide each channel group is, and which blocks stay; with what each costs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from math import prod

import numpy as np
import numpy.typing as npt

from onnxdistill.device.costs.coldness import CacheLoad
from onnxdistill.device.costs.deviceprofile import DeviceProfile
from onnxdistill.device.costs.layers import DEPTHWISE, Layer, pair_of
from onnxdistill.device.costs.network import NetworkCosts, OtherNode
from onnxdistill.graph.groups import ChannelAnalysis, ChannelGroup
from onnxdistill.graph.widths import Steps
from onnxdistill.planning.exportedgraph import Graph
from onnxdistill.planning.problem import MOST_CASES, EntangledError, Plan, Term

Floats = npt.NDArray[np.float64]

STAYS, GOES = 0, 1
"""Options of a block."""

# Widths of a group that are considered: more of them are hardly told apart by what they cost.
_MOST_WIDTHS = 10


@dataclass(frozen=True)
class Choices:
    """A network's choices.

    Attributes:
        widths: How many channels may be kept, by group.
        blocks: Residual blocks that can go.
    """

    widths: Mapping[str, Sequence[int]]
    blocks: Sequence[str]

    @property
    def sizes(self) -> dict[str, int]:
        """How many options each choice has."""
        return {**{name: len(widths) for name, widths in self.widths.items()}, **dict.fromkeys(self.blocks, 2)}

    def kept(self, plan: Plan) -> dict[str, int]:
        """The widths of a plan, by group."""
        return {name: widths[plan.options[name]] for name, widths in self.widths.items()}

    def gone(self, plan: Plan) -> list[str]:
        """The blocks that a plan leaves out."""
        return [block for block in self.blocks if plan.options[block] == GOES]

    def around(self, modules: Sequence[str]) -> tuple[str, ...]:
        """The block that all of these modules lie in, if there is one."""
        for block in self.blocks:
            if modules and all(f"{module}.".startswith(f"{block}.") for module in modules):
                return (block,)
        return ()


def choices_of(analysis: ChannelAnalysis, steps: Steps, blocks: Sequence[str]) -> Choices:
    """All choices of a network.

    Args:
        analysis: Its channel groups.
        steps: Which widths are allowed.
        blocks: That can go; of those that lie in each other, the outermost is taken.
    """
    outermost = [block for block in blocks if not any(block.startswith(f"{other}.") for other in blocks)]
    # Heads lie across the channels within them, which are choices of their own.
    groups = [group for group in analysis.free if group.kind == "channels" and steps.may_cut(group)]
    widths = {group.name: _widths(group, steps) for group in groups}
    return Choices({name: found for name, found in widths.items() if len(found) > 1}, outermost)


def _widths(group: ChannelGroup, steps: Steps) -> list[int]:
    shares = np.arange(1, _MOST_WIDTHS + 1) / _MOST_WIDTHS
    return sorted({steps.rounded(group, float(share) * group.size) for share in shares} | {group.size})


@dataclass(frozen=True)
class Pair:
    """A low-rank pair in the place of a layer.

    Attributes:
        spatial: See `pair_of`.
        rank: Channels between the two.
        damage: By how much the outputs move, at the widths that the layer has now.
    """

    spatial: bool
    rank: int
    damage: float = 0.0


@dataclass(frozen=True)
class Damages:
    """By how much the outputs move.

    Attributes:
        widths: Of a group with so many channels left, `[size + 1]`, by group.
        blocks: Of a block that has gone, by block.
        pairs: Of low-rank pairs in the place of a layer, by its weight's name.
    """

    widths: Mapping[str, Floats]
    blocks: Mapping[str, float]
    pairs: Mapping[str, Sequence[Pair]] = field(default_factory=dict)


def scopes_of(choices: Choices, analysis: ChannelAnalysis, graph: Graph, layers: Iterable[str]) -> list[list[str]]:
    """The choices that the time of each layer depends on; nodes that are no layers depend on some of the same."""
    groups: dict[str, list[str]] = defaultdict(list)
    for group in analysis.free:
        for member in group.members if group.name in choices.widths else ():
            groups[member.tensor].append(group.name)
    through = {layer: dict.fromkeys(groups.get(graph.weights.get(layer, ""), ())) for layer in layers}
    return [[*found, *choices.around(graph.modules.get(layer, ())[-1:])] for layer, found in through.items()]


class Costing:
    """Turns a network's choices into terms of latency and damage.

    Args:
        choices: Of the network.
        analysis: Its channel groups.
        graph: Of its exported file.
        costs: Of the network as it is deployed.
        profile: Of the machine.
        load: What the network will ask of the caches.
    """

    def __init__(
        self,
        choices: Choices,
        analysis: ChannelAnalysis,
        graph: Graph,
        costs: NetworkCosts,
        profile: DeviceProfile,
        load: CacheLoad,
    ) -> None:
        self._choices = choices
        self._analysis = analysis
        self._graph = graph
        self._costs = costs
        self._profile = profile
        self._load = load
        self._groups = {group.name: group for group in analysis.free}
        self._whole_groups = analysis.whole_groups
        self._layers = {layer.name: layer for layer in costs.layers}
        self._runs: dict[str, list[tuple[str, int, int]]] = defaultdict(list)
        for name in choices.widths:
            for member in self._groups[name].members:
                self._runs[member.tensor].append((name, member.dim, len(member.indices[0])))

    @property
    def load(self) -> CacheLoad:
        """What the network will ask of the caches."""
        return self._load

    def at(self, load: CacheLoad) -> Costing:
        """The same choices in a network that asks something else of the caches."""
        return Costing(self._choices, self._analysis, self._graph, self._costs, self._profile, load)

    def terms(self, damages: Damages) -> list[Term]:
        """All terms, those of the same choices together.

        Raises:
            EntangledError: If a layer depends on too many choices.
        """
        latencies: dict[tuple[str, ...], Floats] = {}
        for around, latency_ms in self._latencies(damages.pairs):
            latencies[around] = latencies[around] + latency_ms if around in latencies else latency_ms
        terms = [
            Term(f"latency of {', '.join(around)}", around, latency_ms[..., None], np.zeros((*latency_ms.shape, 1)))
            for around, latency_ms in latencies.items()
        ]
        for name, widths in self._choices.widths.items():
            inside = self._choices.around([member.layer for member in self._groups[name].members])
            damage = np.array([damages.widths[name][width] for width in widths])
            # The widths within a block that has gone are nobody's concern.
            damage = np.stack([damage, np.zeros_like(damage)], axis=1) if inside else damage
            terms.append(Term(f"damage of {name}", (name, *inside), np.zeros((*damage.shape, 1)), damage[..., None]))
        for block in self._choices.blocks:
            without = np.array([[0.0], [damages.blocks[block]]])
            terms.append(Term(f"damage without {block}", (block,), np.zeros((2, 1)), without))
        return [*terms, *self._pair_terms(damages)]

    def pairs_of(self, plan: Plan, damages: Damages) -> dict[str, Pair]:
        """The low-rank pairs of a plan, by the weight of the layer that each stands for."""
        gone = set(self._choices.gone(plan))
        return {
            weight: pairs[form - 1]
            for layer in self._layers.values()
            if (pairs := damages.pairs.get(weight := self._graph.weights.get(layer.name, "")))
            and (form := plan.forms[form_of(weight)])
            and not gone & set(self._block_of(layer.name))
        }

    def _pair_terms(self, damages: Damages) -> Iterator[Term]:
        """What layers cost that may become pairs: as they are, and as each of these."""
        for layer in self._layers.values():
            weight = self._graph.weights.get(layer.name, "")
            if pairs := damages.pairs.get(weight):
                through, blocks = self._groups_through(layer), self._block_of(layer.name)
                parts = [partial(self._layer_ms, layer), *(partial(self._pair_ms, layer, pair) for pair in pairs)]
                tables = [self._over(through, blocks, part)[1] for part in parts]
                latency_ms = np.stack(tables, axis=-1)
                damage = np.broadcast_to(np.array([0.0, *(pair.damage for pair in pairs)]), latency_ms.shape).copy()
                if blocks:
                    damage[..., GOES, :] = 0.0
                yield Term(form_of(weight), (*through, *blocks), latency_ms, damage)

    def layers_of(self, plan: Plan, damages: Damages) -> list[Layer]:
        """The layers that a plan leaves, with their new widths, and the two layers of a pair in the place of one."""
        kept = self._choices.kept(plan)
        return [
            part
            for layer, pair in self._left(plan, damages)
            for part in ([self._cut(layer, kept)] if pair is None else self._pair(layer, pair, kept))
        ]

    def layers_ms(self, plan: Plan, damages: Damages) -> dict[str, float]:
        """What every layer takes that a plan leaves, low-rank pairs in its place included, by its node."""
        kept = self._choices.kept(plan)
        return {
            layer.name: self._layer_ms(layer, kept) if pair is None else self._pair_ms(layer, pair, kept)
            for layer, pair in self._left(plan, damages)
        }

    def _left(self, plan: Plan, damages: Damages) -> Iterator[tuple[Layer, Pair | None]]:
        """The layers that a plan leaves, as they were, and the pairs that stand for them."""
        gone, pairs = set(self._choices.gone(plan)), self.pairs_of(plan, damages)
        for layer in self._layers.values():
            if not gone & set(self._block_of(layer.name)):
                yield layer, pairs.get(self._graph.weights.get(layer.name, ""))

    def _latencies(self, apart: Container[str]) -> Iterator[tuple[tuple[str, ...], Floats]]:
        """Choices, and the time of something for all combinations of their options; not of the weights `apart`."""
        yield (), np.array(self._costs.overhead_ms)
        for layer in self._layers.values():
            if self._graph.weights.get(layer.name, "") not in apart:
                part = partial(self._layer_ms, layer)
                yield self._over(self._groups_through(layer), self._block_of(layer.name), part)
        for node in self._costs.others:
            yield from self._node_latencies(node)

    def _over(
        self, groups: Sequence[str], blocks: Sequence[str], time_ms: Callable[[Mapping[str, int]], float]
    ) -> tuple[tuple[str, ...], Floats]:
        sizes = [len(self._choices.widths[name]) for name in groups]
        if prod(sizes) > MOST_CASES:
            raise EntangledError(f"a layer takes channels of {len(groups)} groups")
        table = np.zeros(sizes)
        for place in product(*map(range, sizes)):
            kept = {name: self._choices.widths[name][index] for name, index in zip(groups, place, strict=True)}
            table[place] = time_ms(kept)
        return (*groups, *blocks), np.stack([table, np.zeros_like(table)], axis=-1) if blocks else table

    def _node_latencies(self, node: OtherNode) -> Iterator[tuple[tuple[str, ...], Floats]]:
        """A node's time goes with the channels that it works on: a part of it with those of each layer."""
        name = self._named(node)
        blocks, shares = self._block_of(name), self._graph.origins.get(name, {})
        fixed_ms = node.scaled_ms(1 - sum(shares.values()))
        yield self._over((), blocks, lambda _: fixed_ms)
        varying_ms = node.scaled_ms(1.0) - node.scaled_ms(0.0)
        for origin, share in shares.items():
            part = partial(self._channels_ms, self._layers[origin], share * varying_ms)
            yield self._over(self._groups_out_of(self._layers[origin]), blocks, part)

    def _channels_ms(self, layer: Layer, whole_ms: float, kept: Mapping[str, int]) -> float:
        return whole_ms * self._cut(layer, kept).outputs / layer.outputs

    def _layer_ms(self, layer: Layer, kept: Mapping[str, int]) -> float:
        return self._costs.layer_ms(self._profile, self._cut(layer, kept), self._load)

    def _pair_ms(self, layer: Layer, pair: Pair, kept: Mapping[str, int]) -> float:
        return sum(self._costs.layer_ms(self._profile, one, self._load) for one in self._pair(layer, pair, kept))

    def _pair(self, layer: Layer, pair: Pair, kept: Mapping[str, int]) -> Sequence[Layer]:
        return pair_of(self._cut(layer, kept), pair.rank, spatial=pair.spatial)

    def _groups_through(self, layer: Layer) -> list[str]:
        runs = self._runs.get(self._graph.weights.get(layer.name, ""), ())
        return list(dict.fromkeys(group for group, _, _ in runs))

    def _cut(self, layer: Layer, kept: Mapping[str, int]) -> Layer:
        gone, weight = {0: 0, 1: 0}, self._graph.weights.get(layer.name, "")
        for name, dim, each in self._runs.get(weight, ()):
            if name in kept and dim in gone:
                gone[dim] += (self._groups[name].size - kept[name]) * each
        kind = layer.kind
        if kind.groups == DEPTHWISE:
            left = layer.outputs - gone[0]
            return replace(layer, inputs=left, outputs=left)
        if weight.rpartition(".")[0] in self._whole_groups or kind.groups == layer.inputs > 1:
            # What goes in is the first axis of a transposed weight.
            first = layer.inputs if kind.transposed else layer.outputs
            groups = max(1, kind.groups * (first - gone[0]) // first)
            inputs, outputs = (count // kind.groups * groups for count in (layer.inputs, layer.outputs))
            return replace(layer, kind=replace(kind, groups=groups), inputs=inputs, outputs=outputs)
        if kind.transposed:
            return replace(layer, inputs=layer.inputs - gone[0], outputs=layer.outputs - gone[1])
        # All groups take from as many channels fewer.
        return replace(layer, inputs=layer.inputs - gone[1] * kind.groups, outputs=layer.outputs - gone[0])

    def _named(self, node: OtherNode) -> str:
        """The exported node that an optimized one was made of, as far as its name tells."""
        begun = [name for name in self._graph.modules if name and node.name.startswith(name)]
        return max(begun, key=len, default="")

    def _groups_out_of(self, layer: Layer) -> list[str]:
        """The groups whose channels a layer makes."""
        weight = self._graph.weights.get(layer.name, "")
        made_by = 1 if layer.kind.transposed and layer.kind.groups == 1 else 0
        return list(dict.fromkeys(group for group, dim, _ in self._runs.get(weight, ()) if dim == made_by))

    def _block_of(self, name: str) -> tuple[str, ...]:
        return self._choices.around(self._graph.modules.get(name, ())[-1:])


def form_of(weight: str) -> str:
    """Name of the term whose forms are those of a layer."""
    return f"form of {weight}"
