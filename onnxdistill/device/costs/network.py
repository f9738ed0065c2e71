"""What a network will cost at other widths: the trace of the network as it is, scaled layer by layer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import sqrt

from onnxdistill.device.costs.coldness import CacheLoad
from onnxdistill.device.costs.deviceprofile import DeviceProfile
from onnxdistill.device.costs.layers import Layer, Precision, Work, work_of_layer, work_of_node
from onnxdistill.device.profiling.operators import may_hold_layers
from onnxdistill.device.profiling.trace import Trace

# The faster a network is, the more of its weights it still finds in the caches, which makes it faster; after so many
# rounds a latency agrees with what it leads to.
_CACHE_ROUNDS = 4

# By so large a share more than all nodes a layer may take longer in a network than alone, whatever its width.
_MOST_IN_PROPORTION = 0.1


@dataclass(frozen=True)
class OtherNode:
    """A node whose time goes with the size of what it works on, down to the price of calling any node.

    Attributes:
        name: As the optimized graph calls it.
        time_ms: In the network as it is.
        call_ms: What a node takes that has nothing to do.
    """

    name: str
    time_ms: float
    call_ms: float

    def scaled_ms(self, ratio: float) -> float:
        """Its time for so many times as much data."""
        fixed_ms = min(self.time_ms, self.call_ms)
        return fixed_ms + (self.time_ms - fixed_ms) * ratio


@dataclass(frozen=True)
class NetworkCosts:
    """What a network costs, and would cost with other widths.

    Attributes:
        layers: As they are deployed: of the precision that they have there.
        corrections: By layer: its time in the network as a multiple of that in the device profile, where its weights
            are in the caches.
        others: All other nodes.
        overhead_ms: What a run takes outside its nodes.
        latency_ms: What a run takes.
        slowdown: How many times as long as in the trace all nodes take, for no reason that is known, which every
            correction has in it; 1 where they take no longer.
    """

    layers: tuple[Layer, ...]
    corrections: Mapping[str, float]
    others: tuple[OtherNode, ...]
    overhead_ms: float
    latency_ms: float
    slowdown: float = 1.0

    @cached_property
    def _by_name(self) -> dict[str, Layer]:
        return {layer.name: layer for layer in self.layers}

    @cached_property
    def load(self) -> CacheLoad:
        """What the network asks of the caches as it is."""
        return CacheLoad(sum(layer.weight_bytes for layer in self.layers), self.latency_ms)

    def layer_ms(self, profile: DeviceProfile, layer: Layer, load: CacheLoad | None = None) -> float:
        """The time of one of the network's layers at other widths.

        What a layer takes longer in the network than alone comes from weights that have left the caches, as far as
        that explains it: so much goes with the size of its weights, and with how far all of them do that. Of the rest,
        what all nodes take longer goes with its time, and some beyond that, such as an activation that is computed with
        it. What is left then comes from other tensors that the weights of a whole run have pushed out, such as the
        first ones of an image, which are written before they are read: it goes with the size of what the layer makes,
        and with the root of that of all weights, as long as these are fewer than now.

        Args:
            profile: Of the machine.
            layer: With its name in the network, and its new widths, or one of a pair that stands for it; fewer groups
                take their share.
            load: What the network asks of the caches then; by default what it does now.
        """
        correction, now, coldness = self.corrections[layer.name], self._by_name[layer.name], profile.coldness
        if layer.kind.groups != now.kind.groups:  # of as many kinds as there are numbers of groups, one is measured
            left, whole = layer.kind.groups, now.kind.groups
            as_many = replace(now, inputs=layer.inputs // left * whole, outputs=layer.outputs // left * whole)
            return left / whole * self.layer_ms(profile, as_many, load)
        alone_ms, cold_now = profile.time_ms(now), coldness.at(self.load)
        load = load or self.load
        cold_ms = min(max(0.0, correction - 1) * alone_ms, now.weight_bytes * coldness.ms_per_byte * cold_now)
        pushed_ms = max(0.0, (correction - self.slowdown * (1 + _MOST_IN_PROPORTION)) * alone_ms - cold_ms)
        if cold_ms + pushed_ms == 0:
            return profile.time_ms(layer) * correction
        kept = correction - (cold_ms + pushed_ms) / alone_ms
        time_ms = profile.time_ms(layer) * kept
        if cold_ms > 0:
            time_ms += cold_ms * layer.weight_bytes / now.weight_bytes * coldness.at(load) / cold_now
        # The more weights there are, the less they still find to push out.
        pushing = sqrt(min(1.0, load.weight_bytes / self.load.weight_bytes))
        return time_ms + pushed_ms * layer.output_values / now.output_values * pushing

    def time_ms(self, profile: DeviceProfile, layers: Iterable[Layer], ratios: Mapping[str, float]) -> float:
        """The latency of the network with other widths.

        Args:
            profile: Of the machine.
            layers: Those that are left, by the names that they have here, with their new widths.
            ratios: By the names of the exported network's nodes: how many times as much data they make as now. A node
                that isn't there has gone.
        """
        left = list(layers)
        mean = sum(ratios.values()) / len(ratios) if ratios else 1.0
        others_ms = sum(node.scaled_ms(_ratio(node.name, ratios, mean)) for node in self.others)
        load = CacheLoad(sum(layer.weight_bytes for layer in left), self.latency_ms)
        for _ in range(_CACHE_ROUNDS):
            layers_ms = sum(self.layer_ms(profile, layer, load) for layer in left)
            load = replace(load, latency_ms=self.overhead_ms + layers_ms + others_ms)
        return load.latency_ms


def deployed_layers(layers: Sequence[Layer], traced: Trace) -> tuple[Layer, ...]:
    """The layers of an exported network, in the precision that they have in a trace of the deployed one."""
    seen: dict[Work, list[str]] = defaultdict(list)
    for precision, work in filter(None, map(work_of_node, traced.nodes)):
        seen[work].append(precision)
    result = []
    for layer in layers:
        precisions = seen.get(work_of_layer(layer), ["float32"])
        deployed: Precision = "int8" if 2 * precisions.count("int8") > len(precisions) else "float32"
        result.append(replace(layer, kind=replace(layer.kind, precision=deployed)))
    return tuple(result)


def layer_times_ms(layers: Sequence[Layer], traced: Trace, latency_ms: float | None = None) -> dict[str, float | None]:
    """What layers take in a trace, by their names; None of one that is not found there.

    Layers of the same work are not told apart: each has their mean.

    Args:
        layers: As `deployed_layers` returns them.
        traced: Of the deployed network.
        latency_ms: What the network takes by a more careful measurement than the trace's: all times are scaled to it.
    """
    return _times_ms(layers, _seen_ms(traced, _scale(traced, latency_ms)))


def network_costs(
    layers: Sequence[Layer], traced: Trace, profile: DeviceProfile, latency_ms: float | None = None
) -> NetworkCosts:
    """Puts a network's trace beside the profile of the machine.

    Args:
        layers: As `deployed_layers` returns them.
        traced: Of the deployed network.
        profile: Of the machine, with all kinds of these layers.
        latency_ms: What the network takes by a more careful measurement than the trace's. What it takes longer goes to
            weights that were in the caches in the trace, and not in that measurement; then to all nodes alike. What
            it takes less is taken from what layers take longer in the trace than alone; then from all nodes alike.
    """
    if latency_ms is None:
        latency_ms = traced.run_ms
    colder_ms = _colder_ms(layers, traced, profile, latency_ms)
    if latency_ms < _run_ms(traced):  # what was cold in the trace alone is taken off before all is scaled
        scale = latency_ms / (_run_ms(traced) + sum(colder_ms.values()))
        colder_ms = {name: scale * time_ms for name, time_ms in colder_ms.items()}
    else:
        scale = _scale(traced, latency_ms - sum(colder_ms.values()))
    slowdown = max(1.0, scale)
    others = [
        OtherNode(node.name, scale * node.time_ms, slowdown * traced.call_ms)
        for node in traced.nodes
        if work_of_node(node) is None
    ]
    # Of layers that are found in the trace only, or that were written otherwise before.
    known = set(map(work_of_layer, layers))
    unclaimed_ms = sum(sum(times) for work, times in _seen_ms(traced, scale).items() if work not in known)
    times_ms = _times_ms(layers, _seen_ms(traced, scale))
    # Layers that are not found are among those, or within other nodes; or nowhere, with what is computed only once.
    unseen_ms = slowdown * sum(profile.time_ms(layer) for layer in layers if times_ms[layer.name] is None)
    claimed_ms = min(unseen_ms, unclaimed_ms)
    products = {node.name for node in traced.nodes if node.parameter_bytes and may_hold_layers(node.op_type)}
    others, within_ms = _taken_out(others, products, unseen_ms - claimed_ms)
    found = (claimed_ms + within_ms) / unseen_ms if unseen_ms > 0 else 1.0
    if unclaimed_ms > claimed_ms:
        others.append(OtherNode("", unclaimed_ms - claimed_ms, 0.0))
    corrections = {}
    for layer in layers:
        seen_ms, expected_ms = times_ms[layer.name], profile.time_ms(layer)
        if seen_ms is None or expected_ms <= 0:
            corrections[layer.name] = slowdown * found if seen_ms is None else 1.0
        else:
            corrections[layer.name] = (seen_ms + colder_ms.get(layer.name, 0.0)) / expected_ms
    return NetworkCosts(tuple(layers), corrections, tuple(others), scale * traced.overhead_ms, latency_ms, slowdown)


def _taken_out(nodes: Sequence[OtherNode], names: Collection[str], most_ms: float) -> tuple[list[OtherNode], float]:
    """The nodes, with so much less for those of these names, if they have it; and how much that is."""
    whole_ms = sum(node.time_ms for node in nodes if node.name in names)
    taken_ms = min(most_ms, whole_ms)
    share = 1 - taken_ms / whole_ms if whole_ms > 0 else 1.0
    return [replace(node, time_ms=share * node.time_ms) if node.name in names else node for node in nodes], taken_ms


def _colder_ms(layers: Sequence[Layer], traced: Trace, profile: DeviceProfile, latency_ms: float) -> dict[str, float]:
    """What layers take longer than in the trace since their weights are colder, by their names; less is negative.

    No more than what the network takes longer in all, and than what weights so cold can explain; or no more than what
    it takes less, and than what layers take longer in the trace than alone.
    """
    excess_ms = latency_ms - _run_ms(traced)
    load = CacheLoad(sum(layer.weight_bytes for layer in layers), latency_ms)
    ms_per_byte = profile.coldness.ms_per_byte * profile.coldness.at(load)
    times_ms = _times_ms(layers, _seen_ms(traced, 1.0))
    longer_ms = {
        layer.name: max(0.0, seen_ms - profile.time_ms(layer))
        for layer in layers
        if (seen_ms := times_ms[layer.name]) is not None
    }
    most_ms = longer_ms
    if excess_ms > 0:
        weight_bytes = {layer.name: layer.weight_bytes for layer in layers}
        most_ms = {name: max(0.0, weight_bytes[name] * ms_per_byte - ms) for name, ms in longer_ms.items()}
    share = min(1.0, abs(excess_ms) / (sum(most_ms.values()) or 1.0))
    return {name: (share if excess_ms > 0 else -share) * time_ms for name, time_ms in most_ms.items()}


def _times_ms(layers: Sequence[Layer], seen_ms: Mapping[Work, list[float]]) -> dict[str, float | None]:
    times = {layer.name: seen_ms.get(work_of_layer(layer)) for layer in layers}
    return {name: sum(seen) / len(seen) if seen else None for name, seen in times.items()}


def _scale(traced: Trace, latency_ms: float | None) -> float:
    run_ms = _run_ms(traced)
    return 1.0 if latency_ms is None or run_ms <= 0 else latency_ms / run_ms


def _run_ms(traced: Trace) -> float:
    """What a run comes to with layers that take no less than any node does, as `_seen_ms` has it."""
    lacking = (traced.call_ms - node.time_ms for node in traced.nodes if work_of_node(node))
    return traced.run_ms + sum(max(0.0, time_ms) for time_ms in lacking)


def _seen_ms(traced: Trace, scale: float) -> dict[Work, list[float]]:
    """The times of a trace's layers, by their work."""
    seen_ms: dict[Work, list[float]] = defaultdict(list)
    for node in traced.nodes:
        if found := work_of_node(node):
            seen_ms[found[1]].append(scale * max(node.time_ms, traced.call_ms))
    return seen_ms


def _ratio(name: str, ratios: Mapping[str, float], mean: float) -> float:
    if name in ratios:
        return ratios[name]
    # Optimized nodes have names that begin as those that they were made of.
    begun = [one for one in ratios if name.startswith(one)]
    return ratios[max(begun, key=len)] if begun else mean
